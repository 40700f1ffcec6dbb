"""The cache's verbs as they are called, and what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from hoi.cache.build.run import build_cache
from hoi.cache.build.worker import release
from hoi.cache.tools.verify import verify
from hoi.cli import load_verbs, program
from tests.fakes.extractors import RandomSignals
from tests.fakes.pipelines import built_photos, flip, photo_pipeline, refused, write_pipeline

ROOT = Path(__file__).parents[2]


class OtherWeights(RandomSignals):
    """The same settings, other weights: only the models themselves can tell."""

    def provenance(self) -> dict[str, Any]:
        return {**super().provenance(), "detector": {"weights_sha256": "b"}}


class Blurred(RandomSignals):
    """What another machine may give: last bits differ, or more."""

    step = 4e-4

    def extract(self, image_ids: Any, images: Any) -> list[Any]:
        records = super().extract(image_ids, images)
        for record in records:
            record.union_embedding.__iadd__(np.float16(self.step))
        return records


class Smeared(Blurred):
    step = 0.2


def test_verify_recomputes_and_reports_the_largest_difference(tmp_path: Path) -> None:
    config, _ = built_photos(tmp_path)
    for number in (3, 99):
        exact = verify(config, recompute=number, seed=1, factory=RandomSignals)
        assert exact.is_good
        found = exact.recomputed["test"]
        assert len(set(found.image_ids)) == min(number, 5)
        assert set(found.differences.values()) == {0.0}
    near = verify(config, recompute=99, factory=Blurred)
    assert near.is_good
    assert 0 < near.recomputed["test"].differences["union_embedding"] < 4e-3
    far = verify(config, recompute=99, factory=Smeared)
    assert not far.is_good
    assert "03.png: union_embedding differs by 0.2" in str(far)


def test_recomputing_finds_a_replaced_image(tmp_path: Path) -> None:
    config, _ = built_photos(tmp_path)
    Image.fromarray(np.full((8, 9, 3), [5, 77, 0], np.uint8)).save(tmp_path / "images" / "03.png")
    (tmp_path / "images" / "04.png").write_bytes(b"")
    assert verify(config).is_good
    report = verify(config, recompute=5, factory=RandomSignals)
    assert {text.split(":")[0] for text in report.recomputed["test"].problems} == {"03.png", "04.png"}
    assert "04.png: cannot be read any more: the file is empty" in str(report)


def test_recomputing_refuses_other_models(tmp_path: Path) -> None:
    config, _ = built_photos(tmp_path)
    error = refused(verify, config, recompute=1, factory=OtherWeights)
    assert error.got == "detector.weights_sha256 (cache: absent, now: b)"
    other = photo_pipeline(tmp_path, pairs={"max_humans": 2})
    assert "pairs.max_humans" in str(refused(verify, other, recompute=1, factory=RandomSignals).got)


def run_verb(*arguments: str) -> int:
    return program.run(load_verbs(), ["cache", *arguments])


def test_every_verb_runs_from_its_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, folder = built_photos(tmp_path)
    release()
    options = ["--config", str(write_pipeline(config, tmp_path / "pipeline.yaml"))]
    capsys.readouterr()

    def said(verb: str, *arguments: str) -> tuple[int, str]:
        return run_verb(verb, *arguments, *options), capsys.readouterr().out

    assert said("plan")[0] == 0
    assert said("info")[1].startswith("test: complete")
    code, text = said("verify")
    assert code == 0
    assert "nothing is wrong" in text
    assert said("repair") == (0, "nothing to repair\n")
    code, text = said("export", "03.png", "--top", "1")
    assert len(json.loads(text)["pairs"]) == 5
    assert said("export", "03.png", "--json", str(tmp_path / "03.json")) == (0, "")
    assert json.loads((tmp_path / "03.json").read_text())["image_id"] == "03.png"
    fsspec.filesystem("memory").put(str(tmp_path / "cache"), "/verbs", recursive=True)
    code, text = said("pull", "memory://verbs", "--to", str(tmp_path / "pulled"))
    assert (code, "5 files fetched" in text) == (0, True)
    assert run_verb("verify", *options, f"cache.folder={tmp_path / 'pulled'}") == 0
    flip(folder / "shard-00001.h5")
    capsys.readouterr()
    code, text = said("verify")
    assert code == 1
    assert text.startswith("test/shard-00001.h5: changed: its bytes are not those that were written")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["pull", "memory://x", "--to", "y", "--split", "../up"], "the dataset has no split '../up'"),
        (["info", "cache.folder=nowhere"], "there is no teacher cache"),
    ],
)
def test_a_users_mistake_is_named(arguments: list[str], what: str) -> None:
    assert refused(run_verb, *arguments, "--config", str(ROOT / "pipeline.yaml")).what == what


def test_a_new_split_of_a_folder_leaves_the_others_untouched(tmp_path: Path) -> None:
    def built(**splits: float) -> dict[str, int]:
        sections: dict[str, Any] = {"dataset": {"splits": splits}, "cache": {"max_failed_share": 1.0}}
        config = photo_pipeline(tmp_path, (1,) * 20, **sections)
        return {split.split: split.num_built for split in build_cache(config, RandomSignals).splits}

    assert all(built(train=0.5, rest=0.5).values())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*/*")}
    finer = built(train=0.5, validation=0.25, test=0.25)
    assert [name for name, number in finer.items() if number] == ["validation", "test"]
    assert before == {path: path.stat().st_mtime_ns for path in before}
    # A split that loses images to a new one is another split, and is refused rather than mixed.
    assert str(refused(built, train=0.5, rest=0.25, more=0.25).got).startswith("images.")
