"""The pipeline file: every wrong key is named in one line, and nothing is guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from hoi.config import WorldDataset, load_config
from hoi.errors import UserError

GOOD = """
name: t
output: out
dataset: {name: world}
detector: {name: world}
teacher: {model: RN50-quickgelu, pretrained: random}
cache: {folder: out/cache}
students: {student: {}}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "pipeline.yaml"
    path.write_text(text)
    return path


def test_the_shipped_pipeline_file_is_valid() -> None:
    config = load_config(Path(__file__).parents[1] / "pipeline.yaml")
    assert isinstance(config.dataset, WorldDataset)
    assert config.students["student"].supervision == "teacher"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (("name: t", "name: t\nnmae: x"), r"unknown key .*key 'nmae'"),
        (("output: out\n", ""), r"missing key .*key 'output'"),
        (
            ("{name: world}\ndetector", "{name: world, seed: '3'}\ndetector"),
            r"valid integer.*key 'dataset\.seed'.*got: '3'",
        ),
        (("students: {student: {}}", "students: {student: {epoch: 3}}"), r"unknown key.*'students\.student\.epoch'"),
        (("name: t", "name: t\nname: u"), r"duplicate key 'name' .*lines 2 and 3"),
        (
            ("folder: out/cache", "folder: out/cache, images_per_shard: 0"),
            r"greater than or equal to 1.*images_per_shard",
        ),
        (
            ("detector: {name: world}", "detector: {name: yolo}"),
            r"no detector of this name.*key 'detector\.name'.*nearest: world",
        ),
        (("name: t", "name: [t"), r"not valid YAML.*pipeline\.yaml"),
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, edit: tuple[str, str], message: str) -> None:
    assert edit[0] in GOOD
    with pytest.raises(UserError, match=message) as caught:
        load_config(write(tmp_path, GOOD.replace(*edit)))
    assert "\n" not in str(caught.value)


def test_overrides_are_typed_like_the_file_and_1e_4_is_a_number(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    config = load_config(path, ["train.learning_rate=1e-4", "dataset.splits={train: 8}", "train.seeds=[7]"])
    assert config.train.learning_rate == 1e-4
    assert config.dataset.splits == {"train": 8}
    assert config.train.seeds == [7]
    with pytest.raises(UserError, match=r"unknown key.*'train\.epoch'"):
        load_config(path, ["train.epoch=3"])
    with pytest.raises(UserError, match=r"override is not understood.*section\.key=value"):
        load_config(path, ["train.epochs"])


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file.*nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")


def test_regions_have_one_order_and_no_doubles(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    assert load_config(path, ["teacher.regions=[crop, map]"]).teacher.regions == ["map", "crop"]
    with pytest.raises(UserError, match=r"a region is there twice.*'teacher\.regions'"):
        load_config(path, ["teacher.regions=[crop, crop]"])
