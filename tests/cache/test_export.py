"""An image's records as people read them: names in place of rows, numbers that agree with the cache."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hoi.cache.build.run import build_cache
from hoi.cache.read.split import CacheSplit
from hoi.cache.tools.describe import export
from hoi.errors import UserError
from tests.fakes.extractors import RandomSignals
from tests.fakes.pipelines import photo_pipeline


def test_detections_pairs_and_scores_are_those_of_the_cache(tmp_path: Path) -> None:
    build_cache(photo_pipeline(tmp_path), RandomSignals)
    split = CacheSplit.open(tmp_path / "cache", "test")
    plain = json.loads(json.dumps(export(photo_pipeline(tmp_path), "03.png", top=2).plain))
    assert (plain["split"], plain["shard"], plain["row"]) == ("test", "shard-00001.h5", 1)
    assert plain["size_hw"] == [100, 120]
    detections = slice(*split.detection_offsets[3:5])
    assert [d["object"] for d in plain["detections"]] == [split.vocabulary.objects[k] for k in split.labels[detections]]
    np.testing.assert_allclose([d["box_xyxy"] for d in plain["detections"]], split.boxes_xyxy[detections], atol=0.006)
    pairs = slice(*split.pair_offsets[3:5])
    rows = split.pairs_ho[pairs] - split.detection_offsets[3]
    assert [[p["human"], p["object"]] for p in plain["pairs"]] == rows.tolist()
    cosines = split.table("union_similarity")[pairs][:, 0].astype(np.float64)
    exponents = np.exp(50.0 * (cosines - cosines.max(1, keepdims=True)))
    scores = exponents / exponents.sum(1, keepdims=True)
    for pair, cosine, score in zip(plain["pairs"], cosines, scores, strict=True):
        object_name = plain["detections"][pair["object"]]["object"]
        admitted = [
            k for k, (_, o) in enumerate(split.vocabulary.interactions) if o == object_name and o == pair["object_name"]
        ]
        best = sorted(admitted, key=lambda k: -score[k])[:2]
        assert [i["interaction"] for i in pair["interactions"]] == [split.vocabulary.names[k] for k in best]
        np.testing.assert_allclose([i["cosine"] for i in pair["interactions"]], cosine[best], atol=6e-5)
        np.testing.assert_allclose([i["score"] for i in pair["interactions"]], score[best], atol=6e-7)
    assert len(plain["interactions"]) == 2
    assert sum(
        i["score"] for i in export(photo_pipeline(tmp_path), "03.png", top=3).plain["interactions"]
    ) == pytest.approx(1)


def test_an_unreadable_image_says_why(tmp_path: Path) -> None:
    config = photo_pipeline(tmp_path)
    (tmp_path / "images" / "02.png").write_bytes(b"no image")
    build_cache(config, RandomSignals)
    plain = export(photo_pipeline(tmp_path), "02.png", top=3).plain
    assert (plain["is_readable"], plain["reason"]) == (False, "the file is no image, or of a format that is not read")
    assert export(photo_pipeline(tmp_path), "01.png", top=3).plain["pairs"] == []


def test_an_unknown_image_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no teacher cache"):
        export(photo_pipeline(tmp_path), "03.png", top=3)
    build_cache(photo_pipeline(tmp_path), RandomSignals)
    with pytest.raises(UserError, match=r"no such image .* the nearest: 03.png.* got: 3.png"):
        export(photo_pipeline(tmp_path), "3.png", top=3)
