"""Scoring a cache again gives what a fresh build would, without a look at an image; what it cannot give, it refuses."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from hoi.cache.build.run import build_cache
from hoi.cache.build.worker import release
from hoi.cache.read.split import CacheSplit, open_split
from hoi.cache.tools.rescore import Texts, new_parts, rescore
from hoi.cache.tools.verify import verify_split
from hoi.config import PipelineConfig, parse_config
from hoi.datasets.world import WorldImages
from hoi.records import TextBank
from hoi.vocabulary import Vocabulary
from hoi.world import INTERACTIONS
from tests.fakes.pipelines import WEIGHTS, flip, refused

NUM_IMAGES = 6
FEW = sorted({o for _, o in INTERACTIONS})[:6]
"""Objects of the vocabulary that the tests begin with."""
SAME_OBJECTS = [{"verb": verb, "object": name} for name in reversed(FEW) for verb in ("carry", "look_at")]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes of the world as a folder of photographs, which may have any vocabulary."""
    folder = tmp_path_factory.mktemp("photos")
    dataset = {"name": "world", "splits": {"test": NUM_IMAGES}}
    scenes = WorldImages(world(folder, dataset=dataset).dataset, "test")
    (folder / "images").mkdir()
    for row in range(NUM_IMAGES):
        Image.fromarray(scenes.read(row)).save(folder / "images" / f"{row}.png")
    write_vocabulary(folder / "old.yaml", [{"verb": v, "object": o} for v, o in INTERACTIONS if o in FEW])
    return folder


@pytest.fixture(scope="module")
def old(photos: Path) -> Iterator[PipelineConfig]:
    """The cache that is scored again, built with the world's own models."""
    config = world(photos)
    build_cache(config)
    yield config
    release()


def write_vocabulary(path: Path, entries: list[dict[str, str]]) -> str:
    path.write_text(yaml.safe_dump(entries))
    return str(path)


def world(folder: Path, vocabulary: str | None = None, **sections: Any) -> PipelineConfig:
    images = {"images": str(folder / "images"), "splits": {"test": 1.0}}
    plain: dict[str, Any] = {
        "name": "rescored",
        "output": str(folder / "outputs"),
        "dataset": {"name": "folder", "vocabulary": vocabulary or str(folder / "old.yaml"), **images},
        "detector": {"name": "world"},
        "teacher": {"model": f"local-dir:{WEIGHTS / 'clip'}", "batch_size": 16},
        "cache": {"folder": str(folder / "cache"), "scheduler": "synchronous", "device": "cpu", "images_per_shard": 4},
        "students": {"student": {}},
    }
    for name, section in sections.items():
        plain[name] = section if name == "dataset" else {**plain.get(name, {}), **section}
    return parse_config(plain, "rescored pipeline")


def hashes(folder: Path) -> dict[str, str]:
    files = [*folder.rglob("*.h5"), *folder.rglob("shard-*.json")]
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def blinded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading or encoding an image is an error from now on."""

    def refuse(*_: object) -> None:
        raise AssertionError("rescoring touched an image")

    monkeypatch.setattr("hoi.datasets.images.read_image", refuse)
    for name in ("encode_crops", "encode_images"):
        monkeypatch.setattr(f"hoi.teachers.open_clip_teacher.OpenClipTeacher.{name}", refuse)


@pytest.mark.parametrize(
    "changes",
    [
        lambda folder: {"teacher": {"prompts": ["{verb_ing} {a_object}", "a photo of a person {verb_ing} {object}s"]}},
        lambda folder: {"vocabulary": write_vocabulary(folder / "same.yaml", SAME_OBJECTS)},
    ],
    ids=["a prompt ensemble", "other verbs on the same objects in another order"],
)
def test_a_rescored_cache_equals_a_fresh_build(
    old: PipelineConfig,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: Callable[[Path], dict[str, Any]],
) -> None:
    new = world(photos, **changes(tmp_path))
    fresh = world(photos, **changes(tmp_path), cache={"folder": str(tmp_path / "fresh")})
    build_cache(fresh)
    source = hashes(photos / "cache")
    with monkeypatch.context() as patch:
        blinded(patch)
        [report] = rescore(new, tmp_path / "to").splits
    assert hashes(tmp_path / "to") == hashes(tmp_path / "fresh")
    assert hashes(photos / "cache") == source
    assert verify_split(tmp_path / "to" / "test") == []
    accepted = world(photos, **changes(tmp_path), cache={"folder": str(tmp_path / "to")})
    assert open_split(accepted, "test").num_pairs == report.num_pairs > 0
    assert build_cache(accepted).splits[0].num_built == 0
    assert (report.dropped, report.fewer_pairs, report.full) == ((), 0, 0)


def test_dropped_objects_leave_with_their_boxes_and_pairs(old: PipelineConfig, photos: Path, tmp_path: Path) -> None:
    whole = CacheSplit.open(old.cache.folder, "test")
    kept = [FEW[label - 1] for label in np.unique(whole.labels[whole.pairs_ho[:, 1]]) if label > 0][1:]
    subset = write_vocabulary(tmp_path / "subset.yaml", [{"verb": "hold", "object": name} for name in kept])
    fresh = world(photos, subset, cache={"folder": str(tmp_path / "fresh")})
    build_cache(fresh)
    [report] = rescore(world(photos, subset), tmp_path / "to").splits
    assert report.dropped == tuple(name for name in whole.vocabulary.objects if name not in (*kept, "person"))
    assert report.fewer_pairs == 0
    again, built = (CacheSplit.open(tmp_path / name, "test") for name in ("to", "fresh"))
    assert again.fingerprint == built.fingerprint
    assert 0 < again.num_pairs < whole.num_pairs
    for name in ("boxes_xyxy", "scores", "labels", "pairs_ho", "detection_offsets", "pair_offsets"):
        np.testing.assert_array_equal(getattr(again, name), getattr(built, name), name)
    # Crops have other neighbours in their batches, which moves last bits.
    for name in ("union_embedding", "union_similarity", "detection_feature", "union_feature", "image_similarity"):
        np.testing.assert_allclose(again.table(name), built.table(name), atol=2e-3, err_msg=name)


@pytest.mark.slow
def test_pairs_that_a_fresh_build_would_have_besides_are_counted(photos: Path, tmp_path: Path) -> None:
    tight: dict[str, Any] = {
        "pairs": {"max_humans": 1, "max_objects": 1, "min_score": 0.05},
        "cache": {"folder": str(tmp_path / "tight")},
    }
    build_cache(world(photos, **tight))
    whole = CacheSplit.open(tmp_path / "tight", "test")
    best = whole.vocabulary.objects[int(np.bincount(whole.labels[whole.pairs_ho[:, 1]]).argmax())]
    subset = write_vocabulary(tmp_path / "v.yaml", [{"verb": "hold", "object": name} for name in FEW if name != best])
    [report] = rescore(world(photos, subset, **tight), tmp_path / "to").splits
    build_cache(world(photos, subset, pairs=tight["pairs"], cache={"folder": str(tmp_path / "fresh")}))
    again, fresh = (CacheSplit.open(tmp_path / name, "test") for name in ("to", "fresh"))
    lacking = np.diff(again.pair_offsets) < np.diff(fresh.pair_offsets)
    assert report.fewer_pairs == lacking.sum() > 0
    assert f"{report.fewer_pairs} images lack pairs that a fresh build would have" in str(report)


def test_an_interrupted_rescore_goes_on_and_ends_the_same(
    old: PipelineConfig, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = world(photos, teacher={"prompts": ["{phrase}"]})
    rescore(new, tmp_path / "at once")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hoi.cache.build.run.SplitBuild.seal", killed)
        with pytest.raises(KeyboardInterrupt):
            rescore(new, tmp_path / "to")
    (tmp_path / "to" / "test" / "shard-00001.h5").unlink()
    [report] = rescore(new, tmp_path / "to").splits
    assert report.num_done == 1
    assert hashes(tmp_path / "to") == hashes(tmp_path / "at once")


@pytest.mark.slow
def test_a_measured_precision_stays_that_of_the_embeddings(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def auto(faster: str, **teacher: Any) -> PipelineConfig:
        monkeypatch.setattr("hoi.teachers.open_clip_teacher.OpenClipTeacher._fastest_precision", lambda _: faster)
        teacher["precision"] = "auto"
        return world(photos, teacher=teacher, cache={"folder": str(tmp_path / "auto")})

    build_cache(auto("fp32"))
    rescore(auto("bf16", prompts=["{phrase}"]), tmp_path / "to")
    assert CacheSplit.open(tmp_path / "to", "test").manifest.bank.parts["teacher"]["precision"] == "fp32"


def test_what_needs_images_or_other_weights_is_refused_by_name(
    old: PipelineConfig, photos: Path, tmp_path: Path
) -> None:
    unknown = write_vocabulary(tmp_path / "v.yaml", [{"verb": "ride", "object": "unicorn"}])
    error = refused(rescore, world(photos, unknown), tmp_path / "to")
    assert (error.what[:40], error.got) == ("this cache was made without 1 of the voc", "unicorn")
    error = refused(rescore, world(photos, teacher={"crop": {"mode": "pad"}}), tmp_path / "to")
    assert error.what == "rescoring changes prompts and vocabulary alone"
    assert error.got == "teacher.crop.mode (cache: square, now: pad)"
    assert refused(rescore, old, Path(old.cache.folder)).what == "the new cache would overwrite the old one"
    assert not list(tmp_path.glob("to/*/*.h5"))


def test_weights_behind_the_same_name_are_told_by_their_hash(tmp_path: Path) -> None:
    vocabulary = Vocabulary(("person", "dog"), ("pet",), (("pet", "dog"),))
    bank = TextBank(np.eye(1, 4, dtype=np.float32), 1.0, None, (("x",),))
    cached = {"device": "cuda", "detector": 1, "teacher": {"weights_sha256": "a", "prompts": ["x"]}}
    same = Texts(vocabulary, bank, {"weights_sha256": "a", "prompts": ["y"]}, "cuda")
    parts = new_parts(tmp_path, cached, same)
    assert parts == {**cached, "vocabulary": vocabulary.digest(), "teacher": same.provenance}
    # Texts from another device are not to the bit what a fresh build would have, and say so.
    assert new_parts(tmp_path, cached, replace(same, device="cpu")) == {**parts, "text_device": "cpu"}
    other = replace(same, provenance={"weights_sha256": "b", "prompts": ["y"]})
    assert refused(new_parts, tmp_path, cached, other).got == "teacher.weights_sha256 (cache: a, now: b)"


def test_a_flipped_byte_of_the_old_cache_is_refused(old: PipelineConfig, photos: Path, tmp_path: Path) -> None:
    path = photos / "cache" / "test" / "shard-00000.h5"
    whole = path.read_bytes()
    flip(path)
    try:
        error = refused(rescore, world(photos, teacher={"prompts": ["{phrase}"]}), tmp_path / "to")
    finally:
        path.write_bytes(whole)
    assert (error.what, error.where) == ("a file differs from what its manifest says", path)
