"""docs/architecture.md names the functions of each walk; one small run passes through them in that order."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import pytest

from hoi.cache.build.run import build_cache
from hoi.config import PipelineConfig, load_config
from hoi.evaluation.evaluate import evaluate
from hoi.training.train import train_students

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"^\| (\d) \| (\d|–) \| `(\S+)` \| `(\w+)`", re.MULTILINE)
MOST_FILES = {"From an image to a shard": 6, "From a shard to a loss": 6, "From a prediction to average precision": 4}


class Step(NamedTuple):
    file: str
    function: str
    source: int | None
    """Index of the step whose call leads here."""


def walks() -> dict[str, list[Step]]:
    """Return the steps of each walk by its heading."""
    sections = (ROOT / "docs/architecture.md").read_text().split("\n### ")[1:]
    return {
        section.splitlines()[0]: [
            Step(file, function, None if source == "–" else int(source) - 1)
            for _, source, file, function in ROW.findall(section)
        ]
        for section in sections
    }


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PipelineConfig:
    folder = tmp_path_factory.mktemp("walks")
    return load_config(
        ROOT / "pipeline.yaml",
        [
            f"cache.folder={folder / 'cache'}",
            f"output={folder}",
            "cache.scheduler=synchronous",
            "dataset.splits={train: 6, validation: 4, test: 4}",
            "train.seeds=[0]",
            "train.epochs=1",
            "evaluation.bootstrap=2",
        ],
    )


def first_calls(program: Callable[[], Any], steps: list[Step]) -> dict[int, set[int]]:
    """Run a program; return, in the order of first calls, each step with the steps that were on the stack then."""
    places = {(str(ROOT / step.file), step.function): index for index, step in enumerate(steps)}
    seen: dict[int, set[int]] = {}

    def place(frame: FrameType) -> int | None:
        return places.get((frame.f_code.co_filename, frame.f_code.co_name))

    def trace(frame: FrameType, event: str, _: object) -> None:
        index = place(frame) if event == "call" else None
        if index is None or index in seen:
            return
        above, stack = frame.f_back, set()
        while above is not None:
            stack.add(place(above))
            above = above.f_back
        seen[index] = {other for other in stack if other is not None}

    sys.setprofile(trace)
    try:
        program()
    finally:
        sys.setprofile(None)
    return seen


def test_a_run_passes_through_the_named_functions(config: PipelineConfig) -> None:
    programs = (build_cache, train_students, evaluate)
    for (heading, most), program in zip(MOST_FILES.items(), programs, strict=True):
        steps = walks()[heading]
        assert len(steps) >= 4
        assert len({step.file for step in steps}) <= most
        seen = first_calls(lambda: program(config), steps)  # noqa: B023
        assert list(seen) == list(range(len(steps))), heading
        for index, step in enumerate(steps):
            assert step.source is None or step.source in seen[index], step.function
