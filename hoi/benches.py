"""A bench file to one sweep for each of its worlds, and the differences that are to be shown.

    name: bench
    base: pipeline.yaml            # of data set `world`
    output: outputs/bench
    worlds:                        # by seed; each has an output and a cache of its own, unless a cache is named
      - {seed: 0, cache: outputs/world/cache}
      - {seed: 1}
    differences:
      - {better: best, than: direct_clip_tuned, means: [full, rare]}
    headroom:
      - {of: best, start: direct_clip_tuned, goal: labels_on_detections}

The other keys are a sweep file's: hoi/sweeps.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeInt

from hoi.config import Section, parse_section
from hoi.errors import UserError, nearest
from hoi.matching import CEILING
from hoi.strict_yaml import read_yaml
from hoi.sweeps import Sweep, SweepSection, resolve_sweep, untrained_rows

OWN_KEYS = {
    "dataset.seed": "worlds",
    "cache.folder": "worlds",
    "output": "output",
    "evaluation.intervals": "differences",
}
"""Keys of the pipeline file that each world has for itself → where the bench file says them."""

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
    """A checked bench file.

    Args:
        name: Of its tables.
        output: Where they go.
        sweeps: By world seed.
        differences, headroom: What is shown of every world.
    """

    name: str
    output: Path
    sweeps: dict[int, Sweep]
    differences: list[DifferenceSection]
    headroom: list[HeadroomSection]


def load_bench(path: str | Path, overrides: Sequence[str] = ()) -> Bench:
    """Bench file plus `section.key=value` overrides of its pipeline file to a checked bench.

    Raises:
        UserError: as `load_sweep`; a world is there twice; a row is named that is not there; or an override is of a key
            that the bench file sets.
    """
    plain = read_yaml(path)
    if not isinstance(plain, dict):
        raise UserError("this is no bench file", where=path, expected="keys and values", got=type(plain).__name__)
    section = parse_section(BenchSection, plain, str(path))
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
    sweeps = {
        world.seed: resolve_sweep(section, str(path), [*overrides, *_own(section, world)]) for world in section.worlds
    }
    data_set = sweeps[seeds[0]].config.dataset.name
    if data_set != "world":
        raise UserError("only the data set 'world' has worlds", where=section.base, got=f"dataset.name {data_set}")
    first = sweeps[seeds[0]]
    known = [*untrained_rows(first.config), CEILING, *(row.name for row in first.rows)]
    for key, name in _named(section):
        if name not in known:
            raise UserError(
                "a row is named that is not there",
                where=f"{path}, key '{key}'",
                expected=nearest(name, known),
                got=name,
            )
    return Bench(section.name, Path(section.output), sweeps, section.differences, section.headroom)


def _own(section: BenchSection, world: WorldSection) -> list[str]:
    """What a world has for itself, as overrides of the pipeline file."""
    output = f"{section.output}/world-{world.seed}"
    further = sorted({mean for shown in section.differences for mean in shown.means} - {"full"})
    return [
        f"dataset.seed={world.seed}",
        f"output={output}",
        f"cache.folder={world.cache or f'{output}/cache'}",
        f"evaluation.intervals=[{', '.join(further)}]",
    ]


def _named(section: BenchSection) -> Iterator[tuple[str, str]]:
    for number, shown in enumerate(section.differences):
        yield from ((f"differences.{number}.{key}", getattr(shown, key)) for key in ("better", "than"))
    for number, way in enumerate(section.headroom):
        yield from ((f"headroom.{number}.{key}", getattr(way, key)) for key in ("of", "start", "goal"))
