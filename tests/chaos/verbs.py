"""Verbs other than stage one, killed at random moments: run again, each gives the bytes of an undisturbed run."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from hoi.cache.build.run import build_cache
from hoi.cache.tools.pull import pull
from hoi.cache.tools.repair import repair
from hoi.cache.tools.rescore import rescore
from hoi.config import PipelineConfig
from hoi.datasets import open_images
from hoi.errors import INTERRUPTED, run_program
from hoi.evaluation.evaluate import evaluate
from hoi.prediction.checkpoint import Checkpoint
from hoi.prediction.export import make_checkpoint
from hoi.prediction.run import predict
from hoi.report.build import write_report
from hoi.sweeps.bench import run_bench
from hoi.sweeps.plan import load_bench, load_sweep
from hoi.sweeps.run import run_sweep
from hoi.training.train import train_students
from tests.chaos.builds import EXTRA, Driver, SlowSignals, build, small_build
from tests.fakes.extractors import DrawnSignals, VlmSignalsOf
from tests.fakes.pipelines import cut, small_pipeline, small_world, trained_world, write_pipeline

KILLS = 2
"""Of each verb with each signal."""
MAX_RESUMES = 5
VOLATILE = re.compile(
    r'"(seconds|images_per_s|eta_s|commit|made_with)": *(null|"[^"]*"|[\d.e+-]+|\{[^{}]*(\{[^{}]*\}[^{}]*)*\})'
)
ROWS = [{"name": "plain", "student": {"width": 16}}, {"name": "wide", "student": {"width": 24}}]


@dataclass(frozen=True)
class Verb:
    """What a verb starts from, the verb itself, and below which folder its results go; all in a folder of its own."""

    prepare: Callable[[Path], object]
    run: Callable[[Path], object]
    results: str
    sweeps: bool = True  # whether the next run removes what a killed one left half-written


def prepare_world(folder: Path) -> None:
    trained_world(folder)
    config = small_world(folder)
    evaluate(config)
    scenes = open_images(config.dataset, "test")
    (folder / "images").mkdir()
    for row in range(6):
        Image.fromarray(scenes.read(row)).save(folder / "images" / f"{row}.png")


def prepare_broken(folder: Path) -> None:
    build(small_build(folder, folder / "cache"))
    for number in range(3, 15):
        cut(folder / "cache" / "test" / f"shard-{number:05d}.h5")


def run_repair(folder: Path) -> None:
    repair(small_build(folder, folder / "cache"), SlowSignals, VlmSignalsOf(EXTRA))


def run_pull(folder: Path) -> None:
    pull(small_build(folder, folder / "there"), str(folder / "cache"), folder / "there")


def run_rescore(folder: Path) -> None:
    config = small_world(folder)
    teacher = config.teacher.model_copy(update={"prompts": ["a drawing of a person who is {verb_ing} {object}"]})
    rescore(config.model_copy(update={"teacher": teacher}), folder / "rescored")


def prepare_table(folder: Path, section: dict[str, Any]) -> None:
    base = write_pipeline(small_pipeline(folder, evaluation={"bootstrap": 20}), folder / "pipeline.yaml")
    plain = {"name": "tried", "base": str(base), "seeds": [0], "rows": ROWS, "against": "plain", **section}
    (folder / "table.yaml").write_text(yaml.safe_dump(plain))


def prepare_bench(folder: Path) -> None:
    bench = {"output": str(folder / "bench"), "worlds": [{"seed": 3}], "against": "direct_clip_tuned"}
    prepare_table(folder, {**bench, "differences": [], "headroom": []})


def prepare_sweep(folder: Path) -> None:
    prepare_table(folder, {})
    build_cache(small_pipeline(folder), DrawnSignals)


def run_predict(folder: Path) -> None:
    predict([folder / "images"], folder / "predicted", Checkpoint.open(folder / "checkpoint"), batch=1, device="cpu")


def again(folder: Path) -> PipelineConfig:
    train = {"seeds": [3], "epochs": 40, "batch_images": 4, "device": "cpu", "checkpoint_every": 1}
    config = small_world(folder, train=train)
    return config.model_copy(update={"output": str(folder / "again")})


VERBS = {
    "train": Verb(prepare_world, lambda folder: train_students(again(folder)), "again"),
    "eval": Verb(prepare_world, lambda folder: evaluate(small_world(folder)), "out", sweeps=False),
    "report": Verb(prepare_world, lambda folder: write_report(small_world(folder)), "out", sweeps=False),
    "checkpoint": Verb(prepare_world, lambda folder: make_checkpoint(small_world(folder), out=folder / "made"), "made"),
    "predict": Verb(prepare_world, run_predict, "predicted"),
    "rescore": Verb(prepare_world, run_rescore, "rescored"),
    "repair": Verb(prepare_broken, run_repair, "cache"),
    "pull": Verb(lambda folder: build(small_build(folder, folder / "cache")), run_pull, "there"),
    "sweep": Verb(
        prepare_sweep,
        lambda folder: run_sweep(load_sweep(folder / "table.yaml", ["train.epochs=6"])),
        "outputs/sweeps",
        sweeps=False,
    ),
    "bench": Verb(
        prepare_bench,
        lambda folder: run_bench(load_bench(folder / "table.yaml", ["train.epochs=6"]), DrawnSignals),
        "bench",
        sweeps=False,
    ),
}


def forked(call: Callable[[], object], said: Path) -> Driver:
    """Start a program in a forked process, so that nothing is imported again; what it prints goes to a file."""
    process = os.fork()
    if process:
        return Driver(process, said)
    try:
        file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(file, 2)
        # Those of a test would write elsewhere.
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        run_program(lambda: None if call() is None else 0)
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else 1)
    finally:
        import traceback

        traceback.print_exc()
        os._exit(1)


def results_of(folder: Path, with_parts: bool = True) -> dict[str, bytes]:
    """Return all files of a verb's results by name, without what depends on time."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.name.endswith(".part") and not with_parts:
            continue
        if path.is_file() and path.name != ".lock" and "quarantine" not in name and "journal.jsonl" not in name:
            data = path.read_bytes()
            if path.suffix in (".json", ".jsonl"):
                data = VOLATILE.sub("", data.decode()).encode()
            files[name] = data
    return files


def kill_verb(name: str, folder: Path, number: int = KILLS, seed: int = 0) -> str:
    """Kill a verb with SIGKILL and SIGTERM at random moments, run it again, and compare with an undisturbed run."""
    verb, rng, here, kept = VERBS[name], random.Random(seed), folder / "here", folder / "start"

    def start() -> Driver:
        return forked(lambda: verb.run(here), folder / "said")

    def fresh() -> None:
        # The same path every time: it is in the results.
        shutil.rmtree(here, ignore_errors=True)
        shutil.copytree(kept, here)

    here.mkdir()
    # In a process of its own, so that this one has no threads of torch when it forks.
    driver = forked(lambda: verb.prepare(here), folder / "said")
    assert driver.wait() == 0, driver.report.read_text()
    here.rename(kept)
    seconds, expected = 0.0, list[dict[str, bytes]]()
    for _ in range(2):
        fresh()
        begin = time.monotonic()
        assert (driver := start()).wait() == 0, driver.report.read_text()
        seconds = time.monotonic() - begin
        expected.append(results_of(here / verb.results, verb.sweeps))
    assert expected[0]
    assert not _differing(*expected), f"{_differing(*expected)} differ undisturbed"
    ended = {signal.SIGKILL: 0, signal.SIGTERM: 0}
    for by in ended:
        for _ in range(50):
            fresh()
            driver = start()
            time.sleep(rng.uniform(0.02, seconds))
            if driver.poll() is None:
                os.kill(driver.process, by)
                check_end(driver, by, here)
                ended[by] += 1
            for _ in range(MAX_RESUMES):
                if (driver := start()).wait() == 0:
                    break
            assert driver.code == 0, driver.report.read_text()
            differing = _differing(results_of(here / verb.results, verb.sweeps), expected[0])
            assert not differing, f"after {signal.Signals(by).name}: {', '.join(differing)} differ"
            if ended[by] == number:
                break
    kills = " and ".join(f"{number} {by.name}" for by, number in ended.items())
    return f"{kills} within {seconds:.1f} s, {len(expected[0])} files equal"


def check_end(driver: Driver, by: int, folder: Path) -> None:
    """Fail unless SIGTERM ended a program with one line and nothing half-written."""
    code = driver.wait()
    # Before `run_program` stands guard the signal itself ends the process.
    if by == signal.SIGTERM and code not in (0, -by):
        said = [line for line in driver.report.read_text().replace("\r", "\n").splitlines() if "it/s" not in line]
        assert code == 128 + by, (code, said)
        assert (said[-1], "Traceback" in str(said)) == (INTERRUPTED, False), said
        assert not list(folder.rglob(".*.part")), "something is half-written after SIGTERM"


def _differing(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


CASES = {f"kill_{name}": partial(kill_verb, name) for name in VERBS}
