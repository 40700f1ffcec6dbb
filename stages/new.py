"""A folder of images and a list of phrases to a pipeline file of one's own, checked, and what its run will cost.

    python -m stages.new --name NAME --images FOLDER --phrases FILE [--detector ...] [--clip ...]

Nothing but NAME.yaml is written, and an older one is never replaced.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from os.path import expanduser
from pathlib import Path, PurePath
from shlex import quote

import numpy as np

from cache.plan import splits_of
from hoi.config import PipelineConfig, parse_config
from hoi.datasets import UnreadableImage, open_images
from hoi.datasets.findings import Finding, Level, first_of
from hoi.datasets.folder import list_images
from hoi.datasets.images import SUFFIXES, read_image
from hoi.datasets.vocabulary_file import read_vocabulary
from hoi.errors import UserError, run_program
from hoi.prompts import interaction_prompts
from hoi.strict_yaml import parse_yaml
from hoi.vocabulary import NO_OBJECT, Vocabulary
from stages.command_line import Parser
from stages.new_file import OPEN_CLIP_DEFAULT, Project, pipeline_text

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
    from stages.new_costs import check_models, costs

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
    assert config.dataset.name == "folder"
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
    assert dataset.name == "folder"
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
        prog="python -m stages.new", description="A folder of images and a list of phrases to a checked pipeline file."
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
