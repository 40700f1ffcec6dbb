"""Whether the teacher can be loaded."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip

from hoi.cache.plan import splits_of
from hoi.cli.command_line import stage_parser
from hoi.config import (
    DatasetSettings,
    DetectorSettings,
    PipelineConfig,
    TeacherConfig,
    load_config,
)
from hoi.datasets import load_vocabulary, open_images
from hoi.detectors import ListsImages, build_detector
from hoi.errors import UserError, run_program
from hoi.files import write_json
from hoi.project.dataset_checks import check_dataset
from hoi.project.findings import Finding, collect, first_of
from hoi.teachers.loading import HF_HUB, load_model
from hoi.vocabulary import Vocabulary
from hoi.weights import RANDOM


def check_teacher(config: TeacherConfig, download: bool) -> Iterator[Finding]:
    """Loads the teacher as stage one would, unless that might download its weights and nobody allowed it.

    Raises:
        UserError: it cannot be loaded; the message says why.
    """
    tag = config.pretrained
    may_download = config.model.startswith(HF_HUB) or (
        tag is not None and tag != RANDOM and not Path(tag).is_file() and (config.model, tag) in _published()
    )
    if may_download and not download:
        fix = "run make doctor ALL=1 to load it, which downloads what is missing"
        yield Finding(
            "warning", f"the teacher {config.model} ({tag}) was not loaded: it may have to be downloaded", fix=fix
        )
        return
    loaded = load_model(config)
    yield Finding("ok", f"teacher {config.model}: loads, takes crops of {loaded.style.size_px} px")


def _published() -> set[tuple[str, str]]:
    return {(name, tag) for name, tag in open_clip.list_pretrained()}


def check_detector(
    config: DetectorSettings, vocabulary: Vocabulary, dataset: DatasetSettings, image_ids: Sequence[str], download: bool
) -> Iterator[Finding]:
    """Builds the detector as stage one would, on the CPU.

    Args:
        config: Its section.
        vocabulary: Whose objects it has to know.
        dataset: What it will run on.
        image_ids: Of all splits.
        download: Whether weights may be downloaded for it.

    Raises:
        UserError: it cannot be built; the message says why.
    """
    absent = None if download else config.absent_weights()
    if absent is not None:
        url, folder = absent
        yield Finding(
            "warning",
            f"the detector's weights {config.weights_name} are not here yet",
            folder,
            fix=f"let the first run download {url}, or put it into {folder}",
        )
        return
    detector = build_detector(config, vocabulary, "cpu", dataset)
    yield Finding("ok", f"detector {config.name}: loads, and knows all {len(vocabulary.objects)} objects")
    if isinstance(detector, ListsImages):
        unlisted = [image_id for image_id in image_ids if not detector.lists(image_id)]
        if unlisted:
            yield Finding(
                "error",
                "images of the data set are not in the precomputed detections",
                detector.listed_in,
                f"all {len(image_ids)}",
                first_of(unlisted),
                "run the detector on these images too, or name the images in its file as the data set does",
            )
        else:
            yield Finding("ok", f"precomputed detections list all {len(image_ids)} images", detector.listed_in)


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

    vocabulary = load_vocabulary(config.dataset)
    yield from check_detector(config.detector, vocabulary, config.dataset, _image_ids(config), every)


def _check_teacher(config: PipelineConfig, every: bool) -> Iterator[Finding]:

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
