"""Zero-shot splits: labels without what a split hides, and results as unseen / seen means; docs/zero-shot.md.

Which interactions a split hides: hoi/evaluation/zero_shot_splits.py.

Letters: K interactions, R annotated rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from hoi.config import DatasetSettings, PipelineConfig
from hoi.datasets import dataset_of
from hoi.datasets.hicodet import unseen
from hoi.errors import UserError, nearest
from hoi.evaluation.hico import HicoResult
from hoi.evaluation.rows import ResultRow
from hoi.evaluation.table import rows_by_name
from hoi.records import HoiLabels
from hoi.vocabulary import Vocabulary

SplitName = Literal["rare_first", "non_rare_first", "unseen_object", "unseen_verb"]
SPLIT_NAMES: tuple[SplitName, ...] = get_args(SplitName)
UNSEEN_SHARE = 0.2
OBJECT_SHARE = 12 / 80
VERB_SHARE = 20 / 117


def names_of(config: DatasetSettings) -> tuple[str, ...]:
    """The splits that a data set has."""
    return dataset_of(config).zero_shot_splits or SPLIT_NAMES


def check_name(config: DatasetSettings, name: str, where: str) -> None:
    """Nothing, where the data set has such a split.

    Raises:
        UserError: otherwise.
    """
    if name not in names_of(config):
        raise UserError(
            f"there is no zero-shot split '{name}' of {config.name}",
            where=where,
            expected=nearest(name, names_of(config)),
            got=name,
        )


def unseen_ids(
    config: DatasetSettings, vocabulary: Vocabulary, name: str, train_interactions: Callable[[], np.ndarray]
) -> np.ndarray:
    """A split to what it hides: int64, ascending rows of the vocabulary's interactions.

    Args:
        config: Whose splits these are.
        vocabulary: Of the data set.
        name: One of `names_of`.
        train_interactions: Gives the interaction of every label of the whole training split, for splits that count.

    Raises:
        UserError: there is no such split.
    """
    check_name(config, name, "zero-shot split")
    dataset = dataset_of(config)
    if dataset.zero_shot_splits is not None:
        return dataset.unseen(name)
    if name in ("rare_first", "non_rare_first"):
        counts = np.bincount(train_interactions(), minlength=len(vocabulary))
        return by_counts(vocabulary, counts if name == "rare_first" else -counts)
    if name == "unseen_object":
        return _whole(vocabulary.object_of, vocabulary.verb_of, vocabulary.objects, OBJECT_SHARE, np.zeros(0, np.int64))
    no_interaction = np.unique(vocabulary.verb_of[vocabulary.is_no_interaction])
    return _whole(vocabulary.verb_of, vocabulary.object_of, vocabulary.verbs, VERB_SHARE, no_interaction)


def by_counts(vocabulary: Vocabulary, counts: np.ndarray) -> np.ndarray:
    """A fifth of the interactions, lowest counts first, unless it is the last of its verb or object that is left.

    Args:
        vocabulary: K interactions.
        counts: int64 [K].
    """
    verbs, objects = np.bincount(vocabulary.verb_of), np.bincount(vocabulary.object_of)
    hidden: list[int] = []
    for k in np.lexsort((np.arange(len(counts)), counts)):
        if len(hidden) == round(UNSEEN_SHARE * len(vocabulary)):
            break
        verb, thing = vocabulary.verb_of[k], vocabulary.object_of[k]
        if verbs[verb] > 1 and objects[thing] > 1:
            hidden.append(int(k))
            verbs[verb], objects[thing] = verbs[verb] - 1, objects[thing] - 1
    return np.array(sorted(hidden), np.int64)


def _whole(
    group_of: np.ndarray, other_of: np.ndarray, names: tuple[str, ...], share: float, kept: np.ndarray
) -> np.ndarray:
    """Interactions of some groups (objects or verbs), in an order that their names decide, but of none in `kept`."""
    groups = [group for group in _shuffled(np.unique(group_of), names) if group not in kept]
    is_hidden = np.zeros(len(group_of), bool)
    num_left = max(1, round(share * len(groups)))
    for group in groups:
        with_it = is_hidden | (group_of == group)
        if num_left and set(other_of[~with_it]) == set(other_of):
            is_hidden, num_left = with_it, num_left - 1
    return np.flatnonzero(is_hidden)


def _shuffled(rows: Iterable[int], names: tuple[str, ...]) -> list[int]:
    return sorted(rows, key=lambda row: hashlib.sha256(names[row].encode()).hexdigest())


@dataclass(frozen=True)
class Dropped:
    """What `drop_unseen` took away.

    Args:
        num_pairs: Human-object pairs with an unseen interaction, dropped whole.
        num_unseen: Annotated rows of unseen interactions.
        num_seen: Annotated rows of seen interactions that stood on dropped pairs.
        num_images_emptied: Images that held a pair and hold none now.
        num_left: Annotated rows that are left.
    """

    num_pairs: int
    num_unseen: int
    num_seen: int
    num_images_emptied: int
    num_left: int

    def __str__(self) -> str:
        return (
            f"{self.num_pairs} pairs with an unseen interaction are dropped: {self.num_unseen} unseen and "
            f"{self.num_seen} seen labels; {self.num_left} labels are left, "
            f"{self.num_images_emptied} images are empty now"
        )


def drop_unseen(labels: HoiLabels, unseen_ids: np.ndarray) -> tuple[HoiLabels, Dropped]:
    """Training labels without the pairs that have an unseen interaction, and what was dropped.

    A pair is an image and its two boxes; all its labels go, the seen ones with the unseen ones, so that not even its
    being there tells of what is hidden.

    Args:
        labels: Of a training split.
        unseen_ids: int64, the interactions to hide.
    """
    is_unseen = np.isin(labels.interaction, unseen_ids)
    rows = np.column_stack([labels.image, labels.boxes_h, labels.boxes_o]).astype(np.float64)
    _, pair = np.unique(rows, axis=0, return_inverse=True)
    pair = pair.reshape(-1)
    hidden = np.zeros(len(rows), bool)
    hidden[pair[is_unseen]] = True
    goes = hidden[pair]
    kept = HoiLabels(labels.image[~goes], labels.boxes_h[~goes], labels.boxes_o[~goes], labels.interaction[~goes])
    report = Dropped(
        num_pairs=int(hidden.sum()),
        num_unseen=int(is_unseen.sum()),
        num_seen=int((goes & ~is_unseen).sum()),
        num_images_emptied=len(np.unique(labels.image)) - len(np.unique(kept.image)),
        num_left=len(kept),
    )
    return kept, report


def hide(
    name: str, unseen_ids: np.ndarray, splits: tuple[HoiLabels, HoiLabels]
) -> tuple[tuple[HoiLabels, HoiLabels], dict[str, Any]]:
    """Labels to train with, and those that choose, without what a split hides; and what a run's record says of it.

    Args:
        name: Of the split.
        unseen_ids: int64, the interactions to hide.
        splits: Labels of the training split and of the tuning split.

    Raises:
        UserError: nothing is left of one of them.
    """
    (train, of_train), (tune, of_tune) = (drop_unseen(labels, unseen_ids) for labels in splits)
    for labels, which in ((train, "training"), (tune, "tuning")):
        if not len(labels):
            raise UserError(
                f"the zero-shot split leaves no label to {'learn from' if which == 'training' else 'choose by'}",
                where=f"zero_shot: {name}, {which} split",
                expected="at least one label of a seen interaction",
                got="none",
            )
    record = {"split": name, "unseen": unseen_ids.tolist(), "dropped": asdict(of_train), "of_tuning": asdict(of_tune)}
    return (train, tune), record


def zero_shot_means(result: HicoResult, split_names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A result on HICO-DET to unseen, seen and full means of each zero-shot split, as fractions.

    Raises:
        UserError: there is no such split.
    """
    return means_of_splits(result, {name: unseen(name) for name in split_names})


def means_of_splits(result: HicoResult, splits: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """The same of any splits.

    Args:
        result: On any vocabulary.
        splits: Name to the ids of unseen interactions.
    """
    means: dict[str, dict[str, Any]] = {}
    for name, ids in splits.items():
        is_unseen = np.isin(np.arange(len(result.ap)), ids)
        of_unseen, of_seen = result.unseen_seen(is_unseen)
        means[name] = {
            "unseen": of_unseen,
            "seen": of_seen,
            "full": result.full,
            "num_unseen": int((is_unseen & (result.num_positives > 0)).sum()),
            "num_unseen_instances": int(result.num_positives[is_unseen].sum()),
        }
    return means


def in_percent(means: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Means of `zero_shot_means` in percent, as in results.json; counts stay."""
    return {
        name: {
            key: round(100 * value, 4) if key in ("unseen", "seen", "full") and value is not None else value
            for key, value in found.items()
        }
        for name, found in means.items()
    }


def split_names(config: PipelineConfig) -> list[str]:
    """Splits that a config reports, and those that its students are trained in, in this order."""
    own = [student.zero_shot for student in config.students.values() if student.zero_shot is not None]
    return list(dict.fromkeys([*config.evaluation.zero_shot, *own]))


def check_zero_shot(config: PipelineConfig) -> None:
    """Nothing, where the data set has every zero-shot split that is named.

    Raises:
        UserError: otherwise.
    """
    for name in config.evaluation.zero_shot:
        check_name(config.dataset, name, "evaluation.zero_shot")
    for student, settings in config.students.items():
        if settings.zero_shot is not None:
            check_name(config.dataset, settings.zero_shot, f"students.{student}.zero_shot")


def splits_of_row(row: ResultRow, splits: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The splits that say something of a row: its own where it was trained in one, else all."""
    own = row.knobs.get("zero_shot")
    return {name: ids for name, ids in splits.items() if own in (None, name)}


def format_zero_shot(rows: Sequence[ResultRow], splits: Mapping[str, np.ndarray]) -> str:
    """Rows to one line a method and zero-shot split: means over its seeds, in percent.

    A method that learned from labels of unseen interactions is marked with a *: its unseen mean is no zero-shot result.
    """
    lines, is_marked = [f"{'':30}{'zero-shot split':18}{'unseen':>8}{'seen':>8}{'full':>8}"], False
    for name, seeds in rows_by_name(rows).items():
        knobs = seeds[0].knobs
        saw = knobs.get("supervision") == "labels" and knobs.get("zero_shot") is None
        is_marked |= saw
        own = splits_of_row(seeds[0], splits)
        found = [means_of_splits(row.result, own) for row in seeds]
        for split in own:
            cells = []
            for mean in ("unseen", "seen", "full"):
                values = [means[split][mean] for means in found if means[split][mean] is not None]
                cells.append(f"{100 * np.mean(values):.2f}" if values else "–")
            lines.append(f"{name + ' *' * saw:30}{split:18}{cells[0]:>8}{cells[1]:>8}{cells[2]:>8}")
    return "\n".join([*lines, *(["* trained with labels of unseen interactions, too"] if is_marked else [])])
