"""What is said of students without labels, on a small world: complete, repeatable, and free of labels."""

from __future__ import annotations

import json
import sys

import pytest

from hoi.config import PipelineConfig
from hoi.quality import run as quality
from hoi.quality.run import measure_quality
from tests.fakes.pipelines import refused


def test_everything_is_measured_without_a_label(trained: PipelineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hoi.labels", None)
    report = measure_quality(trained, sample=2, branches=True)
    content = json.loads(report.path.read_text())
    assert content["labels_read"] is None
    assert content["num_images_looked_at_again"] == 2
    assert {"first", "best", "best/global", "best/human_object", "direct_clip"} <= set(content["scorers"])
    for scorer in content["scorers"].values():
        assert set(scorer["measures"]) == {"flip"}
        assert len(scorer["phrases"]) == len(content["phrases"])
        for row in scorer["phrases"]:
            assert row["above"]["0.3"] <= row["above"]["0.1"] <= row["num_pairs"]
    # CLIP's scores of a mirrored scene differ a little.
    flip = content["scorers"]["direct_clip"]["measures"]["flip"]
    assert flip["rank"] is None or 0.5 < flip["rank"] < 1
    for text in ("limits", "never seen", "2 images were mirrored"):
        assert text in str(report)


def test_a_mirror_that_changes_nothing_gives_the_cached_scores(
    trained: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "mirror", lambda image, detections: (image, detections))
    scorers = measure_quality(trained, sample=4).content["scorers"].values()
    assert [scorer["measures"]["flip"]["rank"] for scorer in scorers] == pytest.approx([1] * 3, abs=1e-2)


def test_without_a_sample_no_image_is_opened(trained: PipelineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "open_images", lambda *_: pytest.fail("an image was asked for"))
    assert "no image was mirrored" in str(measure_quality(trained, sample=0))


def test_an_untrained_student_and_a_wrong_sample_are_refused(trained: PipelineConfig) -> None:
    other = trained.model_copy(update={"output": trained.output + "-none"})
    assert "no finished training run" in refused(measure_quality, other).what
    assert refused(measure_quality, trained, sample=-1).where == "--sample"
