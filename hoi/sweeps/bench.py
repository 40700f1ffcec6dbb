"""A bench: named rows over several worlds and seeds, each world with its own teacher cache.

Every world is a sweep of its own, so what is finished is kept and a failed run stops no other.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hoi.cache.build.run import build_cache
from hoi.cache.build.worker import ModelFactory
from hoi.cache.read.split import open_split
from hoi.config import PipelineConfig
from hoi.evaluation.audit import audit_row
from hoi.evaluation.evaluate import LIBRARIES, RunEvaluator
from hoi.evaluation.rows import (
    Comparison,
    Headroom,
    ResultRow,
    compare,
    format_table,
    headroom,
    means_over_seeds,
    read_rows,
    to_plain,
)
from hoi.files import sole_writer, write_atomically, write_json
from hoi.machine import choose_device
from hoi.matching import CEILING
from hoi.provenance import commit, library_versions
from hoi.sweeps.plan import Bench, Sweep
from hoi.sweeps.run import grading_digest, run_sweep, sweeps_folder
from hoi.sweeps.table import SweepTable


@dataclass(frozen=True)
class World:
    """Results of one world."""

    seed: int
    config: PipelineConfig
    num_images: int  # of the evaluated split, as num_pairs
    num_pairs: int
    fingerprint: str
    rows: list[ResultRow]  # baselines, students, and labels on the detections
    comparisons: list[Comparison]  # those of the bench file whose rows were evaluated and whose means have annotations
    ways: list[Headroom]
    table: SweepTable  # of the students

    @property
    def title(self) -> str:
        positives = int(self.rows[0].result.num_positives.sum())
        return (
            f"world {self.seed}, split {self.config.evaluation.split}: {self.num_images} images, {self.num_pairs} "
            f"pairs, {positives} annotated interactions"
        )

    @property
    def lines(self) -> list[str]:
        """A line for each comparison, each headroom and each failure."""
        return [*map(str, self.comparisons), *map(str, self.ways), *self.table.failures()]

    def plain_rows(self) -> list[dict[str, Any]]:
        """Return the rows as they go into results.json."""
        rows = [(row.to_dict(self.num_images), audit_row(self.config, row.settings)) for row in self.rows]
        return [{**plain, "world": self.seed, "audit": audit} for plain, audit in rows]

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the rows as plain data; figures in percent."""
        return {
            "world": self.seed,
            "split": self.config.evaluation.split,
            "num_images": self.num_images,
            "num_pairs": self.num_pairs,
            "means": means_over_seeds(self.rows),
            "comparisons": [found.to_dict() for found in self.comparisons],
            "headroom": [way.to_dict() for way in self.ways],
            "failed": self.table.plain_failures(),
            "config": self.config.model_dump(mode="json"),
            "fingerprint": self.fingerprint,
        }


@dataclass(frozen=True)
class BenchReport:
    """Results of all worlds, and the files that were written."""

    worlds: list[World]
    files: list[Path]

    @property
    def has_failed(self) -> bool:
        """Whether some row is missing."""
        return any(world.table.failed for world in self.worlds)

    def __str__(self) -> str:
        parts = ["mean average precision in percent by HICO-DET's official rule, ± sd over seeds"]
        for world in self.worlds:
            parts += [f"{world.title}\n{format_table(world.rows)}", "\n".join(world.lines)]
        return "\n\n".join([*filter(None, parts), "\n".join(f"wrote {file}" for file in self.files)])


def run_bench(bench: Bench, factory: ModelFactory | None = None) -> BenchReport:
    """Build every world's cache, train and evaluate its students, and write the tables; what is there is kept.

    Raises UserError: as stage one and a sweep, or another run writes into its folder now.
    """
    with sole_writer(bench.output):
        worlds = []
        for seed, asked in bench.sweeps.items():
            print(build_cache(asked.config, factory), flush=True)
            worlds.append(_world(bench, seed, asked, run_sweep(asked)))
        table, summary, results = files = [bench.output / name for name in ("table.md", "summary.json", "results.json")]
        write_atomically(table, _markdown(bench, worlds).encode())
        versions = {"commit": commit(), "versions": library_versions(LIBRARIES)}
        write_json(summary, {"name": bench.name, "worlds": [world.to_dict() for world in worlds], **versions})
        write_json(results, [row for world in worlds for row in world.plain_rows()])
        return BenchReport(worlds, files)


def _world(bench: Bench, seed: int, asked: Sweep, table: SweepTable) -> World:
    split = open_split(asked.config, asked.config.evaluation.split)
    rows = [*table.baselines, *table.graded.values(), _ceiling(asked.config, split.fingerprint)]
    graded = {row.name for row in rows}
    has_truth = {mean for mean, value in rows[0].means.items() if value is not None}
    differences = [d for d in bench.differences if {d.better, d.than} <= graded]
    comparisons = [compare(rows, d.better, d.than, mean) for d in differences for mean in d.means if mean in has_truth]
    ways = [way for way in bench.headroom if {way.of, way.start, way.goal} <= graded]
    shares = [headroom(rows, way.of, way.start, way.goal) for way in ways]
    numbers = (split.num_images, split.num_pairs, split.fingerprint)
    return World(seed, asked.config, *numbers, rows, comparisons, shares, table)


def _ceiling(config: PipelineConfig, fingerprint: str) -> ResultRow:
    # Labels on the cached pairs, kept like a sweep's rows.
    file = sweeps_folder(config) / CEILING / f"{grading_digest(config, fingerprint)}.json"
    kept = read_rows(file)
    if kept is None:
        torch.set_num_threads(config.train.threads)
        split, device = open_split(config, config.evaluation.split), choose_device(config.train.device)
        kept = [RunEvaluator(config, split, device).labels_on_detections()]
        write_json(file, to_plain(kept[0]))
    return kept[0]


def _markdown(bench: Bench, worlds: list[World]) -> str:
    parts = [f"# {bench.name}", "Mean average precision in percent by HICO-DET's official rule, ± sd over seeds."]
    for world in worlds:
        table = textwrap.indent(format_table(world.rows), "    ")
        parts += [f"## World {world.seed}", f"{world.title}.", table, "\n".join(f"- {line}" for line in world.lines)]
    return "\n\n".join(filter(None, parts)) + "\n"
