"""What is said of students without labels, on a small world: whole, repeatable, and free of labels."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from hoi.cache.build import run as teacher_cache
from hoi.config import PipelineConfig, load_config
from hoi.errors import UserError
from hoi.quality import run as quality
from hoi.training import train

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PipelineConfig:
    """A trained student on twelve scenes, and four more to look at."""
    folder = tmp_path_factory.mktemp("quality")
    changes = [
        f"output={folder / 'out'}",
        f"cache.folder={folder / 'cache'}",
        "dataset.splits={train: 12, test: 4}",
        "evaluation.tune_split=train",
        "students={student: {method: multilevel}}",
        "teacher.crop.margins=[1.15]",
        "train.seeds=[0]",
        "train.epochs=1",
        "cache.scheduler=synchronous",
        "cache.device=cpu",
        "train.device=cpu",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        loaded = load_config("pipeline.yaml", changes)
        teacher_cache.build_cache(loaded)
        train.main(loaded)
    return loaded


def test_everything_is_measured_without_a_label(config: PipelineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(sys.modules, "hoi.labels", None)
    report = quality.main(config, sample=2, branches=True)
    content = json.loads(report.path.read_text())
    assert content["labels_read"] is None
    assert content["num_images_looked_at_again"] == 2
    assert 0 < content["detections_found_again"] <= 1
    names = {"student", "student/global", "student/union", "student/human_object", "direct_clip"}
    assert set(content["scorers"]) == names
    for name, found in content["scorers"].items():
        assert set(found["measures"]) == {"flip", "crop", "shift"} | ({"teacher"} if name != "direct_clip" else set())
        for row in found["phrases"]:
            assert row["above"]["0.3"] <= row["above"]["0.1"] <= row["num_pairs"]
    # The global branch asks the whole image alone: boxes that move leave it as it was, and CLIP's crops do not.
    shift = {name: found["measures"]["shift"] for name, found in content["scorers"].items()}
    assert shift["student/global"]["same_first"] == 1
    assert shift["direct_clip"]["rank"] is None or shift["direct_clip"]["rank"] < 1
    assert "limits" in str(report)
    assert "never seen" in str(report)


def test_a_view_that_changes_nothing_gives_the_cached_scores(
    config: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("hoi.quality.looks.SHIFT", 0.0)
    monkeypatch.setattr("hoi.quality.looks.GROWTH", 1.0)
    content = quality.main(config, sample=3).content
    for found in content["scorers"].values():
        assert found["measures"]["shift"]["same_first"] == 1
        ranks = [row["rank"]["shift"] for row in found["phrases"] if row["rank"]["shift"] is not None]
        assert np.mean(ranks or [1.0]) > 0.999


def test_without_a_sample_no_image_is_opened(config: PipelineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("hoi.quality.run.open_images", lambda *_: pytest.fail("an image was asked for"))
    report = quality.main(config, sample=0)
    assert report.content["detections_found_again"] is None
    assert "no image was looked at again" in str(report)


def test_an_untrained_student_is_refused(config: PipelineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    other = config.model_copy(update={"output": config.output + "-none"})
    with pytest.raises(UserError, match="no finished training run"):
        quality.main(other)
