"""Predictions in memory against those of the cached path, on a few scenes of the embedded world."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hoi.cache.read.split import open_split
from hoi.config import PipelineConfig
from hoi.datasets import UnreadableImage, open_images
from hoi.evaluation.baselines import DirectClip, direct_settings
from hoi.prediction import ImageResult, Predictor
from hoi.prediction.predictor import ExtraFields, batch_of, phrase_of, random_signals
from hoi.records import Triplets
from hoi.scoring import score_split
from hoi.training.train import run_folder
from hoi.vocabulary import Vocabulary
from tests.fakes.pipelines import refused


@pytest.fixture(scope="module")
def predictor(trained: PipelineConfig) -> Predictor:
    return Predictor.from_checkpoint(Path(trained.output).parent / "checkpoint", device="cpu")


@pytest.fixture(scope="module")
def scenes(trained: PipelineConfig) -> list[np.ndarray]:
    source = open_images(trained.dataset, "test")
    return [source.read(row) for row in range(len(source.image_ids))]


def cached_triplets(trained: PipelineConfig, name: str) -> tuple[Triplets, Triplets]:
    """The student's, and direct CLIP's, as stage three scores them."""
    split = open_split(trained, "test")
    bank, folder = split.text_bank, run_folder(trained, name, 3, open_split(trained, "train").fingerprint)
    student = folder.load_student(bank, split.vocabulary, split.axes)
    direct = DirectClip(bank, split.vocabulary, direct_settings(bank, split.axes["M"])[0], "direct")
    by_student = score_split(student, split.batches(4, extra=student.extra_fields), split.vocabulary, 0.7, "cpu")
    by_teacher = score_split(direct, split.batches(4), split.vocabulary, 1.0, "cpu")
    return by_student["student"], by_teacher["direct"]


def as_rows(triplets: Triplets, image: int) -> np.ndarray:
    rows = triplets.image == image
    return np.c_[
        triplets.boxes_h[rows], triplets.boxes_o[rows], triplets.interaction[rows], triplets.score[rows]
    ].astype(np.float64)


def test_predictions_are_those_of_the_cached_path(
    trained: PipelineConfig, predictor: Predictor, scenes: list[np.ndarray]
) -> None:
    by_student, by_teacher = cached_triplets(trained, "best")
    results = predictor.predict(scenes)
    assert sum(len(result.triplets) for result in results) == len(by_student) > 200
    for image, result in enumerate(results):
        found = np.array(
            [[*t.human_xyxy, *t.object_xyxy, t.interaction_idx, t.score, t.teacher_score] for t in result.triplets]
        ).reshape(-1, 11)
        expected = np.c_[as_rows(by_student, image), as_rows(by_teacher, image)[:, -1]]
        for rows in (found, expected):
            # By boxes to a hundredth of a pixel and interaction: scores are what is compared.
            rows[:] = rows[np.lexsort(np.round(rows[:, :9], 2).T)]
        np.testing.assert_allclose(found[:, :9], expected[:, :9], rtol=0, atol=1e-2)
        np.testing.assert_allclose(found[:, 9:], expected[:, 9:], rtol=0, atol=1e-4)
        # A student of six scenes gives low scores: compared with their own size, too.
        np.testing.assert_allclose(found[:, 9], expected[:, 9], rtol=0, atol=2e-2 * expected[:, 9].max(initial=0))
    assert by_teacher.score.max() > 0.3


def test_a_batch_of_signals_is_the_batch_of_the_cache(trained: PipelineConfig) -> None:
    from hoi.extraction import Extractor

    split, source = open_split(trained, "test"), open_images(trained.dataset, "test")
    extractor = Extractor(trained, split.vocabulary, "cpu")
    rows = [4, 1, 7]
    signals = extractor.extract([source.image_ids[row] for row in rows], [source.read(row) for row in rows])
    extra = ["union_embedding", "image_embedding"]
    found, expected = batch_of(signals, extra, None), split.batch(np.array(rows), extra)
    names = {field.name for field in fields(found)} - {"image_rows", "pair_rows", "rows_h", "rows_o", "extra"}
    pairs = {name: (getattr(found, name), getattr(expected, name)) for name in names}
    pairs |= {name: (found.extra[name], expected.extra[name]) for name in extra}
    for name, (ours, theirs) in pairs.items():
        assert ours.dtype == theirs.dtype, name
        # Which images share a call moves an embedding by its last bits, and those of float16 are coarse.
        torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0, msg=name)
    for ours, theirs in ((found.rows_h, expected.rows_h), (found.rows_o, expected.rows_o)):
        assert ((ours[:, None] == ours) == (theirs[:, None] == theirs)).all()


def scores(result: ImageResult) -> dict[tuple[int, int, int], float]:
    return {(t.human_idx, t.object_idx, t.interaction_idx): t.score for t in result.triplets}


def test_path_picture_and_array_of_an_image_score_alike(
    predictor: Predictor, scenes: list[np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "scene.png"
    Image.fromarray(scenes[2]).save(path)
    together = predictor.predict([scenes[0], path, Image.fromarray(scenes[2]), np.zeros((3, 2, 3), np.uint8)])
    alone = predictor(scenes[2], image_id="alone")
    assert [result.image_id for result in together] == ["image-0", "scene.png", "image-2", "image-3"]
    for result in together[1:3]:
        assert scores(result) == pytest.approx(scores(alone), rel=0, abs=1e-4)
    assert (together[3].triplets, len(together[3].detections), together[3].size_hw) == ([], 0, (3, 2))
    assert predictor.predict([]) == []


def test_triplets_fall_in_score_and_stop_at_top_and_threshold(predictor: Predictor, scenes: list[np.ndarray]) -> None:
    numbers = [len(result.triplets) for result in predictor.predict(scenes)]
    scene = scenes[int(np.argmax(numbers))]
    result = predictor(scene)
    values = [t.score for t in result.triplets]
    assert values == sorted(values, reverse=True)
    assert predictor(scene, top=3).triplets == result.triplets[:3]
    assert predictor(scene, threshold=values[4]).triplets == result.triplets[: 5 + values[5:].count(values[4])]
    assert predictor(scene, threshold=1.1).triplets == []
    best = result.triplets[0]
    assert result.object_names[best.human_idx] == "person"
    assert best.object_xyxy == tuple(result.detections.boxes_xyxy[best.object_idx].tolist())
    plain = json.loads(json.dumps(result.to_dict()))
    assert plain["triplets"][0]["phrase"] == best.phrase
    assert plain["triplets"][0]["human_xyxy"] == plain["detections"][best.human_idx]["xyxy"]
    assert len(plain["detections"]) == len(result.detections)


def test_what_is_no_image_is_refused_with_the_reason(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(UnreadableImage, match="no image"):
        predictor(tmp_path / "text.jpg")
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"an image is uint8 \[H, W, 3\], got"):
            predictor(wrong)


def test_a_field_of_an_extra_pass_is_refused_where_it_is_read(predictor: Predictor) -> None:
    signals = [random_signals(predictor.checkpoint, 3, np.random.default_rng(0))]
    batch = batch_of(signals, ["coca/vlm_scores", "union_embedding"], None)
    assert batch.extra["union_embedding"].shape == (3, 2, predictor.checkpoint.axes["D"])
    assert isinstance(batch.extra, ExtraFields)
    error = refused(lambda: batch.extra["coca/vlm_scores"])
    assert error.where == "the field coca/vlm_scores"
    assert "extra pass" in str(error.got)
    assert refused(batch_of, signals, ["spatial_map"], None).where == "the field spatial_map"


def test_a_person_acting_alone_has_the_class_no_object(predictor: Predictor) -> None:
    pair = random_signals(predictor.checkpoint, 1, np.random.default_rng(0))
    alone = replace(pair, pairs_ho=np.array([[1, 1]], np.int32))
    label = int(pair.detections.labels[1])
    assert batch_of([pair, alone], [], -7).labels_o.tolist() == [label, -7]
    assert batch_of([pair, alone], [], None).labels_o.tolist() == [label, label]
    assert batch_of([pair, alone], [], None).rows_h.tolist() == [0, 3]


def test_phrases_are_given_or_made_of_verb_and_object() -> None:
    vocabulary = Vocabulary(
        ("person", "umbrella", "no_object"),
        ("hold", "no_interaction", "run"),
        (("hold", "umbrella"), ("no_interaction", "umbrella"), ("run", "no_object"), ("run", "umbrella")),
        (None, None, None, "running under an umbrella"),
    )
    assert [phrase_of(vocabulary, k) for k in range(4)] == [
        "holding an umbrella",
        "no interaction with an umbrella",
        "running",
        "running under an umbrella",
    ]
