"""The pipeline file: every wrong key is named in one line with the nearest right one, and nothing is guessed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from hoi.cache.plan import request_parts
from hoi.config import PipelineConfig, WorldDataset, load_config
from tests.fakes.pipelines import refused

ROOT = Path(__file__).parents[1]
GOOD = """
name: t
output: out
dataset: {name: world}
detector: {name: world}
teacher: {model: RN50-quickgelu, pretrained: random}
vlms: {coca: {backend: coca, model: m}}
cache: {folder: out/cache}
students: {student: {}}
"""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "pipeline.yaml"
    path.write_text(GOOD)
    return path


def test_the_shipped_pipeline_survives_a_round_trip() -> None:
    config = load_config(ROOT / "pipeline.yaml")
    assert isinstance(config.dataset, WorldDataset)
    assert config.students["student"].supervision == "teacher"
    assert PipelineConfig.model_validate_json(config.model_dump_json()) == config
    assert PipelineConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("edit", "what", "where"),
    [
        (("output: out\n", ""), "missing key", "key 'output'"),
        (("{name: world}\ndetector", "{name: world, seed: '3'}\ndetector"), "valid integer", "key 'dataset.seed'"),
        (("{name: world}\ndetector", "{seed: 3}\ndetector"), "missing key", "key 'dataset.name'"),
        (("name: t", "name: t\nname: u"), "duplicate key 'name'", "lines 2 and 3"),
        (("folder: out/cache", "folder: o, images_per_shard: 0"), "or equal to 1", "key 'cache.images_per_shard'"),
        (("detector: {name: world}", "detector: {name: yolo}"), "no detector of this name", "key 'detector.name'"),
        (("name: t", "name: [t"), "not valid YAML", "pipeline.yaml"),
        (("name: t", "? [a]\n: b\nname: t"), "a key is not a name", "line 2"),
        ((GOOD, "- a"), "no pipeline file", "pipeline.yaml"),
    ],
)
def test_a_wrong_value_is_named(good: Path, edit: tuple[str, str], what: str, where: str) -> None:
    assert edit[0] in GOOD
    good.write_text(GOOD.replace(*edit))
    error = refused(load_config, good)
    assert what in error.what
    assert where in str(error.where)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("nmae", "name"),
        ("trian.epochs", "train"),
        ("dataset.split", "splits"),
        ("detector.weight", "weights"),
        ("pairs.max_human", "max_humans"),
        ("teacher.batchsize", "batch_size"),
        ("teacher.crop.margin", "margins"),
        ("vlms.coca.captions", "caption"),
        ("cache.worker", "workers"),
        ("students.student.epoch", "epochs"),
        ("students.student.score.weight", "weights"),
        ("train.epoch", "epochs"),
        ("evaluation.bootstraps", "bootstrap"),
    ],
)
def test_a_wrong_key_gets_the_nearest_right_one(good: Path, key: str, nearest: str) -> None:
    error = refused(load_config, good, [f"{key}=1"])
    assert error.what == "unknown key"
    assert f"key '{key.removesuffix('.epochs')}'" in str(error.where)
    assert f"nearest: {nearest}" in str(error.expected)


@pytest.mark.parametrize(
    "override",
    [
        *(
            "name=2001-99-99",
            "name=!!int x",
            "name=!!timestamp x",
            "name=0x_",
            f"name={'9' * 5000}",
            "name=" + "[" * 3000,
        ),
        *("name=&a [*a]", "train.learning_rate=.inf", "train.learning_rate=1e31", "pairs.max_humans=99999999999"),
        *("cache.folder=''", "teacher.prompts=['{']", "dataset.seed=" + "1" + "0" * 23, "train.seeds=[4294967296]"),
        *("train.clip_gradient=.nan", "students.student.width=200000", "cache.threads=99999", "name=" + "x" * 20_000),
    ],
    ids=lambda text: text[:30],
)
def test_scalars_of_any_kind_and_size_are_refused_in_one_line(good: Path, override: str) -> None:
    assert len(str(refused(load_config, good, [override]))) < 2000


def test_overrides_are_typed_like_the_file_and_1e_4_is_a_number(good: Path) -> None:
    config = load_config(good, ["train.learning_rate=1e-4", "dataset.splits={train: 8}", "train.seeds=[7]"])
    assert config.train.learning_rate == 1e-4
    assert config.dataset.splits == {"train": 8}
    assert config.train.seeds == [7]
    assert "override is not understood" in refused(load_config, good, ["train.epochs"]).what
    assert "holds no section" in refused(load_config, good, ["name.first=1"]).what
    assert refused(load_config, good.with_name("nowhere.yaml")).what == "there is no such file"


def test_the_environment_fills_in_what_is_set(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "/data")
    assert load_config(good, ["output=${PLACE}/out"]).output == "/data/out"
    monkeypatch.delenv("PLACE")
    assert "PLACE is not set" in refused(load_config, good, ["output=${PLACE}/out"]).what


def test_a_tilde_is_the_home_folder(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = load_config(good, ["output=~/out", "cache.folder=~/c", "teacher.pretrained=local-dir:~/clip", "name=a~/b"])
    assert (config.output, config.cache.folder, config.name) == ("/home/me/out", "/home/me/c", "a~/b")
    assert config.teacher.pretrained == "local-dir:/home/me/clip"


def test_regions_have_one_order_and_no_doubles(good: Path) -> None:
    assert load_config(good, ["teacher.regions=[crop, map]"]).teacher.regions == ["map", "crop"]
    error = refused(load_config, good, ["teacher.regions=[crop, crop]"])
    assert "a region is there twice" in error.what
    assert "teacher.regions" in str(error.where)


def test_packaged_weights_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def parts(folder: Path) -> dict[str, Any]:
        monkeypatch.chdir(folder)
        return request_parts(load_config(ROOT / "pipeline.yaml"))

    here, elsewhere = parts(ROOT), parts(tmp_path)
    assert here == elsewhere
    assert elsewhere["teacher"]["model"].startswith("local-dir:")
    assert len(elsewhere["detector"]["weights"]) == len("sha256:") + 64
    assert os.listdir(tmp_path) == []
