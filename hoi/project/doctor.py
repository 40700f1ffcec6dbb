"""What is missing or wrong in what a pipeline file names, and what mends it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hoi.cache.plan import splits_of
from hoi.cache.tools.estimate import free_bytes
from hoi.config import DatasetSettings, DetectorSettings, PipelineConfig, TeacherConfig
from hoi.datasets import load_vocabulary, open_images
from hoi.detectors import ListsImages, build_detector
from hoi.errors import UserError, command
from hoi.files import size_text
from hoi.project.dataset_checks import Finding, check_dataset, collect, first_of
from hoi.teachers import build_teacher
from hoi.vocabulary import Vocabulary

BYTES_PER_IMAGE = 100_000
"""What an image takes in a cache, roughly: 15 pairs, 600 interactions, 512 to 1024 wide."""
BYTES_PER_MAP = 500_000
"""What its spatial map adds, at most about this."""


def check_teacher(config: TeacherConfig, download: bool) -> Iterator[Finding]:
    """Load the teacher as stage one would, unless that might download its weights and nobody allowed it."""
    if not download and config.may_download():
        fix = f"{command('doctor', all=True)} loads it, which downloads what is missing"
        what = f"the teacher {config.model} ({config.pretrained}) was not loaded: it may have to be downloaded"
        yield Finding("warning", what, fix=fix)
        return
    if (notice := config.activation_notice()) is not None:
        yield Finding("warning", notice, "teacher.model")
    teacher = build_teacher(config.model_copy(update={"precision": "fp32"}), "cpu")
    yield Finding("ok", f"teacher {config.model}: loads, takes crops of {teacher.crop_style.size_px} px")


def check_detector(
    config: DetectorSettings, vocabulary: Vocabulary, dataset: DatasetSettings, image_ids: Sequence[str], download: bool
) -> Iterator[Finding]:
    """Build the detector as stage one would, on the CPU; one that only looks boxes up has to list these images."""
    absent = None if download else config.absent_weights()
    if absent is not None:
        url, folder = absent
        fix = f"let the first run download {url}, or put it into {folder}"
        yield Finding("warning", f"the detector's weights {config.weights_name} are not here yet", folder, fix=fix)
        return
    detector = build_detector(config, vocabulary, "cpu", dataset)
    yield Finding("ok", f"detector {config.name}: loads, and knows all {len(vocabulary.objects)} objects")
    if isinstance(detector, ListsImages):
        unlisted = [image_id for image_id in image_ids if not detector.lists(image_id)]
        if unlisted:
            what = "images of the data set are not in the precomputed detections"
            fix = "run the detector on these images too, or name the images in its file as the data set does"
            yield Finding("error", what, detector.listed_in, f"all {len(image_ids)}", first_of(unlisted), fix)
        else:
            yield Finding("ok", f"precomputed detections list all {len(image_ids)} images", detector.listed_in)
        for notice in detector.notices(image_ids):
            yield Finding("warning", notice, detector.listed_in)


@dataclass(frozen=True)
class Report:
    """All findings, in the order in which things were looked at."""

    name: str
    findings: tuple[Finding, ...]

    @property
    def _counts(self) -> Counter[str]:
        return Counter(finding.level for finding in self.findings)

    @property
    def num_errors(self) -> int:
        return self._counts["error"]

    def __str__(self) -> str:
        counts = self._counts
        verdict = f"{self.name}: {counts['error']} errors, {counts['warning']} warnings, {counts['ok']} checks passed"
        return "\n".join([*map(str, self.findings), verdict])

    def to_dict(self) -> dict[str, Any]:
        counts = {"num_errors": self.num_errors, "num_warnings": self._counts["warning"]}
        return {"name": self.name, **counts, "findings": [asdict(finding) for finding in self.findings]}


def examine(config: PipelineConfig, every: bool = False) -> Report:
    """Look at all that a pipeline file names: data set, detector, teacher, disk.

    `every` has all image files opened, not a sample, and weights loaded even if that downloads them.
    """

    def detector() -> Iterator[Finding]:
        vocabulary = load_vocabulary(config.dataset)
        yield from check_detector(config.detector, vocabulary, config.dataset, _image_ids(config), every)

    findings = check_dataset(config.dataset, every)
    findings += collect(detector)
    findings += collect(lambda: check_teacher(config.teacher, every))
    findings += collect(lambda: _check_disk(config))
    return Report(config.name, tuple(findings))


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
    folder = Path(config.cache.folder)
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    per_image = BYTES_PER_IMAGE + (BYTES_PER_MAP if config.teacher.spatial_map else 0)
    needed = max(0, len(_image_ids(config)) * per_image - there)
    free = free_bytes(folder)
    what = f"cache: about {size_text(needed)} to come, {size_text(free)} free"
    if free < needed:
        fix = "free space, or set cache.folder to a larger disk"
        yield Finding("error", "the cache will not fit on the disk", str(folder), what, fix=fix)
    else:
        yield Finding("ok", what, str(folder))
