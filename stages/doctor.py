"""Before anything long runs: is all that the pipeline file names there, whole, and of one kind?

Data set against what is known of it, annotations against images, detector and teacher against their files, disk space.
Each problem comes with the line that mends it; the exit code is 1 where one would stop a run or falsify its figures.

    python -m stages.doctor [--config pipeline.yaml] [--all] [--json OUT] [section.key=value ...]
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.atomic import write_json
from cache.plan import splits_of
from hoi.config import PipelineConfig, load_config
from hoi.datasets import load_vocabulary, open_images
from hoi.datasets.doctor import check_dataset
from hoi.datasets.findings import Finding, collect
from hoi.errors import UserError, run_program
from stages.command_line import stage_parser

BYTES_PER_IMAGE = 100_000
"""What an image takes in a cache, roughly: 15 pairs, 600 interactions, 512 to 1024 wide."""
BYTES_PER_MAP = 500_000
"""What its spatial map adds, at most about this."""


@dataclass(frozen=True)
class Report:
    """All findings, in the order in which things were looked at."""

    name: str
    findings: tuple[Finding, ...]

    @property
    def num_errors(self) -> int:
        return Counter(finding.level for finding in self.findings)["error"]

    def __str__(self) -> str:
        counts = Counter(finding.level for finding in self.findings)
        verdict = f"{self.name}: {counts['error']} errors, {counts['warning']} warnings, {counts['ok']} checks passed"
        return "\n".join([*map(str, self.findings), verdict])

    def to_dict(self) -> dict[str, Any]:
        """The plain form that goes into JSON."""
        counts = Counter(finding.level for finding in self.findings)
        return {
            "name": self.name,
            "num_errors": counts["error"],
            "num_warnings": counts["warning"],
            "findings": [finding.to_dict() for finding in self.findings],
        }


def main(config: PipelineConfig, every: bool = False) -> Report:
    """Config to what is right and wrong with all that it names.

    Args:
        config: The pipeline file.
        every: Whether all image files are opened, not a sample, and weights are loaded even if that downloads them.
    """
    found = check_dataset(config.dataset, every)
    found += collect(lambda: _check_detector(config, every))
    found += collect(lambda: _check_teacher(config, every))
    found += collect(lambda: _check_disk(config))
    return Report(config.name, tuple(found))


def _check_detector(config: PipelineConfig, every: bool) -> Iterator[Finding]:
    # Imported here: these bring torch, which takes seconds; what the data set lacks is said before.
    from hoi.detectors.doctor import check_detector

    vocabulary = load_vocabulary(config.dataset)
    yield from check_detector(config.detector, vocabulary, config.dataset, _image_ids(config), every)


def _check_teacher(config: PipelineConfig, every: bool) -> Iterator[Finding]:
    from hoi.teachers.doctor import check_teacher

    yield from check_teacher(config.teacher, every)


def _image_ids(config: PipelineConfig) -> list[str]:
    """Of all splits that can be opened; the others are findings of the data set."""
    ids: list[str] = []
    for split in splits_of(config):
        try:
            ids += open_images(config.dataset, split).image_ids
        except UserError:
            continue
    return ids


def _check_disk(config: PipelineConfig) -> Iterator[Finding]:
    """Room for the cache, less what is there of it."""
    folder = Path(config.cache.folder)
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    per_image = BYTES_PER_IMAGE + (BYTES_PER_MAP if config.teacher.spatial_map else 0)
    needed = max(0, len(_image_ids(config)) * per_image - there)
    nearest = next(parent for parent in [folder, *folder.absolute().parents] if parent.exists())
    free = shutil.disk_usage(nearest).free
    what = f"cache: about {needed / 1e9:.1f} GB to come, {free / 1e9:.1f} GB free"
    if free < needed:
        fix = "free space, or set cache.folder to a larger disk"
        yield Finding("error", "the cache will not fit on the disk", str(nearest), what, fix=fix)
    else:
        yield Finding("ok", what, str(nearest))


def _command(arguments: Sequence[str] | None = None) -> int:
    parser = stage_parser("Says what is missing or wrong in what a pipeline file names, and the line that mends it.")
    parser.add_argument("--all", action="store_true", help="open every image; load weights even if that downloads them")
    parser.add_argument("--json", metavar="OUT", help="write the findings to this file, too")
    parsed = parser.parse_args(arguments)
    report = main(load_config(parsed.config, parsed.overrides), parsed.all)
    if parsed.json:
        write_json(Path(parsed.json), report.to_dict())
    print(report)
    return 1 if report.num_errors else 0


if __name__ == "__main__":
    run_program(_command)
