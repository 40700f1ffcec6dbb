"""Three orders of COCO's 80 objects, joined by name: torchvision's 91 slots, the contiguous 80, HICO-DET's own."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_V2_Weights

from hoi.datasets.coco import COCO_OBJECTS
from hoi.datasets.hicodet import hicodet_vocabulary
from hoi.detectors import match_classes

SLOTS_OF_HICO = np.array(
    [
        [5, 53, 27, 52, 39, 40, 23, 65, 15, 2, 16, 9, 84, 44, 51, 56, 6, 61, 3, 57],
        [17, 77, 62, 85, 63, 21, 47, 67, 18, 60, 22, 11, 48, 34, 25, 89, 31, 19, 58, 76],
        [38, 49, 73, 78, 4, 74, 55, 79, 14, 1, 59, 64, 82, 75, 54, 87, 20, 81, 41, 35],
        [36, 50, 37, 13, 33, 42, 88, 43, 32, 80, 70, 90, 10, 7, 8, 72, 28, 86, 46, 24],
    ]
).ravel()
"""COCO category ids of HICO-DET's 80 objects, in its alphabetical order."""


def test_torchvisions_91_slots_meet_all_80_objects_of_hico() -> None:
    categories = FasterRCNN_ResNet50_FPN_V2_Weights.DEFAULT.meta["categories"]
    rows = match_classes(categories, hicodet_vocabulary(), "torchvision")
    assert rows.shape == (91,)
    np.testing.assert_array_equal(rows[SLOTS_OF_HICO], np.arange(80))
    assert (np.delete(rows, SLOTS_OF_HICO) == -1).all()


def test_the_contiguous_80_meet_all_80_objects_of_hico() -> None:
    rows = match_classes(COCO_OBJECTS, hicodet_vocabulary(), "detectron2")
    # The contiguous number of a category is how many categories have a smaller id.
    np.testing.assert_array_equal(rows[np.argsort(np.argsort(SLOTS_OF_HICO))], np.arange(80))
    underscored = [name.replace(" ", "_") for name in COCO_OBJECTS]
    np.testing.assert_array_equal(match_classes(underscored, hicodet_vocabulary(), "HICO's spelling"), rows)


@pytest.mark.skipif(importlib.util.find_spec("detectron2") is None, reason="detectron2 is not installed")
def test_detectron2_counts_in_cocos_order() -> None:
    from detectron2.data import MetadataCatalog

    assert tuple(MetadataCatalog.get("coco_2017_val").thing_classes) == COCO_OBJECTS


@pytest.mark.skipif("HOI_CHECK_DATA" not in os.environ, reason="HOI_CHECK_DATA names no folder of annotations")
def test_the_published_class_table_gives_the_same_map() -> None:
    table = json.loads((Path(os.environ["HOI_CHECK_DATA"]) / "annotations" / "hoi_classes.json").read_text())
    rows = match_classes(COCO_OBJECTS, hicodet_vocabulary(), "detectron2")
    assert {(entry["object_id_coco80"], entry["object_id_alpha80"]) for entry in table} == set(enumerate(rows.tolist()))
