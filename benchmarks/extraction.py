"""Compare stage one's task, from image files to a finished shard, with its bare forward passes and the usual way.

    python -m benchmarks.extraction                       # every case
    python -m benchmarks.extraction world ViT-B-16-quickgelu --rounds 5

It has the one thread of a worker; decoding uses a second core if there is one.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch.nn import functional

from benchmarks.full_size import DETECTOR, full_size_pipeline, image_kind
from benchmarks.side_by_side import ratio_table, run_in_turn
from hoi.boxes import union_boxes
from hoi.cache.base_pass import pack_tables
from hoi.cache.build.worker import Held, OwnModel, build_shard, hold, release, write_shard
from hoi.cache.plan import plan_split
from hoi.config import PipelineConfig, load_config
from hoi.crops import crop_windows
from hoi.datasets import open_images
from hoi.extraction import pair_detections

CONFIG = "pipeline.yaml"
WORLD = "world"
CLIPS = ("ViT-B-16-quickgelu", "RN50-quickgelu")
CASES = (WORLD, *CLIPS, DETECTOR)
NUM_IMAGES = {WORLD: 64, DETECTOR: 2}
NUM_PHOTOGRAPHS = 8
"""Images of the other cases; a forward pass of ViT-B/16 takes a tenth of a second per crop."""
NUM_ROUNDS = 3
ENCODERS = ("encode_crops", "encode_images", "encode_regions")

Call = Callable[[], object]


def measure(case: str, device: str, num_rounds: int = NUM_ROUNDS, num_images: int | None = None) -> str:
    """Return the ratio table of one case."""
    num = num_images or NUM_IMAGES.get(case, NUM_PHOTOGRAPHS)
    with tempfile.TemporaryDirectory() as folder:
        if case == WORLD:
            overrides = [f"cache.folder={folder}/cache", f"cache.images_per_shard={num}", f"cache.device={device}"]
            config, kind = load_config(CONFIG, overrides), "scenes at 192 px"
        else:
            clip, detector = (CLIPS[1], "torchvision") if case == DETECTOR else (case, "precomputed")
            config, kind = full_size_pipeline(Path(folder), clip, num, device, detector), image_kind()
        try:
            return _compare(f"{case} on {device}, {num} {kind}", config, num_rounds)
        finally:
            release()


def _compare(title: str, config: PipelineConfig, num_rounds: int) -> str:
    split = config.train.split if config.dataset.name == "world" else "test"
    config_json, plan = config.model_dump_json(), plan_split(config, split)
    shard = plan.shards[0]
    held = hold(config_json, OwnModel())
    source = open_images(config.dataset, split)
    rows, ids = range(shard.num_images), list(source.image_ids[: shard.num_images])
    with recorded_forwards(held.model) as forwards:
        signals = held.model.extract(ids, [source.read(row) for row in rows])

    def stage_one() -> object:
        return build_shard(shard, config_json, str(plan.folder), "", OwnModel())

    def bare() -> None:
        for forward in forwards:
            forward()
        if held.device == "cuda":
            torch.cuda.synchronize()

    def write() -> object:
        tables = pack_tables(ids, list(signals), held.model.axes)
        return write_shard(plan.folder, tables, shard, held.parts, held.model.axes)

    ways: dict[str, Call] = {
        "stage one": stage_one,
        "bare forward passes": bare,
        "the usual way": UsualWay(held).over(ids, source.read),
        "reading alone": lambda: [source.read(row) for row in rows],
        "packing and writing": write,
    }
    num_pairs = sum(len(record.pairs_ho) for record in signals)
    margins = len(config.teacher.crop.margins)
    return ratio_table(
        f"{title}, {num_pairs} pairs, {margins} margin{'s' * (margins > 1)}, {len(forwards)} forward passes",
        run_in_turn(ways, num_rounds),
        [
            ("stage one", "bare forward passes"),
            ("the usual way", "stage one"),
            ("reading alone", "stage one"),
            ("packing and writing", "stage one"),
        ],
    )


@contextmanager
def recorded_forwards(extractor: Any) -> Iterator[list[Call]]:
    """Record the extractor's forward passes, with copies of their tensors, as calls that repeat them.

    A detector that looks boxes up has none. A call of torchvision's network includes resizing and suppression.
    """
    forwards: list[Call] = []
    teacher, detector = extractor._teacher, extractor._detector
    net = getattr(detector, "_net", None) or getattr(detector, "_model", None)

    def copy(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(copy(inner) for inner in value)
        return value.clone() if isinstance(value, torch.Tensor) else value

    def note(run: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        copies = copy(arguments)
        forwards.append(lambda: run(*copies))

    @torch.inference_mode()
    def detect(*arguments: Any) -> object:
        assert net is not None
        return net(*arguments)

    def recording(encode: Callable[..., Any]) -> Callable[..., Any]:
        def encode_and_note(*arguments: Any) -> Any:
            note(encode, arguments)
            return encode(*arguments)

        return encode_and_note

    hook = net.register_forward_pre_hook(lambda _, arguments: note(detect, arguments)) if net is not None else None
    for name in ENCODERS:
        setattr(teacher, name, recording(getattr(teacher, name)))
    try:
        yield forwards
    finally:
        if hook is not None:
            hook.remove()
        for name in ENCODERS:
            delattr(teacher, name)


class UsualWay:
    """One PIL crop, the model's own transform and one forward pass per pair and margin, image by image.

    It does less than stage one: no crops of single boxes, no similarities, and nothing is written.
    """

    def __init__(self, held: Held) -> None:
        extractor: Any = held.model
        self._config, self._person, self._device = held.config, held.vocabulary.person_idx, held.device
        self._detector, self._style = extractor._detector, extractor._teacher.crop_style
        self._model = extractor._teacher._model
        self._transform = image_transform_v2(PreprocessCfg(**self._model.visual.preprocess_cfg), is_train=False)

    def over(self, image_ids: list[str], read: Callable[[int], np.ndarray]) -> Call:
        """Return a call that extracts these images."""
        return lambda: [self._image(image_id, read(row)) for row, image_id in enumerate(image_ids)]

    @torch.inference_mode()
    def _image(self, image_id: str, image: np.ndarray) -> list[torch.Tensor]:
        detections = self._detector.detect([image], [image_id])[0]
        unions = union_boxes(detections.boxes_xyxy, pair_detections(detections, self._person, self._config.pairs))
        picture, crop = Image.fromarray(image), self._config.teacher.crop
        embeddings = [self._encode(picture)]
        for margin in crop.margins:
            windows = crop_windows(unions, margin, crop.mode, image.shape[:2], self._style.resize_mode)
            embeddings += [self._encode(picture.crop(window[:4].tolist())) for window in windows]
        return embeddings

    def _encode(self, picture: Image.Image) -> torch.Tensor:
        pixels = self._transform(picture)[None].to(self._device)
        return functional.normalize(self._model.encode_image(pixels), dim=-1).cpu()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; default all")
    parser.add_argument("--rounds", type=int, default=NUM_ROUNDS)
    parser.add_argument("--images", type=int, default=None, help="images of each case")
    given = parser.parse_args()
    for foreign in set(given.cases) - set(CASES):
        parser.error(f"there is no case {foreign}")
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for case in given.cases or CASES:
        for device in devices:
            print(measure(case, device, given.rounds, given.images), end="\n\n", flush=True)
    if "cuda" not in devices:
        print("not run: anything on a GPU (there is none here)")
    print(f"cores: {len(os.sched_getaffinity(0))}, load in the last minute: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
