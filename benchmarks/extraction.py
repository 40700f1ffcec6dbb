"""Stage one on a shard's worth of the world against its bare forward passes, and against the usual way.

    python -m benchmarks.extraction

CPU, with the threads that the config gives to a worker; images are drawn beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from torch.nn import functional

from benchmarks.side_by_side import ratio_table, run_in_turn
from hoi.boxes import union_boxes
from hoi.config import PipelineConfig, load_config
from hoi.crops import crop_windows
from hoi.datasets import load_vocabulary, open_images
from hoi.extraction import Extractor
from hoi.pairing import pair_detections
from hoi.vocabulary import Vocabulary

CONFIG = "pipeline.yaml"
NUM_ROUNDS = 3
ENCODERS = ("encode_crops", "encode_images", "encode_regions")

Call = Callable[[], object]


def measure(config: PipelineConfig, num_rounds: int = NUM_ROUNDS) -> str:
    """The ratio table of a pipeline on the first shard of its training split."""
    torch.set_num_threads(config.cache.threads)
    vocabulary = load_vocabulary(config.dataset)
    source = open_images(config.dataset, config.train.split)
    image_ids = list(source.image_ids[: config.cache.images_per_shard])
    images = [source.read(row) for row in range(len(image_ids))]
    extractor = Extractor(config, vocabulary, "cpu")
    with recorded_forwards(extractor) as forwards:
        signals = extractor.extract(image_ids, images)
    num_pairs = sum(len(record.pairs_ho) for record in signals)
    ways: dict[str, Call] = {
        "stage one": lambda: extractor.extract(image_ids, images),
        "bare forward passes": lambda: [forward() for forward in forwards],
        "the usual way": UsualWay(config, vocabulary, extractor).over(image_ids, images),
    }
    return ratio_table(
        f"stage one, {len(images)} images, {num_pairs} pairs, {len(config.teacher.crop.margins)} margins, "
        f"{len(forwards)} forward passes",
        run_in_turn(ways, num_rounds),
        [("stage one", "bare forward passes"), ("the usual way", "stage one")],
    )


@contextmanager
def recorded_forwards(extractor: Extractor) -> Iterator[list[Call]]:
    """Notes each forward pass that the extractor makes, with a copy of its tensors, as a call that repeats it alone.

    The detector is the world's, whose network is at hand.
    """
    forwards: list[Call] = []
    teacher: Any = extractor._teacher
    detector: Any = extractor._detector
    net = detector._net

    def note(run: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        copies = tuple(value.clone() if isinstance(value, torch.Tensor) else value for value in arguments)
        forwards.append(lambda: run(*copies))

    @torch.inference_mode()
    def detect(*arguments: torch.Tensor) -> object:
        return net(*arguments)

    def recording(encode: Callable[..., Any]) -> Callable[..., Any]:
        def encode_and_note(*arguments: Any) -> Any:
            note(encode, arguments)
            return encode(*arguments)

        return encode_and_note

    hook = net.register_forward_pre_hook(lambda _, arguments: note(detect, arguments))
    for name in ENCODERS:
        setattr(teacher, name, recording(getattr(teacher, name)))
    try:
        yield forwards
    finally:
        hook.remove()
        for name in ENCODERS:
            delattr(teacher, name)


class UsualWay:
    """One PIL crop, the model's own transform and one forward pass per pair and margin; images one by one.

    It gives less than stage one: no crops of single boxes, no similarities, and nothing is written.
    """

    def __init__(self, config: PipelineConfig, vocabulary: Vocabulary, extractor: Extractor) -> None:
        self._config, self._person = config, vocabulary.person_idx
        self._detector, self._style = extractor._detector, extractor._teacher.crop_style
        teacher = config.teacher
        self._model, self._transform = open_clip.create_model_from_pretrained(teacher.model, teacher.pretrained)
        self._model.eval()

    def over(self, image_ids: list[str], images: list[np.ndarray]) -> Call:
        """The call that goes through the images."""
        return lambda: [self._image(image_id, image) for image_id, image in zip(image_ids, images, strict=True)]

    @torch.inference_mode()
    def _image(self, image_id: str, image: np.ndarray) -> list[torch.Tensor]:
        found = self._detector.detect([image], [image_id])[0]
        unions = union_boxes(found.boxes_xyxy, pair_detections(found, self._person, self._config.pairs))
        picture, crop = Image.fromarray(image), self._config.teacher.crop
        embeddings = [self._encode(picture)]
        for margin in crop.margins:
            windows = crop_windows(unions, margin, crop.mode, image.shape[:2], self._style.resize_mode)
            embeddings += [self._encode(picture.crop(window[:4].tolist())) for window in windows]
        return embeddings

    def _encode(self, picture: Image.Image) -> torch.Tensor:
        return functional.normalize(self._model.encode_image(self._transform(picture)[None]), dim=-1)


if __name__ == "__main__":
    print(measure(load_config(CONFIG)))
