"""Score ten candidates of one image by a vision language model: one pass over the image for all, or one each.

    python -m benchmarks.candidates                 # both models: two minutes
    python -m benchmarks.candidates qwen2_vl --rounds 9

`qwen2_vl` is a small Qwen2-VL with random weights that sees a picture as about as many tokens as published ones do;
`coca` is open_clip's CoCa ViT-B/32 with random weights. On the CPU, or with --device cuda.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.side_by_side import Rounds, ratio_table, run_in_turn
from hoi.config import VlmConfig
from hoi.vlm import VisionLanguageModel, build_vlm
from hoi.vlm.transformers_model import TransformersModel, likelihoods, plain_likelihoods, run_prefix

CASES = ("qwen2_vl", "coca")
ALONE = "image and question alone"
SIZE_HW = (480, 640)
IMAGE_SIDE_PX = 448
"""Side of a square with as many pixels as the model takes: 256 tokens of 28 x 28."""
WIDTH, LAYERS = 256, 8
NUM_ROUNDS = 5
QUESTION = "What is the person doing with the object?"
CANDIDATES = [
    f"a person {verb} a {obj}"
    for obj in ("horse", "dog")
    for verb in ("riding", "holding", "walking", "feeding", "washing")
]


def measure(case: str, device: str, num_rounds: int = NUM_ROUNDS) -> str:
    """Return the tables of one model."""
    if case == "coca":
        config = VlmConfig(backend="coca", model="coca_ViT-B-32", pretrained="random")
        return _compare_calls(case, build_vlm(config, device), None, device, num_rounds)
    # Imports transformers.
    from tests.fakes.models import write_vlm

    with tempfile.TemporaryDirectory() as folder:
        write_vlm(Path(folder), case, width=WIDTH, layers=LAYERS, image_px=IMAGE_SIDE_PX)
        model = TransformersModel(VlmConfig(backend="transformers", model=folder), device)
        tables = [
            _compare_passes(case, model, device, num_rounds),
            _compare_calls(case, model, QUESTION, device, num_rounds),
        ]
        return "\n\n".join(tables)


@torch.inference_mode()
def _compare_passes(case: str, model: TransformersModel, device: str, num_rounds: int) -> str:
    """Compare passes of the model on prepared inputs."""
    bare, inputs = model.model, model.inputs(_picture(), QUESTION)
    texts = model.tokens(inputs, CANDIDATES)

    def shared() -> list[torch.Tensor]:
        return likelihoods(bare, run_prefix(bare, inputs), texts, len(texts))

    def each() -> list[torch.Tensor]:
        return [plain_likelihoods(bare, inputs, text) for text in texts]

    gap = max((a - b).abs().max().item() for a, b in zip(shared(), each(), strict=True))
    ways = {
        "shared prefix": _waited(shared, device),
        "a pass each": _waited(each, device),
        ALONE: _waited(lambda: run_prefix(bare, inputs), device),
    }
    rounds = run_in_turn(ways, num_rounds)
    num_tokens = sum(map(len, texts)) / len(texts)
    title = (
        f"{case} on {device}, passes alone: {len(texts)} candidates of {num_tokens:.1f} tokens after "
        f"{inputs['input_ids'].shape[1]} of image and question; log-probabilities differ by at most {gap:.0e}"
    )
    return _table(title, rounds, [("a pass each", "shared prefix"), ("shared prefix", ALONE)])


def _compare_calls(case: str, model: VisionLanguageModel, question: str | None, device: str, num_rounds: int) -> str:
    """Compare calls from pixels to log-likelihoods, as stage one makes them."""
    picture = _picture()
    ways = {
        "one call": lambda: model.log_likelihoods([picture], [CANDIDATES], question),
        "a call each": lambda: [model.log_likelihoods([picture], [[text]], question) for text in CANDIDATES],
    }
    title = f"{case} on {device}, from pixels to log-likelihoods: {len(CANDIDATES)} candidates"
    return _table(title, run_in_turn(ways, num_rounds), [("a call each", "one call")])


def _table(title: str, rounds: Rounds, comparisons: list[tuple[str, str]]) -> str:
    per_second = {way: len(CANDIDATES) / median(rounds.seconds[way]) for pair in comparisons for way in pair}
    per_second.pop(ALONE, None)
    rates = [f"{way}: {rate:.1f} candidates a second" for way, rate in per_second.items()]
    return "\n".join([ratio_table(title, rounds, comparisons), *rates])


def _picture() -> np.ndarray:
    """Return a smooth picture of a photograph's size; its content does not change the time."""
    height, width = SIZE_HW
    down, across = np.mgrid[:height, :width]
    waves = [np.sin(down / 31 + shift) + np.cos(across / 47 - shift) for shift in range(3)]
    return (127.5 + 63.7 * np.stack(waves, axis=-1)).astype(np.uint8)


def _waited(way: Callable[[], object], device: str) -> Callable[[], object]:
    """Return the call with a wait for the GPU."""

    def call() -> None:
        way()
        if device == "cuda":
            torch.cuda.synchronize()

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; default all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=NUM_ROUNDS)
    given = parser.parse_args()
    if foreign := set(given.cases) - set(CASES):
        parser.error(f"there is no case {', '.join(foreign)}")
    torch.set_num_threads(1)
    print("\n\n".join(measure(case, given.device, given.rounds) for case in given.cases or CASES))


if __name__ == "__main__":
    main()
