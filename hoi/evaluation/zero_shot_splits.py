"""Zero-shot splits of any vocabulary, by the rules that HICO-DET's were made by; its own are the published lists.

    rare_first        RF-UC  a fifth of the interactions, the rarest in training first
    non_rare_first    NF-UC  a fifth, the most frequent first
    unseen_object     UO     every interaction of 12 in 80 objects
    unseen_verb       UV     every interaction of 20 in 117 verbs, never of no_interaction

In each, every verb and every object that is not hidden whole keeps an interaction that is seen. Ties, and which objects
and verbs are hidden, follow from the names alone: two people make the same splits.

Letters: K interactions.

Source: Hou et al., ECCV 2020 (UC), Bansal et al., AAAI 2020 (UO), Liao et al., CVPR 2022 (UV). The rule gives
HICO-DET's published NF-UC list exactly, and 118 of the 120 of RF-UC, where it breaks ties otherwise; UO and UV were
drawn by chance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Literal, get_args

import numpy as np

from hoi.config import DatasetConfig
from hoi.datasets.hicodet_classes import UNSEEN_SHA256, unseen
from hoi.errors import UserError, nearest
from hoi.vocabulary import Vocabulary

SplitName = Literal["rare_first", "non_rare_first", "unseen_object", "unseen_verb"]
SPLIT_NAMES: tuple[SplitName, ...] = get_args(SplitName)
UNSEEN_SHARE = 0.2
OBJECT_SHARE = 12 / 80
VERB_SHARE = 20 / 117


def names_of(config: DatasetConfig) -> tuple[str, ...]:
    """The splits that a data set has."""
    return tuple(UNSEEN_SHA256) if config.name == "hicodet" else SPLIT_NAMES


def check_name(config: DatasetConfig, name: str, where: str) -> None:
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
    config: DatasetConfig, vocabulary: Vocabulary, name: str, train_interactions: Callable[[], np.ndarray]
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
    if config.name == "hicodet":
        return unseen(name)
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
