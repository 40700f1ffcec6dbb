"""One task makes one shard, in this process too; what it must not mix, it refuses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hoi.cache.base_pass import FIELDS
from hoi.cache.build.run import build_cache
from hoi.cache.build.worker import ModelFactory, begin_pass, build_shard, release
from hoi.cache.manifest import Receipt, read_bank_receipt, read_receipt
from hoi.cache.plan import ShardPlan, finished_receipt, plan_split, receipt_from_file, request_parts
from hoi.cache.schema import BASE
from hoi.cache.shard import inspect_shard
from hoi.config import PipelineConfig
from hoi.files import convert
from hoi.records import ImageSignals
from tests.fakes.extractors import AXES, RandomSignals
from tests.fakes.pipelines import photo_pipeline, refused


@pytest.fixture(autouse=True)
def _no_models_left() -> Iterator[None]:
    yield
    release()


def begin(config: PipelineConfig, factory: ModelFactory = RandomSignals, split: str = "test") -> str:
    plan = plan_split(config, split)
    arguments = (str(plan.folder), plan.images_per_shard, plan.num_images, plan.image_ids_sha256)
    receipt = begin_pass(BASE, config.model_dump_json(), json.dumps(request_parts(config)), *arguments, factory)
    return str(receipt["fingerprint"])


def build(config: PipelineConfig, index: int, fingerprint: str = "", factory: ModelFactory = RandomSignals) -> Receipt:
    plan = plan_split(config, "test")
    arguments = (config.model_dump_json(), str(plan.folder), fingerprint, factory)
    return convert(build_shard(plan.shards[index], *arguments), Receipt)


def test_the_receipt_says_what_the_file_holds_and_is_small(tmp_path: Path) -> None:
    config = photo_pipeline(tmp_path)
    (tmp_path / "images" / "03.png").write_bytes(b"no image")
    receipt = build(config, 1)
    path = tmp_path / "cache" / "test" / "shard-00001.h5"
    assert receipt == read_receipt(path) == receipt_from_file(inspect_shard(path, FIELDS))
    assert receipt.failed == (("03.png", "the file is no image, or of a format that is not read"),)
    assert (receipt.num_images, receipt.num_pairs, receipt.num_detections) == (2, 1, 2)
    assert receipt.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(json.dumps(receipt.to_dict())) < 600


def test_arguments_and_results_are_plain(tmp_path: Path) -> None:
    config = photo_pipeline(tmp_path)
    begin(config)
    bank = read_bank_receipt(tmp_path / "cache" / "test")
    assert bank is not None
    assert bank.axes == AXES
    assert bank.request == request_parts(config)
    assert bank.made_with["versions"]["random"] == "1"
    assert "random" not in json.dumps(bank.parts["teacher"])


def test_images_with_too_many_boxes_are_counted_once_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hoi.cache.build.worker.take_cut", lambda: ["a.jpg"])
    build_cache(photo_pipeline(tmp_path), RandomSignals)
    assert capsys.readouterr().err.count("note: 1 images, the first of them 'a.jpg', have more than") == 1


def test_models_other_than_the_splits_are_refused_by_key(tmp_path: Path) -> None:
    fingerprint = begin(photo_pipeline(tmp_path))
    other = photo_pipeline(tmp_path, teacher={"precision": "bf16"})
    error = refused(build, other, 0, fingerprint)
    assert error.what.startswith("this worker has other models")
    assert error.got == "teacher.precision (cache: fp32, now: bf16)"
    assert not (tmp_path / "cache" / "test" / "shard-00000.h5").exists()


def test_images_that_changed_since_the_plan_are_refused(tmp_path: Path) -> None:
    config = photo_pipeline(tmp_path)
    other = ShardPlan("test", 0, 0, 2, "0" * 64)
    error = refused(build_shard, other, config.model_dump_json(), str(tmp_path / "cache" / "test"), "", RandomSignals)
    assert (error.what[:18], error.where) == ("the images changed", "split 'test', rows 0 to 2")


class Overflowing(RandomSignals):
    """Gives an infinity for one pair of the image 03.png."""

    def extract(self, image_ids: Sequence[str], images: Sequence[np.ndarray]) -> list[ImageSignals]:
        records = {record.image_id: record for record in super().extract(image_ids, images)}
        if "03.png" in records:
            records["03.png"].union_feature[1, 0, 2] = np.inf
        return list(records.values())


def test_nan_or_infinity_is_refused_with_its_image(tmp_path: Path) -> None:
    config = photo_pipeline(tmp_path)
    with pytest.raises(ValueError, match=r"union_feature of image 03.png is not finite"):
        build(config, 1, factory=Overflowing)
    assert not (tmp_path / "cache").exists()
    build(config, 0, factory=Overflowing)


class ByTheClock(RandomSignals):
    """Takes `auto` for whatever the test says was faster."""

    FASTER = "bf16"

    def provenance(self) -> dict[str, Any]:
        precision = self.FASTER if self.teacher["precision"] == "auto" else self.teacher["precision"]
        return {**super().provenance(), "teacher": {**self.teacher, "precision": precision}}


def test_a_measured_precision_is_kept_by_shards_and_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = {"train": 0.5, "test": 0.3, "more": 0.2}
    config = photo_pipeline(tmp_path, (1,) * 12, teacher={"precision": "auto"}, dataset={"splits": splits})
    fingerprint = begin(config, ByTheClock, "test")
    release()
    monkeypatch.setattr(ByTheClock, "FASTER", "fp32")
    assert build(config, 0, fingerprint, ByTheClock).fingerprint == fingerprint
    parts = inspect_shard(tmp_path / "cache" / "test" / "shard-00000.h5", FIELDS).attributes["fingerprint_parts"]
    assert parts["teacher"]["precision"] == "bf16"
    for split in ("train", "more"):
        release()
        begin(config, ByTheClock, split)
        bank = read_bank_receipt(tmp_path / "cache" / split)
        assert bank is not None
        assert bank.parts["teacher"]["precision"] == "bf16"


def test_a_finished_shard_is_known_and_a_foreign_one_refused(tmp_path: Path) -> None:
    config = photo_pipeline(tmp_path)
    fingerprint = begin(config)
    receipt = build(config, 0, fingerprint)
    plan = plan_split(config, "test")
    bank = read_bank_receipt(plan.folder)
    assert bank is not None
    finished = partial(finished_receipt, plan.folder, fingerprint=fingerprint, parts=bank.parts)
    assert finished(plan.shards[0]) == receipt
    assert finished(plan.shards[1]) is None
    path = plan.folder / "shard-00000.h5"
    path.with_suffix(".json").unlink()
    assert finished(plan.shards[0]) == receipt
    (plan.folder / "shard-00001.h5").write_bytes(path.read_bytes())
    error = refused(finished, plan.shards[1])
    assert error.what == "this shard holds other images than planned"
    assert ("from row 2" in str(error.expected), "from row 0" in str(error.got)) == (True, True)
    path.write_bytes(path.read_bytes()[:-1])
    assert finished(plan.shards[0]) is None
