"""The main job: `hoi demo`, its three stages, and what is made of their results."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from hoi.cli.program import Config, Overrides, option, path_option, pipeline, pipeline_file, say_next, verb
from hoi.errors import command


@verb("demo", "hoi demo", "hoi demo train.seeds=[0] train.epochs=5")
def demo(config: Config = None, overrides: Overrides = None) -> None:
    """Run the three stages on one pipeline file, by default the embedded world's.

    What is finished already is not done again.
    """
    from hoi.cache.build.run import build_cache

    with pipeline(config, overrides) as settings:
        with _timed("teacher cache"):
            print(build_cache(settings), flush=True)
        with _timed("train"):
            from hoi.training.train import train_students

            print(train_students(settings), flush=True)
        with _timed("evaluate"):
            from hoi.evaluation.evaluate import evaluate, short_table

            found = evaluate(settings)
            print(f"{short_table(found)}\nthe whole table: {command('eval')}", flush=True)
        if found.rows:
            from hoi.report.build import write_report

            print(f"tables, curves and pictures on one page:\n{write_report(settings)}", flush=True)
        say_next("app" if found.rows else "quality")


@contextmanager
def _timed(stage: str) -> Iterator[None]:
    print(f"== {stage} ==", flush=True)
    start = time.monotonic()
    yield
    print(f"{stage}: {time.monotonic() - start:.0f} s\n", flush=True)


@verb("teacher-cache", "hoi teacher-cache --config mine.yaml")
def teacher_cache(config: Config = None, overrides: Overrides = None) -> None:
    """Stage one: run detector and teacher over every image, into HDF5 shards.

    Run it again to go on after an interruption.
    """
    from hoi.cache.build.run import build_cache

    with pipeline(config, overrides) as settings:
        if (notice := settings.teacher.activation_notice()) is not None:
            print(f"note: {notice}", file=sys.stderr)
        print(build_cache(settings), flush=True)
        say_next("train")


@verb(
    "train",
    "hoi train --config mine.yaml train.epochs=60",
    "torchrun --nproc_per_node=2 -m hoi train --config mine.yaml",
)
def train(config: Config = None, overrides: Overrides = None) -> None:
    """Stage two: train the students from the cache alone.

    Run it again to go on after an interruption.
    """
    from hoi.training.distributed import end_with_group, is_first_process, one_voice
    from hoi.training.train import train_students

    with one_voice(), pipeline(config, overrides) as settings:
        report = train_students(settings)
        if is_first_process():
            print(report, flush=True)
            say_next("eval")
    end_with_group()


@verb("eval", "hoi eval --config mine.yaml")
def evaluate(config: Config = None, overrides: Overrides = None) -> None:
    """Stage three: average precision of students and baselines."""
    from hoi.evaluation.evaluate import annotation_notices
    from hoi.evaluation.evaluate import evaluate as run

    with pipeline(config, overrides) as settings:
        found = run(settings)
        print(found, flush=True)
        for notice in annotation_notices(settings):
            print(f"note: {notice}", flush=True)
        say_next("report" if found.rows else "quality")


@verb("sweep", "hoi sweep --config examples/ablation.yaml")
def sweep(
    config: Annotated[str | None, option("sweep file (default: examples/ablation.yaml)", "FILE")] = None,
    overrides: Overrides = None,
) -> int:
    """Train a grid or list of students and seeds against one cache, and write one table."""
    from hoi.sweeps.plan import load_sweep
    from hoi.sweeps.run import run_sweep

    table = run_sweep(load_sweep(pipeline_file(config, "sweep"), list(overrides or ())))
    print(table)
    return 1 if table.failed else 0


@verb("bench", "hoi bench --config examples/bench.yaml")
def bench(
    config: Annotated[str | None, option("bench file (default: examples/bench.yaml)", "FILE")] = None,
    overrides: Overrides = None,
) -> int:
    """Train and evaluate the named rows over worlds and seeds, to outputs/bench."""
    from hoi.sweeps.bench import run_bench
    from hoi.sweeps.plan import load_bench

    report = run_bench(load_bench(pipeline_file(config, "bench"), list(overrides or ())))
    print(report)
    return 1 if report.has_failed else 0


@verb("report", "hoi report --config mine.yaml --out page.html")
def report(
    config: Config = None,
    overrides: Overrides = None,
    out: Annotated[Path | None, path_option("the page (default: report.html in `output`)")] = None,
    sweep: Annotated[list[Path] | None, path_option("table.json of a sweep (default: all in `output`)")] = None,
) -> None:
    """Write the results as one self-contained page: tables, curves, pictures."""
    from hoi.report.build import write_report

    with pipeline(config, overrides) as settings:
        print(write_report(settings, out, sweep), flush=True)
        say_next("app")


@verb("audit", "hoi audit --config mine.yaml")
def audit(
    config: Config = None,
    overrides: Overrides = None,
    training_images: Annotated[Path | None, path_option("names of the images that the detector was trained on")] = None,
) -> None:
    """Say which labels, splits and training data touched the results."""
    from hoi.evaluation.audit import run_audit

    with pipeline(config, overrides) as settings:
        print(run_audit(settings, training_images))


@verb("quality", "hoi quality --config mine.yaml --sample 48")
def quality(
    config: Config = None,
    overrides: Overrides = None,
    sample: Annotated[int, option("images that are mirrored and measured again", "N", least=0)] = 24,
    branches: Annotated[bool, option("measure each branch of a student as well", name="--branches")] = False,
) -> None:
    """Say what can be said of students without labels, and its limits."""
    from hoi.quality.run import measure_quality

    with pipeline(config, overrides) as settings:
        print(measure_quality(settings, sample, branches))
        say_next("app")
