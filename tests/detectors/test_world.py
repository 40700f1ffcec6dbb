"""The embedded world's detector: what it finds in an image does not depend on the other images of a call."""

from __future__ import annotations

import numpy as np
import pytest

from hoi.config import WorldDataset, WorldDetectorConfig
from hoi.datasets.world import scene_of, world_image_id, world_vocabulary
from hoi.detectors import Detector, build_detector
from hoi.world import render

IDS = [world_image_id(7, "test", index) for index in range(3)]


@pytest.fixture(scope="module")
def detector() -> Detector:
    config = WorldDetectorConfig(name="world")
    return build_detector(config, world_vocabulary(), "cpu", WorldDataset(name="world"))


@pytest.mark.parametrize("num", [2, 20])
def test_detections_do_not_depend_on_the_other_images(detector: Detector, num: int) -> None:
    scenes = [render(scene_of(image_id)) for image_id in IDS]
    scenes[1] = np.ascontiguousarray(scenes[1][:150, :170])
    together = (scenes * num)[:num]
    found = detector.detect(together, [f"{row}" for row in range(num)])
    for row, image in enumerate(together[:3]):
        [alone] = detector.detect([image], ["alone"])
        assert len(alone) > 1
        assert found[row].labels.tolist() == alone.labels.tolist()
        assert (alone.boxes_xyxy[:, 2:] <= image.shape[1::-1]).all()
        np.testing.assert_allclose(found[row].boxes_xyxy, alone.boxes_xyxy, atol=1e-3)
        np.testing.assert_allclose(found[row].scores, alone.scores, atol=1e-5)


def test_an_even_picture_has_no_more_candidates_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    config = WorldDetectorConfig(name="world", min_score=0.0, max_detections=8192)
    detector = build_detector(config, world_vocabulary(), "cpu", WorldDataset(name="world"))
    [found] = detector.detect([np.zeros((480, 640, 3), np.uint8)], ["black"])
    assert 0 < len(found) <= 8192
    # The bound takes the best, in their order.
    scene = [render(scene_of(IDS[0]))]
    monkeypatch.setattr("hoi.detectors.MAX_CANDIDATES", 20)
    [of_all] = detector.detect(scene, ["scene"])
    monkeypatch.setattr("hoi.detectors.world.MAX_CANDIDATES", 20)
    [of_best] = detector.detect(scene, ["scene"])
    assert of_best.boxes_xyxy.tobytes() == of_all.boxes_xyxy.tobytes()
    assert of_best.labels.tolist() == of_all.labels.tolist()
