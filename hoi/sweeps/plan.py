"""Sweep files (as examples/ablation.yaml) and bench files (as examples/bench.yaml), checked.

A bench is one sweep for each of its worlds, which has an output and a cache of its own unless a cache is named, and
differences to be shown.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt

from hoi.config import (
    FolderName,
    PipelineConfig,
    Section,
    Seeds,
    StudentName,
    StudentSettings,
    TrainConfig,
    load_config,
    parse_section,
    parse_student,
)
from hoi.config.loading import AnySection, read_yaml, set_key
from hoi.errors import UserError, nearest
from hoi.evaluation.baselines import baseline_names
from hoi.matching import CEILING
from hoi.students.multilevel.settings import MultiLevelConfig


class RowSection(Section):
    """One student of the sweep."""

    name: StudentName
    start: str | None = Field(None, alias="from")
    """Row above, or student of the pipeline file, whose settings these are put over; null for the defaults."""
    student: dict[str, Any] = Field(default_factory=dict)
    """What is changed there: nested as in the pipeline file, or by dotted key (`gate.exponent: 0.5`)."""
    train: dict[str, Any] = Field(default_factory=dict)


class GridSection(Section):
    """Every combination of some values."""

    start: str | None = Field(None, alias="from")
    student: dict[str, list[Any]] = Field(default_factory=dict)
    train: dict[str, list[Any]] = Field(default_factory=dict)


class SweepSection(Section):
    """The whole sweep file."""

    name: FolderName
    base: str
    """Pipeline file, relative to the working directory."""
    overrides: list[str] = Field(default_factory=list)
    against: str
    seeds: Seeds | None = None
    """null for the pipeline file's."""
    rows: list[RowSection] = Field(default_factory=list)
    grid: GridSection | None = None


@dataclass(frozen=True)
class SweepRow:
    """One student of a sweep, with all its settings."""

    name: str
    start: str | None  # the row or student that it starts from
    changes: dict[str, Any]  # what it changes there, by dotted key
    student: StudentSettings
    train: TrainConfig


@dataclass(frozen=True)
class Sweep:
    """A checked sweep file."""

    name: str  # of its folder
    config: PipelineConfig
    against: str  # the row or baseline that rows are compared with
    rows: tuple[SweepRow, ...]  # in the file's order, the grid's last

    def config_of(self, row: SweepRow) -> PipelineConfig:
        """Return the pipeline with this row as its only student."""
        return self.config.model_copy(update={"students": {row.name: row.student}, "train": row.train})


def load_sweep(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Sweep:
    """Read a sweep file, with `section.key=value` overrides of its pipeline file.

    Raises UserError: no such file, no YAML, or a key or a name that is unknown, mistyped or used twice.
    """
    return resolve_sweep(_read(SweepSection, path), str(path), overrides)


def _read(kind: type[AnySection], path: str | Path) -> AnySection:
    plain = read_yaml(path)
    if not isinstance(plain, dict):
        got = type(plain).__name__
        raise UserError("this is no sweep or bench file", where=path, expected="keys and values", got=got)
    return parse_section(kind, plain, str(path))


def resolve_sweep(section: SweepSection, path: str, overrides: list[str] | tuple[str, ...] = ()) -> Sweep:
    """Return the checked sweep of a sweep file's content; arguments and errors as in `load_sweep`."""
    seeds = [] if section.seeds is None else [f"train.seeds={section.seeds}"]
    config = load_config(section.base, [*section.overrides, *seeds, *overrides])
    known = {name: SweepRow(name, None, {}, student, config.train) for name, student in config.students.items()}
    rows: dict[str, SweepRow] = {}
    for number, row in enumerate([*section.rows, *_combinations(section.grid)]):
        if row.name in rows:
            raise UserError(f"two rows are called '{row.name}'", where=path, fix="rename one of them")
        where = f"rows.{number}" if number < len(section.rows) else "grid"
        rows[row.name] = known[row.name] = _resolve(row, known, config, path, where)
    if not rows:
        raise UserError("this sweep has no row", where=path, expected="rows or grid")
    _check_row(section.against, [*rows, *baseline_names(config.vlms)], path, "against")
    return Sweep(section.name, config, section.against, tuple(rows.values()))


def _check_row(name: str, known: Collection[str], path: str | Path, key: str) -> None:
    if name not in known:
        what, expected = "a row is named that is not there", nearest(name, known)
        raise UserError(what, where=f"{path}, key '{key}'", expected=expected, got=name)


def _resolve(row: RowSection, known: Mapping[str, SweepRow], config: PipelineConfig, path: str, where: str) -> SweepRow:
    if row.start is not None:
        _check_row(row.start, known, path, f"{where}.from")
    if "seeds" in row.train:
        raise UserError("all rows have the same seeds", where=f"{path}, key '{where}.train.seeds'", fix="set seeds")
    start = known[row.start] if row.start else SweepRow("", None, {}, MultiLevelConfig(), config.train)
    # Another method has other keys, so it starts from nothing but its own defaults.
    is_same = row.student.get("method", start.student.method) == start.student.method
    plain = start.student.model_dump(mode="json") if is_same else {}
    for key, value in (start.student.by_key(row.student) if is_same else row.student).items():
        set_key(plain, key, value)
    student = parse_student(plain, path, f"{where}.student")
    train = {**start.train.model_dump(mode="json"), **row.train}
    changes = student.by_key(row.student) | {f"train.{key}": value for key, value in row.train.items()}
    return SweepRow(row.name, row.start, changes, student, parse_section(TrainConfig, train, path, f"{where}.train"))


def _combinations(grid: GridSection | None) -> list[RowSection]:
    if grid is None:
        return []
    keys = [*(("student", key) for key in grid.student), *(("train", key) for key in grid.train)]
    rows = []
    for values in product(*grid.student.values(), *grid.train.values()):
        chosen: dict[str, dict[str, Any]] = {"student": {}, "train": {}}
        for (section, key), value in zip(keys, values, strict=True):
            chosen[section][key] = value
        texts = (f"{value:g}" if isinstance(value, float) else str(value).lower() for value in values)
        parts = [f"{key}-{text}" for (_, key), text in zip(keys, texts, strict=True)]
        name = "_".join([*filter(None, [grid.start]), *parts])
        rows.append(RowSection.model_validate({"name": name, "from": grid.start, **chosen}))
    return rows


OWN_KEYS = {
    "dataset.seed": "worlds",
    "cache.folder": "worlds",
    "output": "output",
    "evaluation.intervals": "differences",
}
"""Keys of the pipeline file that differ from world to world → the bench file's key that sets them."""

MeanName = Literal["full", "rare", "non_rare", "without_no_interaction", "one_pair", "several_pairs"]


class WorldSection(Section):
    """One world to draw images from."""

    seed: NonNegativeInt
    cache: str | None = None
    """Folder of its teacher cache; null for one in the world's own output."""


class DifferenceSection(Section):
    """Two rows whose difference is shown."""

    better: str
    than: str
    means: list[MeanName] = Field(["full"], min_length=1)


class HeadroomSection(Section):
    """A row, and the two that its share of the way is taken between."""

    of: str
    start: str
    goal: str = CEILING


class BenchSection(SweepSection):
    """The whole bench file."""

    output: str
    worlds: list[WorldSection] = Field(min_length=1)
    differences: list[DifferenceSection] = Field(default_factory=list)
    headroom: list[HeadroomSection] = Field(default_factory=list)


@dataclass(frozen=True)
class Bench:
    """A checked bench file; sweeps by the world's seed, `differences` and `headroom` to be shown of every world."""

    name: str
    output: Path
    sweeps: dict[int, Sweep]
    differences: list[DifferenceSection]
    headroom: list[HeadroomSection]


def load_bench(path: str | Path, overrides: Sequence[str] = ()) -> Bench:
    """Read a bench file, with `section.key=value` overrides of its pipeline file.

    Raises UserError: as `load_sweep`; a world is there twice, a row is named that is not there, or an override is of a
    key that the bench file sets.
    """
    section = _read(BenchSection, path)
    for key in (override.partition("=")[0] for override in overrides):
        if key in OWN_KEYS:
            raise UserError(
                f"every world of a bench has a '{key}' of its own",
                where="the command line",
                fix=f"set '{OWN_KEYS[key]}' in {path}, or in a copy of it",
            )
    seeds = [world.seed for world in section.worlds]
    if len(set(seeds)) < len(seeds):
        raise UserError("a world is there twice", where=f"{path}, key 'worlds'", got=seeds)
    sweeps = {w.seed: resolve_sweep(section, str(path), [*overrides, *_own(section, w)]) for w in section.worlds}
    first = sweeps[seeds[0]]
    if (data_set := first.config.dataset.name) != "world":
        raise UserError("only the data set 'world' has worlds", where=section.base, got=f"dataset.name {data_set}")
    known = [*baseline_names(first.config.vlms), CEILING, *(row.name for row in first.rows)]
    for name, sections in (("differences", section.differences), ("headroom", section.headroom)):
        for number, named in enumerate(sections):
            for key, row in named.model_dump(exclude={"means"}).items():
                _check_row(row, known, path, f"{name}.{number}.{key}")
    return Bench(section.name, Path(section.output), sweeps, section.differences, section.headroom)


def _own(section: BenchSection, world: WorldSection) -> list[str]:
    # What differs from world to world, as overrides of the pipeline file.
    output = f"{section.output}/world-{world.seed}"
    intervals = sorted({mean for shown in section.differences for mean in shown.means} - {"full"})
    return [
        f"dataset.seed={world.seed}",
        f"output={output}",
        f"cache.folder={world.cache or f'{output}/cache'}",
        f"evaluation.intervals=[{', '.join(intervals)}]",
    ]
