"""A CoCa's pass over the embedded world, by the product's own models, and what is asked of an image and of a pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hoi.cache.build.run import build_cache
from hoi.cache.read.split import open_split
from hoi.cache.shard import read_header
from hoi.cache.tools.verify import verify
from hoi.config import PipelineConfig, parse_config
from hoi.config.loading import read_yaml
from hoi.records import Detections, ImageSignals
from hoi.teachers import build_teacher
from hoi.teachers.loading import TextSide
from hoi.vlm import Likelihoods, build_vlm
from hoi.vlm.extractor import VlmExtractor, sentences
from hoi.vocabulary import Vocabulary
from tests.fakes.extractors import random_signals
from tests.fakes.models import write_coca
from tests.fakes.pipelines import split_files

ROOT = Path(__file__).parents[2]
NUM_IMAGES = 6


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> PipelineConfig:
    """Six scenes, detected and embedded by the world's own models, and the files of a small CoCa."""
    folder = tmp_path_factory.mktemp("further")
    write_coca(folder / "coca")
    plain = read_yaml(ROOT / "pipeline.yaml")
    plain["dataset"] = {"name": "world", "splits": {"test": NUM_IMAGES}}
    run = {"scheduler": "synchronous", "device": "cpu", "images_per_shard": 4}
    config = parse_config({**plain, "cache": {"folder": str(folder / "cache"), **run}}, "further")
    build_cache(config)
    return config


def with_pass(config: PipelineConfig, **keys: Any) -> PipelineConfig:
    model = f"local-dir:{Path(config.cache.folder).parent / 'coca'}"
    section = {"backend": "coca", "model": model, "pretrained": "random", **keys}
    return parse_config({**config.model_dump(mode="json"), "vlms": {"coca": section}}, "further")


def forbidden(*_: object, **__: Any) -> None:
    raise AssertionError("a detector or a teacher's image tower was opened")


def test_adding_it_opens_no_detector_and_changes_no_file(base: PipelineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(base.cache.folder) / "test"
    before = split_files(folder)
    for name in ("hoi.detectors.build_detector", "hoi.extraction.build_detector", "hoi.extraction.build_teacher"):
        monkeypatch.setattr(name, forbidden)
    for name in ("hoi.teachers.open_clip_teacher.open_tower", "open_clip.model.CLIP.encode_image"):
        monkeypatch.setattr(name, forbidden)
    config = with_pass(base, pair_scores=True, no_interaction="product", max_new_tokens=12)
    assert [split.num_built for split in build_cache(config).splits] == [0, 2]
    assert split_files(folder) | before == split_files(folder)
    assert verify(config).is_good
    assert build_cache(config).splits[1].num_built == 0

    split = open_split(config, "test", same_images=False)
    names = ("vlm_scores", "vlm_asked", "vlm_log_likelihood", "context_embedding", "context_mask", "vlm_pair_scores")
    batch = split.batch(np.arange(NUM_IMAGES), extra=[f"coca/{name}" for name in names])
    scores, asked, sums, context, mask, pairs = (batch.extra[f"coca/{name}"].numpy() for name in names)
    vocabulary = split.vocabulary
    for image in range(NUM_IMAGES):
        # What is asked are the interactions of the objects that are in a pair, and no others.
        present = np.unique(batch.labels_o[batch.pair_image == image].numpy())
        of_present = vocabulary.object_mask[present].any(axis=0)
        np.testing.assert_array_equal(asked[image] > 0, of_present)
        assert not scores[image][~of_present].any()
        is_likelihood = of_present & ~vocabulary.is_no_interaction
        assert (sums[image][is_likelihood] < 0).all()
        assert not sums[image][~is_likelihood].any()
        for obj in present.tolist():
            of_object = (vocabulary.object_of == obj) & ~vocabulary.is_no_interaction
            assert scores[image][of_object].sum() == pytest.approx(1 if of_object.any() else 0, abs=4e-3)
    np.testing.assert_array_equal(pairs > 0, vocabulary.object_mask[batch.labels_o.numpy()])
    np.testing.assert_allclose(np.linalg.norm(context, axis=-1), mask, atol=2e-3)

    bank = read_header(folder / "coca-bank.h5")
    phrases, tokens = bank.json("phrases"), bank.table("num_tokens")
    row = vocabulary.interactions.index(("ride", "horse"))
    assert phrases[row] == "a person riding a horse"
    model = build_vlm(config.vlms["coca"], "cpu")
    [found] = model.log_likelihoods([np.full((224, 224, 3), 128, np.uint8)], [[phrases[row]]])
    assert (tokens[row], bank.table("prior_log_likelihood")[row]) == (found.num_tokens[0], found.log_likelihood[0])
    assert not tokens[vocabulary.is_no_interaction].any()


def test_texts_are_embedded_as_the_whole_teacher_embeds_them(base: PipelineConfig) -> None:
    texts = ["a photo of a person riding a horse.", "a photo of a person and a dog."]
    vocabulary = Vocabulary(
        ("person", "horse", "dog"), ("ride", "no_interaction"), (("ride", "horse"), ("no_interaction", "dog"))
    )
    teacher, alone = build_teacher(base.teacher, "cpu"), TextSide(base.teacher, "cpu")
    np.testing.assert_allclose(alone.encode(texts), teacher.text_bank(vocabulary).text_embedding, atol=1e-6)
    assert alone.provenance()["weights_sha256"] == teacher.provenance()["weights_sha256"]
    assert alone.encode([]).shape == (0, alone.width)


class Recording:
    """In the place of a model: notes what it is asked, and finds every candidate as likely as its image is bright."""

    def __init__(self) -> None:
        self.asked: list[tuple[np.ndarray, list[str], str | None]] = []

    def captions(self, images: Sequence[np.ndarray]) -> list[str]:
        return ["A person is riding a horse. It runs!" for _ in images]

    def answers(self, images: Sequence[np.ndarray], question: str) -> list[str]:
        return [f"{question} someone rides a horse" for _ in images]

    def log_likelihoods(
        self, images: Sequence[np.ndarray], candidates: Sequence[Sequence[str]], question: str | None = None
    ) -> list[Likelihoods]:
        self.asked += [(image, list(texts), question) for image, texts in zip(images, candidates, strict=True)]
        sums = [-np.arange(1, len(each) + 1, dtype=np.float32) for each in candidates]
        return [Likelihoods(each, np.full(len(each), 2, np.int32)) for each in sums]

    def yes_probabilities(self, images: Sequence[np.ndarray], questions: Sequence[Sequence[str]]) -> list[np.ndarray]:
        self.asked += [(image, list(texts), None) for image, texts in zip(images, questions, strict=True)]
        return [np.linspace(0.2, 0.9, len(texts), dtype=np.float32) for texts in questions]

    def provenance(self) -> dict[str, Any]:
        return {"name": "recording"}


VOCABULARY = Vocabulary(
    ("person", "horse", "dog"),
    ("ride", "feed", "no_interaction", "walk"),
    (("ride", "horse"), ("feed", "horse"), ("no_interaction", "horse"), ("walk", "dog")),
)


def extractor(base: PipelineConfig, monkeypatch: pytest.MonkeyPatch, **keys: Any) -> tuple[VlmExtractor, Recording]:
    model = Recording()
    monkeypatch.setattr("hoi.vlm.extractor.build_vlm", lambda *_: model)
    made = VlmExtractor(with_pass(base, **keys), "coca", VOCABULARY, "cpu")
    model.asked.clear()
    return made, model


def signals(pairs: list[list[int]]) -> ImageSignals:
    """A person, two horses of which one is where the other is, and a dog, in an image of 40 x 60."""
    boxes = np.array([[10, 10, 20, 30], [15, 20, 40, 30], [15, 20, 40, 30], [0, 0, 5, 5]], np.float32)
    detections = Detections(boxes, np.linspace(0.9, 0.6, 4).astype(np.float32), np.array([0, 1, 1, 2]))
    rows, size = np.array(pairs, np.int32).reshape(-1, 2), np.array([40, 60], np.int32)
    return replace(random_signals("a", 4, len(pairs)), size_hw=size, detections=detections, pairs_ho=rows)


STYLE = {"crop_size_px": 32, "fill_rgb": [1, 2, 3], "interpolation": "bicubic", "resize_mode": "shortest"}


def test_a_pair_is_asked_about_its_object_on_its_union(base: PipelineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    made, model = extractor(base, monkeypatch, image_scores=False, caption=False, pair_scores=True)
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    [found] = made.extract([(signals([[0, 1], [0, 3], [0, 2]]), image)], STYLE)
    assert [texts for _, texts, _ in model.asked] == [
        ["a person walking a dog"],
        ["a person riding a horse", "a person feeding a horse"],
    ]
    # The union of person and horse is 30 x 20 about (25, 20); 1.15 times the longer side is 34.5, so 35 pixels.
    np.testing.assert_array_equal(model.asked[1][0], image[3:38, 8:43])
    assert found.vlm_pair_scores is not None
    ride, feed = np.exp([-1.0, -2.0]) / np.exp([-1.0, -2.0]).sum()
    np.testing.assert_allclose(found.vlm_pair_scores, [[ride, feed, 0, 0], [0, 0, 0, 1], [ride, feed, 0, 0]], atol=1e-3)
    assert (found.caption, found.vlm_scores, found.context_embedding) == ("", None, None)


def test_ways_of_asking_differ_in_what_is_asked_and_stored(
    base: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, both = np.zeros((40, 60, 3), np.uint8), signals([[0, 1], [0, 3]])

    def answer(**keys: Any) -> tuple[np.ndarray, Recording]:
        made, model = extractor(base, monkeypatch, caption=False, **keys)
        [found] = made.extract([(both, image)], STYLE)
        assert found.vlm_scores is not None
        assert found.vlm_asked is not None
        assert not found.vlm_scores[found.vlm_asked == 0].any()
        return found.vlm_scores.astype(np.float64), model

    e = np.exp(-0.5)
    mean, model = answer(scoring="mean", question="what is going on?", no_interaction="product")
    assert model.asked[0][1:] == (
        ["a person riding a horse", "a person feeding a horse", "a person walking a dog"],
        "what is going on?",
    )
    np.testing.assert_allclose(mean, [1 / (1 + e), e / (1 + e), e / (1 + e) ** 2, 1], atol=1e-3)
    yes, model = answer(scoring="yes_no", yes_no_question="{phrase}?")
    assert model.asked[0][1][0] == "a person riding a horse?"
    np.testing.assert_allclose(yes, [0.2, 0.55, 0, 0.9], atol=1e-3)
    for keys in ({}, {"question": "who?"}):
        said, model = answer(scoring="free_text", **keys)
        assert said.tolist() == [1, 0, 0, 0]
        assert model.asked == []
    # On the blank image, all three candidates are asked in one row: -1, -2, -3 there, too, so nothing is left of them.
    prior, _ = answer(scoring="sum", prior_weight=1.0, group="all")
    np.testing.assert_allclose(prior, [1 / 3, 1 / 3, 0, 1 / 3], atol=1e-3)


def test_an_image_without_a_pair_is_captioned_only(base: PipelineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    made, model = extractor(base, monkeypatch, max_sentences=3)
    [found] = made.extract([(signals([]), np.zeros((40, 60, 3), np.uint8))], STYLE)
    assert model.asked == []
    assert found.vlm_asked is not None
    assert not found.vlm_asked.any()
    assert found.context_mask is not None
    assert found.context_mask.tolist() == [1, 1, 0]
    assert found.context_embedding is not None
    assert not found.context_embedding[2].any()
    said = sentences(" A man. He rides!\nno stop at the end \n ... Dr. X?")
    assert said == ["A man.", "He rides!", "no stop at the end", "Dr.", "X?"]
