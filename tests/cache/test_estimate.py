"""What a cache will take, and what it holds: bytes follow from the schema, minutes from the journal."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hoi.cache.build.run import build_cache
from hoi.cache.read.split import CacheSplit
from hoi.cache.tools.describe import export, info
from hoi.cache.tools.estimate import axes_of, bytes_per_image, journal_seconds, pair_cap, plan
from hoi.teachers import build_teacher
from tests.fakes.extractors import AXES, RandomSignals, random_signals
from tests.fakes.models import TOWERS, write_clip
from tests.fakes.pipelines import built_photos, photo_pipeline, refused


def test_bytes_of_an_image_are_those_of_its_tables() -> None:
    record = random_signals("x" * 32, num_detections=4, num_pairs=7)
    arrays = [value for name, value in vars(record).items() if isinstance(value, np.ndarray)]
    detections = 4 * (4 * 4 + 4 + 4)
    # Status, reason and two offsets; the index holds id, size, status and offsets once more.
    bookkeeping = (32 + 1 + 1 + 16) + (32 + 8 + 1 + 16)
    assert bytes_per_image(AXES, 4, 7) == sum(a.nbytes for a in arrays) + detections + bookkeeping


@pytest.mark.parametrize("kind", ["resnet", "vit", "timm_convolution"])
def test_axes_are_known_without_weights(tmp_path: Path, kind: str) -> None:
    changes = {"model": write_clip(tmp_path / kind, kind), "regions": ["map", "crop"], "spatial_map": True}
    config = photo_pipeline(tmp_path, teacher=changes)
    axes = axes_of(config)
    teacher = build_teacher(config.teacher, "cpu")
    assert (axes["K"], axes["D"], axes["M"]) == (3, 16, 1)
    assert axes["L"] == len(teacher.levels) + 1
    if kind == "timm_convolution":
        assert "C" not in axes
        assert "spatial maps are not counted" in str(plan(config))
    else:
        side = TOWERS[kind]["image_size"]
        maps = teacher.encode_images(torch.zeros(1, 3, side, side, dtype=torch.uint8)).maps
        assert [axes[letter] for letter in "CHW"] == list(maps[-1].shape[1:])


@pytest.mark.parametrize(("humans", "objects", "detections"), [(15, 15, 100), (3, 2, 100), (4, 9, 6), (1, 1, 1)])
def test_the_pair_cap_is_the_most_that_the_policy_gives(
    tmp_path: Path, humans: int, objects: int, detections: int
) -> None:
    config = photo_pipeline(
        tmp_path, pairs={"max_humans": humans, "max_objects": objects}, detector={"max_detections": detections}
    )
    counts = [(h, min(objects, detections - h)) for h in range(min(humans, detections) + 1)]
    assert pair_cap(config) == max(h * (h + o - 1) for h, o in counts)


def test_a_plan_says_what_is_missing_and_writes_nothing(tmp_path: Path) -> None:
    config = photo_pipeline(tmp_path, teacher={"model": write_clip(tmp_path / "clip")})
    before = sorted(tmp_path.rglob("*"))
    text = str(plan(config))
    assert "test: 5 images, 3 shards: 0 finished, 3 missing" in text
    assert "20.0 detections, 15.0 pairs; assumed" in text
    assert "time: unknown" in text
    assert sorted(tmp_path.rglob("*")) == before


def test_a_plan_measures_what_is_finished(tmp_path: Path) -> None:
    config, folder = built_photos(tmp_path)
    assert "test: 5 images, 3 shards: 3 finished" in str(plan(config))
    assert "nothing missing" in str(plan(config))
    (folder / "shard-00002.h5").unlink()
    report = plan(config)
    [split] = report.splits
    sizes = [(folder / f"shard-0000{i}.h5").stat().st_size for i in (0, 1)]
    assert (split.num_finished, split.num_missing_images, split.bytes_finished) == (2, 1, sum(sizes))
    assert (report.density.pairs, report.density.detections) == (8 / 4, 11 / 4)
    assert sum(sizes) / 4 < split.bytes_missing < 3 * sum(sizes) / 4
    lines = [{"task": f"test/shard-0000{i}.h5", "seconds": seconds} for i, seconds in enumerate((2.0, 6.0, 2.0))]
    text = "\n".join(json.dumps(line) for line in [{"task": "test/bank", "seconds": 50.0}, *lines])
    (folder / "journal.jsonl").write_text(text + '\n{"cut sho')
    # Shards of 2, 2 and 1 images: 1, 3 and 2 seconds for each.
    assert journal_seconds([folder]) == 2.0
    assert "time: about 0.0 minutes with 1 worker" in str(plan(config))
    assert plan(config).splits[0].worker_seconds == 2.0


def test_an_unreadable_image_is_told_by_info_and_export(tmp_path: Path) -> None:
    config, folder = photo_pipeline(tmp_path), tmp_path / "cache" / "test"
    (tmp_path / "images" / "02.png").write_bytes(b"no image")
    build_cache(config, RandomSignals)
    text = info(config)
    for line in (
        "test: complete",
        "5 of 5 images (1 unreadable)",
        "unreadable: 02.png: the file is no image",
        "teacher.precision: fp32",
        "random 1",
    ):
        assert line in text
    plain = export(config, "02.png", top=3).plain
    assert (plain["is_readable"], plain["reason"]) == (False, "the file is no image, or of a format that is not read")
    assert export(config, "01.png", top=3).plain["pairs"] == []
    (folder / "manifest.json").unlink()
    (folder / "shard-00000.h5").unlink()
    assert "test: not complete: 2 of 3 shards" in info(config)


def test_detections_pairs_and_scores_are_those_of_the_cache(tmp_path: Path) -> None:
    config, folder = built_photos(tmp_path)
    split = CacheSplit.open(folder.parent, "test")
    plain = json.loads(json.dumps(export(config, "03.png", top=2).plain))
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
        assert pair["object_name"] == object_name
        admitted = [k for k, (_, name) in enumerate(split.vocabulary.interactions) if name == object_name]
        best = sorted(admitted, key=lambda k: -score[k])[:2]
        assert [i["interaction"] for i in pair["interactions"]] == [split.vocabulary.names[k] for k in best]
        np.testing.assert_allclose([i["cosine"] for i in pair["interactions"]], cosine[best], atol=6e-5)
        np.testing.assert_allclose([i["score"] for i in pair["interactions"]], score[best], atol=6e-7)
    assert len(plain["interactions"]) == 2
    every = export(config, "03.png", top=3).plain["interactions"]
    assert sum(i["score"] for i in every) == pytest.approx(1)


def test_an_unknown_image_is_answered_with_the_nearest(tmp_path: Path) -> None:
    assert refused(export, photo_pipeline(tmp_path), "03.png").what == "there is no teacher cache"
    error = refused(export, built_photos(tmp_path)[0], "3.png")
    assert (error.what, error.got) == ("the cache has no such image", "3.png")
    assert "the nearest: 03.png" in str(error.expected)
