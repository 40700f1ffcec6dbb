"""Zero-shot splits: which interactions each hides, and labels without them; docs/zero-shot.md.

HICO-DET has its published lists. Elsewhere the four splits follow from the vocabulary and the training labels.

Shapes: K interactions, R annotated rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from hoi.config import DatasetSettings, PipelineConfig
from hoi.datasets import dataset_of
from hoi.errors import UserError, nearest
from hoi.records import HoiLabels
from hoi.vocabulary import Vocabulary

SplitName = Literal["rare_first", "non_rare_first", "unseen_object", "unseen_verb"]
SPLIT_NAMES: tuple[SplitName, ...] = get_args(SplitName)
UNSEEN_SHARE = 0.2
OBJECT_SHARE = 12 / 80
VERB_SHARE = 20 / 117


def check_name(config: DatasetSettings, name: str, where: str) -> None:
    """Raise if the dataset has no such split."""
    known = dataset_of(config).zero_shot_splits or SPLIT_NAMES
    if name not in known:
        what, expected = f"there is no zero-shot split '{name}' of {config.name}", nearest(name, known)
        raise UserError(what, where=where, expected=expected, got=name)


def unseen_ids(
    config: DatasetSettings, vocabulary: Vocabulary, name: str, train_interactions: Callable[[], np.ndarray]
) -> np.ndarray:
    """Return what a split hides: int64, ascending rows of the vocabulary's interactions.

    `train_interactions` gives the interaction of every label of the whole training split, for splits that count. Raises
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
    """Hide a fifth of the interactions, lowest counts (int64 [K]) first, but never the last of a verb or object."""
    verbs, objects = np.bincount(vocabulary.verb_of), np.bincount(vocabulary.object_of)
    hidden: list[int] = []
    for k in np.lexsort((np.arange(len(counts)), counts)):
        if len(hidden) == round(UNSEEN_SHARE * len(vocabulary)):
            break
        verb, obj = vocabulary.verb_of[k], vocabulary.object_of[k]
        if verbs[verb] > 1 and objects[obj] > 1:
            hidden.append(int(k))
            verbs[verb], objects[obj] = verbs[verb] - 1, objects[obj] - 1
    return np.array(sorted(hidden), np.int64)


def _whole(
    group_of: np.ndarray, other_of: np.ndarray, names: tuple[str, ...], share: float, kept: np.ndarray
) -> np.ndarray:
    # Interactions of some groups (objects or verbs), in an order that their names decide, but of none in `kept`.
    shuffled = sorted(np.unique(group_of), key=lambda row: hashlib.sha256(names[row].encode()).hexdigest())
    groups = [group for group in shuffled if group not in kept]
    is_hidden = np.zeros(len(group_of), bool)
    num_left = max(1, round(share * len(groups)))
    for group in groups:
        with_it = is_hidden | (group_of == group)
        if num_left and set(other_of[~with_it]) == set(other_of):
            is_hidden, num_left = with_it, num_left - 1
    return np.flatnonzero(is_hidden)


@dataclass(frozen=True)
class Dropped:
    """What `drop_unseen` removed."""

    num_pairs: int  # human-object pairs with an unseen interaction, dropped whole
    num_unseen: int  # annotated rows of unseen interactions
    num_seen: int  # annotated rows of seen interactions on dropped pairs
    num_images_emptied: int  # images that held a pair and hold none now
    num_left: int  # annotated rows that are left


def drop_unseen(labels: HoiLabels, unseen_ids: np.ndarray) -> tuple[HoiLabels, Dropped]:
    """Remove the pairs that have an unseen interaction from training labels.

    A pair is an image and its two boxes; all its labels go, the seen ones with the unseen ones, so that not even its
    being there tells of what is hidden.
    """
    is_unseen = np.isin(labels.interaction, unseen_ids)
    rows = np.column_stack([labels.image, labels.boxes_h, labels.boxes_o]).astype(np.float64)
    _, pair = np.unique(rows, axis=0, return_inverse=True)
    pair = pair.reshape(-1)
    hidden = np.zeros(len(rows), bool)
    hidden[pair[is_unseen]] = True
    goes = hidden[pair]
    kept = HoiLabels(labels.image[~goes], labels.boxes_h[~goes], labels.boxes_o[~goes], labels.interaction[~goes])
    dropped = Dropped(
        num_pairs=int(hidden.sum()),
        num_unseen=int(is_unseen.sum()),
        num_seen=int((goes & ~is_unseen).sum()),
        num_images_emptied=len(np.unique(labels.image)) - len(np.unique(kept.image)),
        num_left=len(kept),
    )
    return kept, dropped


def hide(
    name: str, unseen_ids: np.ndarray, splits: tuple[HoiLabels, HoiLabels]
) -> tuple[tuple[HoiLabels, HoiLabels], dict[str, Any]]:
    """Drop what a split hides from the labels that train and those that choose; also return the run's record of it.

    Raises UserError: nothing is left of one of them.
    """
    (train, of_train), (tune, of_tune) = (drop_unseen(labels, unseen_ids) for labels in splits)
    for labels, which in ((train, "training"), (tune, "tuning")):
        if not len(labels):
            what = f"the zero-shot split leaves no label to {'learn from' if which == 'training' else 'choose by'}"
            expected = "at least one label of a seen interaction"
            raise UserError(what, where=f"zero_shot: {name}, {which} split", expected=expected)
    record = {"split": name, "unseen": unseen_ids.tolist(), "dropped": asdict(of_train), "of_tuning": asdict(of_tune)}
    return (train, tune), record


def split_names(config: PipelineConfig) -> list[str]:
    """Return the splits that a config reports, and those that its students are trained in, in this order."""
    trained = [student.zero_shot for student in config.students.values() if student.zero_shot is not None]
    return list(dict.fromkeys([*config.evaluation.zero_shot, *trained]))


def check_zero_shot(config: PipelineConfig) -> None:
    """Raise if the dataset lacks a zero-shot split that the config names."""
    for name in config.evaluation.zero_shot:
        check_name(config.dataset, name, "evaluation.zero_shot")
    for student, settings in config.students.items():
        if settings.zero_shot is not None:
            check_name(config.dataset, settings.zero_shot, f"students.{student}.zero_shot")
