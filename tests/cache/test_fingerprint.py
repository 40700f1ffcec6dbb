"""What changes content changes the fingerprint; paths, workers and shard sizes do not; differences are named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cache.fingerprint import (
    differing_keys,
    digest_of,
    refuse_other_settings,
    settings_parts,
)
from cache.request import fingerprint_parts, request_parts
from hoi.config import PipelineConfig
from hoi.errors import UserError
from tests.random_signals import photo_pipeline


def with_weights(folder: Path, content: bytes, **sections: Any) -> PipelineConfig:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model").mkdir(exist_ok=True)
    (folder / "detector.pth").write_bytes(content)
    (folder / "model" / "weights.safetensors").write_bytes(content)
    sections.setdefault("detector", {})["weights"] = str(folder / "detector.pth")
    sections.setdefault("teacher", {})["model"] = f"local-dir:{folder / 'model'}"
    return photo_pipeline(folder, **sections)


def test_a_moved_data_set_or_weight_file_asks_for_the_same_cache(tmp_path: Path) -> None:
    before = request_parts(with_weights(tmp_path / "a", b"1"))
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert request_parts(with_weights(tmp_path / "b", b"1")) == before
    assert str(tmp_path) not in str(before)


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("cache", {"workers": 7}),
        ("cache", {"images_per_shard": 1}),
        ("cache", {"scheduler": "local"}),
        ("cache", {"max_failed_share": 0.5}),
    ],
)
def test_what_changes_no_content_is_not_asked_for(tmp_path: Path, section: str, change: dict[str, Any]) -> None:
    assert request_parts(photo_pipeline(tmp_path, **{section: change})) == request_parts(photo_pipeline(tmp_path))


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


def test_changed_weights_are_named_for_files_and_folders(tmp_path: Path) -> None:
    before = request_parts(with_weights(tmp_path, b"1"))
    differences = differing_keys(before, request_parts(with_weights(tmp_path, b"2")))
    assert [text.split(" (")[0] for text in differences] == ["detector.weights", "teacher.model"]


def test_versions_are_left_out_of_the_fingerprint(tmp_path: Path) -> None:
    config = photo_pipeline(tmp_path)
    old, new = ({"teacher": {"weights": "x"}, "versions": {"torch": version}} for version in ("1", "2"))
    assert fingerprint_parts(config, "v", old) == fingerprint_parts(config, "v", new)
    assert digest_of(fingerprint_parts(config, "v", old)) != digest_of(fingerprint_parts(config, "w", old))


def test_a_refusal_names_keys_and_what_to_run() -> None:
    cached, now = {"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d": "x"}
    message = (
        r"this cache was made with other settings · where: F · got: a.b \(cache: 1, now: 3\); "
        r"a.c \(cache: 2, now: absent\); d \(cache: absent, now: x\) · next: run with another cache.folder"
    )
    with pytest.raises(UserError, match=message):
        refuse_other_settings(Path("F"), cached, now)
    refuse_other_settings(Path("F"), cached, cached)


def test_settings_are_compared_without_files_and_for_one_split(tmp_path: Path) -> None:
    here = photo_pipeline(tmp_path / "a").model_dump(mode="json")
    there = photo_pipeline(tmp_path / "b", cache={"workers": 3}).model_dump(mode="json")
    assert settings_parts(here, "test") == settings_parts(there, "test")
    there["dataset"]["splits"] = {"test": 0.5, "train": 0.5}
    assert differing_keys(settings_parts(here, "test"), settings_parts(there, "test")) == [
        "dataset.splits.test (cache: 1.0, now: 0.5)"
    ]
