"""A folder of images and a list of phrases to a pipeline file of one's own, checked, and what its run will cost.

    python -m hoi.project.new --name NAME --images FOLDER --phrases FILE [--detector ...] [--clip ...]

Nothing but NAME.yaml is written, and an older one is never replaced.
"""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from os.path import expanduser
from pathlib import Path, PurePath
from shlex import quote

import numpy as np
import torch

from hoi.cache.build.models import release
from hoi.cache.plan import splits_of
from hoi.cache.tools.estimate import ASSUMED_PAIRS, PlanReport, plan
from hoi.cli.command_line import Parser
from hoi.config import FolderDataset, PipelineConfig, TeacherConfig, parse_config
from hoi.config.loading import parse_yaml
from hoi.datasets import UnreadableImage, load_vocabulary, open_images
from hoi.datasets.images import SUFFIXES, list_images, read_image
from hoi.datasets.vocabulary_file import read_vocabulary
from hoi.detectors import build_detector
from hoi.errors import UserError, run_program
from hoi.machine import choose_device
from hoi.project.doctor import check_detector, check_teacher
from hoi.project.findings import Finding, Level, collect, first_of
from hoi.project.pipeline_file import OPEN_CLIP_DEFAULT, Project, pipeline_text
from hoi.prompts import interaction_prompts
from hoi.teachers import build_teacher
from hoi.vocabulary import NO_OBJECT, Vocabulary
from hoi.weights import RANDOM

CROPS_PER_PAIR = 1.4
"""Crops of a pair and its share of the boxes' own, in photographs of people. [choice]"""
TIMED_CROPS = 8


def check_models(config: PipelineConfig, vocabulary: Vocabulary, names: Sequence[str]) -> tuple[bool, list[Finding]]:
    """Whether detector and teacher load without downloading anything, and all that was found.

    Args:
        config: Of the project.
        vocabulary: Whose objects the detector has to know.
        names: Ids of all images.
    """
    found = collect(lambda: check_detector(config.detector, vocabulary, config.dataset, names, download=False))
    if any(finding.level == "warning" for finding in found):
        # Weights are not needed to see which classes they know.
        found += collect(partial(_check_classes, config, vocabulary))
    found += collect(lambda: check_teacher(config.teacher, download=False))
    return all(finding.level == "ok" for finding in found), found


def _check_classes(config: PipelineConfig, vocabulary: Vocabulary) -> Iterator[Finding]:
    untrained = config.detector.with_random_weights()
    if untrained is not None:
        build_detector(untrained, vocabulary, "cpu", config.dataset)
        name = getattr(config.detector, "model", config.detector.name)
        yield Finding("ok", f"detector {name}: knows all {len(vocabulary.objects)} objects")


def costs(config: PipelineConfig, is_loaded: bool, num_timed: int) -> str:
    """What stages one and two will take, for people.

    Args:
        config: Of the project.
        is_loaded: Whether all models are here, so that a few images can go through them.
        num_timed: How many.
    """
    try:
        report = plan(config, num_timed if is_loaded else None)
        if not is_loaded:
            report = _with_seconds(config, report)
    except UserError as error:
        return f"costs: not known, {error.what}"
    finally:
        release()
    images = sum(split.num_images for split in report.splits)
    in_training = next((s.num_images for s in report.splits if s.split == config.train.split), 0)
    steps = config.train.epochs * -(-in_training // config.train.batch_images)
    return (
        f"stage one: {images} images, about {images * report.density.pairs:,.0f} pairs\n{report}\n"
        f"stage two: {steps} steps from the cache, a minute or a few"
    )


def _with_seconds(config: PipelineConfig, report: PlanReport) -> PlanReport:
    """A plan with the time of the same architectures at random weights, which are as fast as any others."""
    device = choose_device(config.cache.device, "cache.device").type
    seconds = _detector_seconds(config, device) + _teacher_seconds(config.teacher, device)
    source = f"{ASSUMED_PAIRS:g} pairs assumed; time measured here with random weights in place of those to come"
    density = replace(report.density, seconds=seconds, source=source)
    splits = tuple(replace(split, worker_seconds=split.num_missing_images * seconds) for split in report.splits)
    return replace(report, density=density, splits=splits)


def _detector_seconds(config: PipelineConfig, device: str) -> float:
    """Of one image; 0 for detectors that only look boxes up, and for those whose architecture is not here."""
    untrained = config.detector.with_random_weights()
    if untrained is None:
        return 0.0
    model = build_detector(untrained, load_vocabulary(config.dataset), device, config.dataset)
    image = np.full((480, 640, 3), 127, np.uint8)
    return _best_of(lambda: model.detect([image], ["timed"]))


def _teacher_seconds(teacher: TeacherConfig, device: str) -> float:
    model = build_teacher(teacher.model_copy(update={"pretrained": RANDOM}), device)
    side = model.crop_style.size_px
    crops = torch.zeros(TIMED_CROPS, 3, side, side, dtype=torch.uint8, device=device)
    each = _best_of(lambda: model.encode_crops(crops).cpu()) / TIMED_CROPS
    return each * (1 + CROPS_PER_PAIR * ASSUMED_PAIRS * len(teacher.crop.margins))


def _best_of(run: Callable[[], object], times: int = 2) -> float:
    """Seconds of the quicker call; the first pays for what is made once."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


SAMPLE = 60
"""Images that are decoded to see whether they can be."""
TIMED = 4
"""Images that go through the models to measure the time."""


@dataclass(frozen=True)
class Report:
    """What was written and what was found on the way.

    Args:
        path: The pipeline file.
        vocabulary: Phrases as they were understood.
        findings: In the order in which things were looked at.
        costs: What the run will take, for people.
        config: Of the file.
    """

    path: Path
    vocabulary: str
    findings: tuple[Finding, ...]
    costs: str
    config: PipelineConfig

    @property
    def num_errors(self) -> int:
        return sum(finding.level == "error" for finding in self.findings)

    def __str__(self) -> str:
        ahead = next_commands(self.config, self.path)
        errors = f"{self.num_errors} error{'s' if self.num_errors > 1 else ''}"
        first = "next:" if not self.num_errors else f"mend {errors} (see above), then:"
        if self.num_errors:
            ahead.insert(0, f"make doctor CONFIG={self.path}")
        parts = [self.vocabulary, "\n".join(map(str, self.findings)), self.costs, f"wrote {self.path}"]
        return "\n\n".join([*filter(None, parts), "\n  ".join([first, *ahead])])


def main(project: Project, out: Path) -> Report:
    """Writes the pipeline file, then looks at all that it names.

    Args:
        project: `num_images` is counted here.
        out: Folder of the pipeline file.

    Raises:
        UserError: the file is there already, or name, images, phrases, detector or CLIP are wrong; nothing is written.
    """
    path = out / f"{project.name}.yaml"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", project.name):
        raise UserError(
            "a file and a folder will have this name",
            where="--name",
            expected="letters, digits, - and _, the first a letter or a digit",
            got=project.name,
        )
    if path.exists():
        raise UserError("this pipeline file is there already", where=path, fix="take another name, or delete the file")
    names = list_images(project.images)
    if not names:
        raise UserError(
            "there is no image in the folder",
            where=project.images,
            expected=", ".join(sorted(SUFFIXES)),
            fix="give a folder of images as IMAGES",
        )
    vocabulary = read_vocabulary(project.phrases)
    text = pipeline_text(replace(project, num_images=len(names)))
    config = parse_config(parse_yaml(text, str(path)), str(path))
    found = [*_check_images(config, names), *_check_splits(config)]
    # Imported here: these bring torch, which takes seconds; what is wrong with names is said before.

    loaded, findings = check_models(config, vocabulary, names)
    found += findings
    said = costs(config, loaded, TIMED)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UserError("this pipeline file is there already", where=path, fix="take another name") from None
    return Report(path, describe(config, vocabulary), tuple(found), said, config)


def next_commands(config: PipelineConfig, path: Path) -> list[str]:
    """From the pipeline file to pictures."""
    assert isinstance(config.dataset, FolderDataset)
    # make reads a dollar before the shell does.
    quoted = quote(config.dataset.images).replace("$", "$$")
    return [
        f"make teacher-cache CONFIG={path}",
        f"make train CONFIG={path}",
        f"make quality CONFIG={path}",
        f"make predict CONFIG={path} IMAGES={quoted} OUT={config.output}/pictures",
    ]


def describe(config: PipelineConfig, vocabulary: Vocabulary) -> str:
    """Phrases as they were understood: verb, object, the detector's class, and what the teacher is asked."""
    prompts = interaction_prompts(vocabulary, config.teacher.prompts, config.teacher.no_interaction_prompts)
    lines = [("verb", "object", "detected as", "asked of CLIP")]
    for (verb, thing), texts in zip(vocabulary.interactions, prompts, strict=True):
        seen = "no object" if thing == NO_OBJECT else vocabulary.class_of(thing)
        lines.append((verb, thing, seen, " | ".join(texts)))
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    rows = ("  ".join([*(cell.ljust(w) for cell, w in zip(line, widths, strict=False)), line[3]]) for line in lines)
    return "\n".join([f"{len(vocabulary)} phrases as they were understood", *(f"  {row}" for row in rows)])


def _check_images(config: PipelineConfig, names: Sequence[str]) -> list[Finding]:
    dataset = config.dataset
    assert isinstance(dataset, FolderDataset)
    folder, suffixes = Path(dataset.images), Counter(PurePath(name).suffix.lower() for name in names)
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common())
    rows = np.unique(np.linspace(0, len(names) - 1, min(SAMPLE, len(names))).astype(int))
    opened = [names[row] for row in rows]

    def reason(name: str) -> str | None:
        try:
            read_image(folder / name, dataset.max_image_pixels)
        except UnreadableImage as error:
            return f"{name} ({error})"
        return None

    with ThreadPoolExecutor(4) as pool:
        bad = list(filter(None, pool.map(reason, opened)))
    what = f"{len(names)} images ({kinds}), {len(opened)} of them decoded"
    if not bad:
        return [Finding("ok", what, str(folder))]
    too_many = len(bad) / len(opened) > config.cache.max_failed_share
    fix = "copy them again or take them out" if too_many else "they will be left out, and listed with their reasons"
    level: Level = "error" if too_many else "warning"
    return [Finding(level, f"{what}: some cannot be read", str(folder), None, first_of(bad), fix)]


def _check_splits(config: PipelineConfig) -> list[Finding]:
    found = []
    for split in splits_of(config):
        try:
            found.append(Finding("ok", f"split {split}: {len(open_images(config.dataset, split).image_ids)} images"))
        except UserError as error:
            fix = "add images, or change dataset.splits in the file: with a few dozen images no split is empty"
            found.append(Finding("error", error.what, config.dataset.name, "at least one image", "none", fix))
    return found


def _command(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="python -m hoi.project.new",
        description="A folder of images and a list of phrases to a checked pipeline file.",
    )
    parser.shape = "--name NAME --images FOLDER --phrases FILE"
    _add_options(parser)
    parsed = parser.parse_args(arguments)
    # make leaves a tilde as it is.
    images, phrases = expanduser(parsed.images), expanduser(parsed.phrases)
    project = Project(parsed.name, images, phrases, parsed.detector, parsed.instances, parsed.clip, num_images=0)
    report = main(project, Path(parsed.out))
    print(report)
    return 1 if report.num_errors else 0


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", required=True, help="of the pipeline file and of the folder below outputs")
    parser.add_argument("--images", required=True, metavar="FOLDER", help="searched below, too")
    parser.add_argument("--phrases", required=True, metavar="FILE", help="one a line, 'riding a bicycle'; or YAML")
    parser.add_argument(
        "--detector",
        default="fasterrcnn_resnet50_fpn_v2",
        help="torchvision's name, COCO results FILE.json, or hf-hub:… / local-dir:… of OWLv2 or Grounding DINO "
        "(default: %(default)s)",
    )
    parser.add_argument("--instances", metavar="FILE", help="COCO instances JSON that belongs to results")
    parser.add_argument(
        "--clip",
        default=OPEN_CLIP_DEFAULT,
        help="open_clip's MODEL/TAG, local-dir:FOLDER or hf-hub:owner/name (default: %(default)s)",
    )
    parser.add_argument("--out", default=".", metavar="FOLDER", help="where the pipeline file goes (default: here)")


if __name__ == "__main__":
    run_program(_command)
