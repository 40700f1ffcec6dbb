"""How a split is cut into shards, and what makes it another cache: content, not paths, workers or shard sizes."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import hoi.cache.plan
from hoi.cache.build.run import build_cache
from hoi.cache.build.worker import OwnModel, hold, release
from hoi.cache.plan import (
    doubled_id,
    fingerprint_parts,
    hash_of_ids,
    plan_split,
    refuse_other_settings,
    request_parts,
    settings_parts,
    splits_of,
)
from hoi.cache.read.split import open_split
from hoi.config import PipelineConfig
from hoi.files import json_sha256
from hoi.provenance import differing_keys
from tests.fakes.extractors import RandomSignals
from tests.fakes.pipelines import WEIGHTS, flip, photo_pipeline, refused


def test_five_images_at_two_a_shard_are_three_shards(tmp_path: Path) -> None:
    plan = plan_split(photo_pipeline(tmp_path), "test")
    assert [(s.name, s.start, s.stop) for s in plan.shards] == [
        ("shard-00000.h5", 0, 2),
        ("shard-00001.h5", 2, 4),
        ("shard-00002.h5", 4, 5),
    ]
    assert plan.num_images == 5
    assert plan.shards[1].image_ids_sha256 == hash_of_ids(["02.png", "03.png"])
    assert plan.folder == tmp_path / "cache" / "test"


def test_ids_are_hashed_apart() -> None:
    assert len({hash_of_ids(ids) for ids in (["ab", "c"], ["a", "bc"], ["abc"], ["c", "ab"], [])}) == 5


def test_ids_are_hashed_in_chunks_as_if_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [f"bär-{row}" for row in range(7)]
    expected = hashlib.sha256("".join(image_id + "\0" for image_id in ids).encode()).hexdigest()
    for at_once in (1, 3, 7, 100):
        monkeypatch.setattr(hoi.cache.plan, "IDS_AT_ONCE", at_once)
        assert hash_of_ids(ids) == expected


class Colliding(str):
    """An id whose hash says nothing."""

    __slots__ = ()

    def __hash__(self) -> int:
        return 7


def test_equal_hashes_alone_make_no_doubled_id() -> None:
    assert doubled_id([Colliding("a"), Colliding("b"), "c"]) is None
    assert doubled_id([Colliding("a"), Colliding("b"), Colliding("b"), "c"]) == "b"
    assert doubled_id(["a"]) is None
    assert doubled_id(["a", "b", "b", "c", "c", "c", "d"]) == "c"


def test_an_empty_data_set_is_refused(tmp_path: Path) -> None:
    error = refused(build_cache, photo_pipeline(tmp_path, num_pairs=()), RandomSignals)
    assert error.what.endswith("is empty")
    assert not (tmp_path / "cache").exists()


def test_an_image_id_that_stands_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Twice:
        image_ids = ("a", "b", "a")

    monkeypatch.setattr("hoi.cache.plan.open_images", lambda *_: Twice())
    error = refused(plan_split, photo_pipeline(tmp_path), "test")
    assert (error.what, error.got) == ("an image id stands twice", "a")


def test_a_split_with_no_share_is_not_wanted(tmp_path: Path) -> None:
    assert splits_of(photo_pipeline(tmp_path, dataset={"splits": {"train": 0.0, "test": 1.0}})) == ["test"]


def with_weights(folder: Path, content: bytes, **sections: Any) -> PipelineConfig:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model").mkdir(exist_ok=True)
    (folder / "detector.pth").write_bytes(content)
    (folder / "model" / "weights.safetensors").write_bytes(content)
    sections.setdefault("detector", {})["weights"] = str(folder / "detector.pth")
    sections.setdefault("teacher", {})["model"] = f"local-dir:{folder / 'model'}"
    return photo_pipeline(folder, **sections)


def test_a_detectron2_config_includes_its_base_configs(tmp_path: Path) -> None:
    def asked() -> Any:
        config = {"name": "detectron2", "config_file": str(tmp_path / "zoo" / "own.yaml"), "weights": "random"}
        return request_parts(photo_pipeline(tmp_path / "photos", detector=config))["detector"]["config_file"]

    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "own.yaml").write_text('_BASE_: "../base.yaml"  # of the zoo\nMODEL:\n  MASK_ON: False\n')
    (tmp_path / "base.yaml").write_text("_BASE_: zoo/own.yaml\nINPUT:\n  MIN_SIZE_TEST: 800\n")
    before = asked()
    assert asked() == before
    (tmp_path / "base.yaml").write_text("INPUT:\n  MIN_SIZE_TEST: 640\n")
    assert asked() != before


def test_a_moved_file_asks_for_the_same_cache_a_changed_one_not(tmp_path: Path) -> None:
    before = request_parts(with_weights(tmp_path / "a", b"1"))
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert request_parts(with_weights(tmp_path / "b", b"1")) == before
    assert str(tmp_path) not in str(before)
    differences = differing_keys(before, request_parts(with_weights(tmp_path / "b", b"2")))
    assert [text.split(" (")[0] for text in differences] == ["detector.weights", "teacher.model"]


def test_what_changes_no_content_is_not_asked_for(tmp_path: Path) -> None:
    work = {"workers": 7, "images_per_shard": 1, "scheduler": "local", "max_failed_share": 0.5}
    assert request_parts(photo_pipeline(tmp_path, cache=work)) == request_parts(photo_pipeline(tmp_path))


@pytest.mark.parametrize(
    ("section", "change", "key"),
    [
        ("cache", {"threads": 2}, "num_threads (cache: 1, now: 2)"),
        ("pairs", {"min_score": 0.3}, "pairs.min_score (cache: 0.2, now: 0.3)"),
        ("detector", {"nms_iou": 0.6}, "detector.nms_iou (cache: 0.5, now: 0.6)"),
        ("teacher", {"crop": {"mode": "pad"}}, "teacher.crop.mode (cache: square, now: pad)"),
        ("teacher", {"prompts": ["{phrase}"]}, "teacher.prompts"),
        ("dataset", {"max_image_pixels": 10}, "dataset.max_image_pixels (cache: 100000000, now: 10)"),
    ],
)
def test_what_changes_content_is_named(tmp_path: Path, section: str, change: dict[str, Any], key: str) -> None:
    plain = photo_pipeline(tmp_path).model_dump(mode="json")
    plain[section] = {**plain[section], **change}
    now = PipelineConfig.model_validate_json(json.dumps(plain))
    [difference] = differing_keys(request_parts(photo_pipeline(tmp_path)), request_parts(now))
    assert difference.startswith(key)


def test_versions_are_left_out_of_the_fingerprint(tmp_path: Path) -> None:
    config = photo_pipeline(tmp_path)
    old, new = ({"teacher": {"weights": "x"}, "versions": {"torch": version}} for version in ("1", "2"))
    assert fingerprint_parts(config, "v", old) == fingerprint_parts(config, "v", new)
    assert json_sha256(fingerprint_parts(config, "v", old)) != json_sha256(fingerprint_parts(config, "w", old))


def test_a_refusal_names_keys_and_what_to_run() -> None:
    cached, now = {"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d": "x"}
    error = refused(refuse_other_settings, Path("F"), cached, now)
    assert (error.what, error.where) == ("this cache was made with other settings", Path("F"))
    assert error.got == "a.b (cache: 1, now: 3); a.c (cache: 2, now: absent); d (cache: absent, now: x)"
    assert str(error.fix).startswith("run with another cache.folder")
    refuse_other_settings(Path("F"), cached, cached)


def test_settings_are_compared_without_files_and_for_one_split(tmp_path: Path) -> None:
    here = photo_pipeline(tmp_path / "a").model_dump(mode="json")
    there = photo_pipeline(tmp_path / "b", cache={"workers": 3}).model_dump(mode="json")
    assert settings_parts(here, "test") == settings_parts(there, "test")
    there["dataset"]["splits"] = {"test": 0.5, "train": 0.5}
    assert differing_keys(settings_parts(here, "test"), settings_parts(there, "test")) == [
        "dataset.splits.test (cache: 1.0, now: 0.5)"
    ]


def test_training_notices_replaced_weights_but_not_missing_ones(tmp_path: Path) -> None:
    config = with_weights(tmp_path, b"1")
    build_cache(config, RandomSignals)
    open_split(config, "test", same_images=False)
    (tmp_path / "model" / "weights.safetensors").write_bytes(b"2")
    assert str(refused(open_split, config, "test", same_images=False).got).startswith(
        "teacher.model (cache: local-dir:"
    )
    shutil.rmtree(tmp_path / "model")
    (tmp_path / "detector.pth").unlink()
    open_split(config, "test", same_images=False)


def copied_weights(folder: Path) -> None:
    shutil.copytree(WEIGHTS / "clip", folder / "clip")
    shutil.copy(WEIGHTS / "detector.safetensors", folder)


@pytest.fixture(scope="module")
def world_models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A pipeline with copies of the world's own weights, to say it again with one thing changed."""
    folder = tmp_path_factory.mktemp("world")
    copied_weights(folder)

    def pipeline(**sections: Any) -> PipelineConfig:
        detector = {"name": "world", "weights": str(folder / "detector.safetensors"), **sections.pop("detector", {})}
        teacher = {"model": f"local-dir:{folder / 'clip'}", "pretrained": None, "batch_size": 8}
        plain = photo_pipeline(folder).model_dump(mode="json")
        plain |= {"detector": detector, "teacher": {**teacher, **sections.pop("teacher", {})}}
        plain |= {name: {**plain[name], **section} for name, section in sections.items()}
        return PipelineConfig.model_validate_json(json.dumps(plain))

    yield pipeline
    release()


def said_by_models(config: PipelineConfig) -> tuple[str, dict[str, Any]]:
    held = hold(config.model_dump_json(), OwnModel())
    return json_sha256(held.parts), held.parts


def test_the_models_say_every_setting_that_changes_content(world_models: Any) -> None:
    _, parts = said_by_models(world_models())
    changes = {
        "cache": {"threads": 2},
        "detector": {"max_detections": 9, "min_score": 0.1, "nms_iou": 0.6},
        "pairs": {"max_objects": 2, "min_score": 0.3},
        "teacher": {"batch_size": 9, "crop": {"margins": [1.0], "mode": "pad"}, "image_size_px": 128},
    }
    keys = [
        *("detector.max_detections", "detector.min_score", "detector.nms_iou"),
        *("num_threads", "pairs.max_objects", "pairs.min_score"),
        *("teacher.batch_size", "teacher.crop_margins", "teacher.crop_mode", "teacher.image_size_px"),
    ]
    others = {"teacher": {"precision": "bf16", "prompts": ["{phrase}"], "regions": ["map"], "spatial_map": True}}
    other_keys = ["levels", "precision", "prompts", "spatial_map", "tokens_sha256"]
    for sections, changed in ((changes, keys), (others, [f"teacher.{key}" for key in other_keys])):
        now = said_by_models(world_models(**sections))[1]
        assert [text.split(" (")[0] for text in differing_keys(parts, now)] == changed


def test_the_models_say_their_weights_and_vocabulary(world_models: Any, tmp_path: Path) -> None:
    base = world_models()
    _, parts = said_by_models(base)

    def differences(**sections: Any) -> list[str]:
        return [text.split(" (")[0] for text in differing_keys(parts, said_by_models(world_models(**sections))[1])]

    copied_weights(tmp_path)
    flip(tmp_path / "detector.safetensors")
    assert differences(detector={"weights": str(tmp_path / "detector.safetensors")}) == ["detector.weights_sha256"]
    flip(*(tmp_path / "clip").glob("*.safetensors"))
    assert differences(teacher={"model": f"local-dir:{tmp_path / 'clip'}"}) == ["teacher.weights_sha256"]
    (tmp_path / "vocabulary.yaml").write_text("[{verb: ride, object: bicycle}, {verb: pet, object: dog}]")
    assert differences(dataset={"vocabulary": str(tmp_path / "vocabulary.yaml")}) == ["vocabulary"]


def test_the_models_say_no_place_and_nothing_of_the_work(world_models: Any, tmp_path: Path) -> None:
    copied_weights(tmp_path)
    elsewhere = world_models(
        detector={"weights": str(tmp_path / "detector.safetensors")},
        teacher={"model": f"local-dir:{tmp_path / 'clip'}"},
        cache={"folder": str(tmp_path / "c"), "images_per_shard": 3, "workers": 5, "scheduler": "tcp://host:1"},
    )
    assert said_by_models(elsewhere) == said_by_models(world_models())
