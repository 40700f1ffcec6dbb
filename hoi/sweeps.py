"""A sweep file to the students that it asks for: rows of settings, one by one or as a grid, on one pipeline file.

    name: gates                  # its tables lie in OUTPUT/sweeps/gates
    base: pipeline.yaml          # data, cache, training and evaluation are this file's
    overrides: [train.epochs=40] # of the pipeline file, like those of the command line, which come after
    against: plain               # the row, or baseline, that every row is compared with
    seeds: [0, 1, 2]
    rows:
      - {name: plain}
      - {name: gated, from: plain, student: {gate_exponent: 0.5}, train: {max_images: 100}}
    grid:                        # every combination, named after its values
      from: gated
      student: {aggregation: [max, logsumexp], target_temperature: [1.0, 2.0]}

Keys of `student` and `train` are those of the pipeline file, and are checked like them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import Field

from hoi.baselines import direct_vllms
from hoi.config import (
    FolderName,
    MultiLevelConfig,
    PipelineConfig,
    Section,
    Seeds,
    StudentConfig,
    StudentName,
    TrainConfig,
    load_config,
    parse_section,
    parse_student,
)
from hoi.errors import UserError, nearest
from hoi.strict_yaml import read_yaml

BASELINES = (
    "detector_prior",
    "direct_clip",
    "direct_clip_image",
    "direct_clip_product",
    "direct_clip_tuned",
    "direct_clip_gated",
)
"""What needs no training; they stand beside the rows of every sweep."""


class RowSection(Section):
    """One student of the sweep."""

    name: StudentName
    start: str | None = Field(None, alias="from")
    """Row above, or student of the pipeline file, whose settings these are put over; null for the defaults."""
    student: dict[str, Any] = Field(default_factory=dict)
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
    """One student of a sweep, with all its settings.

    Args:
        name: In the table.
        start: The row or student that it starts from.
        changes: What it changes there, by dotted key.
        student, train: All settings.
    """

    name: str
    start: str | None
    changes: dict[str, Any]
    student: StudentConfig
    train: TrainConfig


@dataclass(frozen=True)
class Sweep:
    """A checked sweep file.

    Args:
        name: Of its folder.
        config: The pipeline.
        against: The row or baseline that rows are compared with.
        rows: In the file's order, the grid's last.
    """

    name: str
    config: PipelineConfig
    against: str
    rows: tuple[SweepRow, ...]

    def config_of(self, row: SweepRow) -> PipelineConfig:
        """The pipeline with this row for its only student."""
        return self.config.model_copy(update={"students": {row.name: row.student}, "train": row.train})


def load_sweep(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Sweep:
    """Sweep file plus `section.key=value` overrides of its pipeline file to a checked sweep.

    Raises:
        UserError: a file is missing or no YAML, a key is unknown, missing or mistyped, or a name is unknown or there
            twice.
    """
    plain = read_yaml(path)
    if not isinstance(plain, dict):
        raise UserError("this is no sweep file", where=path, expected="keys and values", got=type(plain).__name__)
    return resolve_sweep(parse_section(SweepSection, plain, str(path)), str(path), overrides)


def resolve_sweep(section: SweepSection, path: str, overrides: list[str] | tuple[str, ...] = ()) -> Sweep:
    """A sweep file's content to a checked sweep; arguments and errors as in `load_sweep`."""
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
    if section.against not in {*rows, *untrained_rows(config)}:
        raise UserError(
            "rows cannot be compared with a row that is not there",
            where=f"{path}, key 'against'",
            expected=nearest(section.against, [*rows, *untrained_rows(config)]),
            got=section.against,
        )
    return Sweep(section.name, config, section.against, tuple(rows.values()))


def untrained_rows(config: PipelineConfig) -> list[str]:
    """Rows that stand beside those of every sweep of a pipeline, its language models' among them."""
    return [*BASELINES, *(row for scorer in direct_vllms(config.vllms) for row in scorer.rows)]


def _resolve(row: RowSection, known: Mapping[str, SweepRow], config: PipelineConfig, path: str, where: str) -> SweepRow:
    if row.start is not None and row.start not in known:
        raise UserError(
            "a row starts from one that is not there",
            where=f"{path}, key '{where}.from'",
            expected=nearest(row.start, known),
            got=row.start,
        )
    if "seeds" in row.train:
        raise UserError("all rows have the same seeds", where=f"{path}, key '{where}.train.seeds'", fix="set seeds")
    start = known[row.start] if row.start else SweepRow("", None, {}, MultiLevelConfig(), config.train)
    # Another method has other keys, so there nothing but its own defaults is started from.
    is_same = row.student.get("method", start.student.method) == start.student.method
    student = {**(start.student.model_dump(mode="json") if is_same else {}), **row.student}
    train = {**start.train.model_dump(mode="json"), **row.train}
    changes = row.student | {f"train.{key}": value for key, value in row.train.items()}
    return SweepRow(
        row.name,
        row.start,
        changes,
        parse_student(student, path, f"{where}.student"),
        parse_section(TrainConfig, train, path, f"{where}.train"),
    )


def _combinations(grid: GridSection | None) -> list[RowSection]:
    if grid is None:
        return []
    keys = [*(("student", key) for key in grid.student), *(("train", key) for key in grid.train)]
    rows = []
    for values in product(*grid.student.values(), *grid.train.values()):
        chosen: dict[str, dict[str, Any]] = {"student": {}, "train": {}}
        for (section, key), value in zip(keys, values, strict=True):
            chosen[section][key] = value
        parts = [f"{key}-{_short(value)}" for (_, key), value in zip(keys, values, strict=True)]
        name = "_".join([*filter(None, [grid.start]), *parts])
        rows.append(RowSection.model_validate({"name": name, "from": grid.start, **chosen}))
    return rows


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower()
