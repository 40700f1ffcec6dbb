"""HICO-DET's closed sets: 600 interactions of 80 objects and 117 verbs, how often each is annotated, zero-shot splits.

Names and counts lie in two files, so that a run without annotations reads names alone.

Letters: K = 600 interactions.

Source: the data set (Chao et al., WACV 2018) and, for the zero-shot ids, GEN-VLKT (Liao et al., CVPR 2022).
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from hoi.errors import UserError
from hoi.vocabulary import Vocabulary

DATA = Path(__file__).parent / "data"
RARE_BELOW = 10
"""An interaction with fewer training pairs is rare."""

UNSEEN_SHA256 = {
    "rare_first": "7b080cf9965bd0ec5ebc768c5ebfdc496acc74866014866dfacf640820cfdac8",
    "non_rare_first": "6076d4003a3f66eb7548e1bdda14f1755f5b3fab687317940d733cf73b56ddbb",
    "unseen_object": "ffe1f6bc597723eeab4028a7cdd8eda250e2a55e52f8694f684ecc21a54de9eb",
    "unseen_verb": "2ff5e95dbd6e8cf7af295ec97996bb06dcbc5652303b7167b6f6aaf6e97eaac9",
    "uc0": "e07e438ab47d19d31fde989e3e9af75fe984342664fb9fe43e63a947d3175959",
    "uc1": "5cce7d5bd0b8ce47e92bf1e054736e8c8b517c3fd7f70d0816021488d47fb01d",
    "uc2": "ee93da3d026fe0c734786ad6af8605105b294a3174017ef1479f83605e9918da",
    "uc3": "dfff6b13b481930258034851b5494ad5c86f2197a9e75835aa145e970d4c28eb",
    "uc4": "25e03350a57f0ab84ed88372b0a0960cc134c6c3ba3c7b4425e9c6b27cea0d45",
}
"""Zero-shot split → SHA-256 of its unseen ids, ascending, in decimal, joined by commas."""


@lru_cache(maxsize=1)
def hicodet_vocabulary() -> Vocabulary:
    """The 600 interactions in official order; 80 objects in HICO's alphabetical order, spelt as COCO does."""
    names = _read("hicodet_classes.json")
    return Vocabulary(
        tuple(names["objects"]),
        tuple(names["verbs"]),
        tuple((verb, object_name) for verb, object_name in names["interactions"]),
    )


def train_counts() -> np.ndarray:
    """int64 [K]: annotated pairs of each interaction in the training split; they sum to 117,871."""
    return np.array(_read("hicodet_label_facts.json")["train_instances"], np.int64)


def test_counts() -> np.ndarray:
    """int64 [K]: annotated pairs of each interaction in the test split; they sum to 33,405."""
    return np.array(_read("hicodet_label_facts.json")["test_instances"], np.int64)


def rare() -> np.ndarray:
    """bool [K]: the official 138 rare interactions, those with fewer than 10 training pairs."""
    return train_counts() < RARE_BELOW


def unseen(split_name: str) -> np.ndarray:
    """A zero-shot split to the ids of its unseen interactions, int64, ascending.

    Args:
        split_name: A key of `UNSEEN_SHA256`: `rare_first` (RF-UC), `non_rare_first` (NF-UC), `unseen_object` (UO),
            `unseen_verb` (UV), `uc0` to `uc4` (UC).

    Raises:
        UserError: there is no such split, or the list is not the published one.
    """
    if split_name not in UNSEEN_SHA256:
        raise UserError(
            f"there is no zero-shot split '{split_name}'",
            expected=", ".join(UNSEEN_SHA256),
            got=split_name,
        )
    ids = _read("hicodet_label_facts.json")["unseen"][split_name]
    digest = hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()
    if digest != UNSEEN_SHA256[split_name]:
        raise UserError(
            f"the list of zero-shot split '{split_name}' was changed",
            where=DATA / "hicodet_label_facts.json",
            expected=f"SHA-256 {UNSEEN_SHA256[split_name]}",
            got=digest,
            fix="install the package again",
        )
    return np.array(ids, np.int64)


@lru_cache(maxsize=2)
def _read(name: str) -> Any:
    return json.loads((DATA / name).read_text(encoding="utf-8"))
