"""A checked pipeline file for a folder of images and a list of phrases, and what its run will cost.

Nothing but NAME.yaml is written, and an older one is never replaced.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from textwrap import indent
from timeit import repeat

import numpy as np
import torch

from hoi.cache.build.worker import release
from hoi.cache.plan import splits_of
from hoi.cache.tools.estimate import ASSUMED_PAIRS, PlanReport, plan
from hoi.config import FolderDataset, PipelineConfig, parse_config
from hoi.config.loading import parse_yaml
from hoi.datasets import UnreadableImage, load_vocabulary, open_images
from hoi.datasets.images import SUFFIXES, list_images, read_image
from hoi.datasets.vocabulary_file import read_vocabulary
from hoi.detectors import build_detector
from hoi.errors import UserError, command
from hoi.evaluation.rows import align
from hoi.files import HF_HUB, LOCAL_DIR
from hoi.machine import choose_device
from hoi.project.dataset_checks import Finding, Level, check_language, collect, first_of, sample_of
from hoi.project.doctor import check_detector, check_teacher
from hoi.prompts import interaction_prompts
from hoi.teachers import build_teacher
from hoi.vocabulary import NO_OBJECT, Vocabulary
from hoi.weights import RANDOM

OPEN_CLIP_DEFAULT = "ViT-B-16-quickgelu/openai"
STEPS, MAX_EPOCHS, BATCH_IMAGES = 500, 200, 32
"""What a small folder is trained with: about as many steps as the embedded world's students take. [choice]"""
TRAIN_SHARE = 0.8
SHARDS, MIN_SHARD, MAX_SHARD = 8, 16, 64
"""Shards of a small folder, so that several workers have something to do; images of a shard: each pays for whole
batches of crops, so fewer would waste time."""
CROPS_PER_PAIR = 1.4
"""Crops of a pair and its share of the boxes' own, in photographs of people. [choice]"""
TIMED_CROPS = 8
DECODED_IMAGES, TIMED_IMAGES = 60, 4
"""Images that are decoded to see whether they can be, and images that go through the models to measure the time."""


@dataclass(frozen=True)
class Project:
    """What a new project is made of; the pipeline file and the folders of outputs and cache have its name."""

    name: str
    images: str  # a folder
    phrases: str  # a vocabulary file
    detector: str = "fasterrcnn_resnet50_fpn_v2"
    """torchvision's name; a COCO result file (`*.json`); or `hf-hub:` / `local-dir:` for OWLv2 and Grounding DINO."""
    instances: str | None = None
    """COCO instances file of a result file."""
    clip: str = OPEN_CLIP_DEFAULT
    """`MODEL/TAG` of open_clip, `hf-hub:owner/name` or `local-dir:folder`."""


@dataclass(frozen=True)
class Report:
    """The pipeline file that was written, the phrases as they were understood, and what was found on the way."""

    path: Path
    vocabulary: str
    findings: tuple[Finding, ...]
    costs: str
    config: PipelineConfig

    @property
    def num_errors(self) -> int:
        return sum(finding.level == "error" for finding in self.findings)

    def __str__(self) -> str:
        first, lines = "next:", next_commands(self.config, self.path)
        if self.num_errors:
            errors = f"{self.num_errors} error{'s' if self.num_errors > 1 else ''}"
            first = f"mend {errors} (see above), then:"
            lines.insert(0, command("doctor", config=self.path))
        parts = [self.vocabulary, "\n".join(map(str, self.findings)), self.costs, f"wrote {self.path}"]
        return "\n\n".join([*filter(None, parts), "\n  ".join([first, *lines])])


def write_project(project: Project, out: Path) -> Report:
    """Write the pipeline file into the folder `out`, and look at all that it names.

    Raises:
        UserError: the file is there already, or name, images, phrases, detector or CLIP are wrong; nothing is written.
    """
    path = out / f"{project.name}.yaml"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", project.name):
        expected = "letters, digits, - and _, the first a letter or a digit"
        raise UserError("a file and a folder will have this name", where="--name", expected=expected, got=project.name)
    if path.exists():
        raise UserError("this pipeline file is there already", where=path, fix="take another name, or delete the file")
    names = list_images(project.images)
    if not names:
        what, expected = "there is no image in the folder", ", ".join(sorted(SUFFIXES))
        raise UserError(what, where=project.images, expected=expected, fix="give a folder of images")
    vocabulary = read_vocabulary(project.phrases)
    text = pipeline_text(project, len(names))
    config = parse_config(parse_yaml(text, str(path)), str(path))
    findings = [*check_language(config.dataset), *_check_images(config, names), *_check_splits(config)]
    is_loaded, of_models = _check_models(config, vocabulary, names)
    costs = _costs(config, is_loaded)
    out.mkdir(parents=True, exist_ok=True)
    with open(path, "x", encoding="utf-8") as file:
        file.write(text)
    return Report(path, describe(config, vocabulary), (*findings, *of_models), costs, config)


def next_commands(config: PipelineConfig, path: Path) -> list[str]:
    """Return the commands that lead from the pipeline file to pictures."""
    assert isinstance(config.dataset, FolderDataset)
    stages = [command(verb, config=path) for verb in ("teacher-cache", "train", "quality")]
    return [*stages, command("predict", config=path, images=config.dataset.images, out=f"{config.output}/pictures")]


def describe(config: PipelineConfig, vocabulary: Vocabulary) -> str:
    """Return the phrases as they were understood: verb, object, the detector's class, and what the teacher is asked."""
    prompts = interaction_prompts(vocabulary, config.teacher.prompts, config.teacher.no_interaction_prompts)
    lines = []
    for (verb, noun), texts in zip(vocabulary.interactions, prompts, strict=True):
        seen = "no object" if noun == NO_OBJECT else vocabulary.class_of(noun)
        lines.append((verb, noun, seen, " | ".join(texts)))
    table = align(("verb", "object", "detected as", "asked of CLIP"), lines, left=True)
    return f"{len(vocabulary)} phrases as they were understood\n{indent(table, '  ')}"


def _check_images(config: PipelineConfig, names: Sequence[str]) -> list[Finding]:
    dataset = config.dataset
    assert isinstance(dataset, FolderDataset)
    folder, suffixes = Path(dataset.images), Counter(PurePath(name).suffix.lower() for name in names)
    decoded = sample_of(names, DECODED_IMAGES)

    def reason(name: str) -> str | None:
        try:
            read_image(folder / name, dataset.max_image_pixels)
        except UnreadableImage as error:
            return f"{name} ({error})"
        return None

    with ThreadPoolExecutor(4) as pool:
        bad = list(filter(None, pool.map(reason, decoded)))
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common())
    what = f"{len(names)} images ({kinds}), {len(decoded)} of them decoded"
    if not bad:
        return [Finding("ok", what, str(folder))]
    level: Level = "warning"
    fix = "they will be left out, and listed with their reasons"
    if len(bad) / len(decoded) > config.cache.max_failed_share:
        level, fix = "error", "copy them again or take them out"
    return [Finding(level, f"{what}: some cannot be read", str(folder), None, first_of(bad), fix)]


def _check_splits(config: PipelineConfig) -> Iterator[Finding]:
    for split in splits_of(config):
        try:
            yield Finding("ok", f"split {split}: {len(open_images(config.dataset, split).image_ids)} images")
        except UserError as error:
            fix = "add images, or change dataset.splits in the file: with a few dozen images no split is empty"
            yield Finding("error", error.what, config.dataset.name, "at least one image", "none", fix)


def _check_models(config: PipelineConfig, vocabulary: Vocabulary, names: Sequence[str]) -> tuple[bool, list[Finding]]:
    """Return whether detector and teacher load without downloading anything, and all that was found."""

    def classes() -> Iterator[Finding]:
        untrained = config.detector.with_random_weights()
        if untrained is not None:
            build_detector(untrained, vocabulary, "cpu", config.dataset)
            name = getattr(config.detector, "model", config.detector.name)
            yield Finding("ok", f"detector {name}: knows all {len(vocabulary.objects)} objects")

    findings = collect(lambda: check_detector(config.detector, vocabulary, config.dataset, names, download=False))
    if any(finding.level == "warning" for finding in findings):
        # Weights are not needed to see which classes they know.
        findings += collect(classes)
    findings += collect(lambda: check_teacher(config.teacher, download=False))
    return all(finding.level == "ok" for finding in findings), findings


def _costs(config: PipelineConfig, is_loaded: bool) -> str:
    """Say what stages one and two will take; some images go through the models if they are all here."""
    try:
        report = plan(config, TIMED_IMAGES) if is_loaded else _with_seconds(config, plan(config))
    except UserError as error:
        return f"costs: not known, {error.what}"
    finally:
        release()
    images = sum(split.plan.num_images for split in report.splits)
    in_training = next((s.plan.num_images for s in report.splits if s.plan.split == config.train.split), 0)
    steps = config.train.epochs * -(-in_training // config.train.batch_images)
    return (
        f"stage one: {images} images, about {images * report.density.pairs:,.0f} pairs\n{report}\n"
        f"stage two: {steps} steps from the cache, a minute or a few"
    )


def _with_seconds(config: PipelineConfig, report: PlanReport) -> PlanReport:
    """Add the time of the same architectures at random weights, which are as fast as any others."""
    device = choose_device(config.cache.device, "cache.device").type
    teacher = build_teacher(config.teacher.model_copy(update={"pretrained": RANDOM}), device)
    side = teacher.crop_style.size_px
    crops = torch.zeros(TIMED_CROPS, 3, side, side, dtype=torch.uint8, device=device)
    per_crop = min(repeat(lambda: teacher.encode_crops(crops).cpu(), number=1, repeat=2)) / TIMED_CROPS
    seconds = per_crop * (1 + CROPS_PER_PAIR * ASSUMED_PAIRS * len(config.teacher.crop.margins))
    untrained = config.detector.with_random_weights()
    # None for detectors that only look boxes up, and where the architecture is not here.
    if untrained is not None:
        detector = build_detector(untrained, load_vocabulary(config.dataset), device, config.dataset)
        image = np.full((480, 640, 3), 127, np.uint8)
        seconds += min(repeat(lambda: detector.detect([image], ["timed"]), number=1, repeat=2))
    source = f"{ASSUMED_PAIRS:g} pairs assumed; time measured here with random weights in place of those to come"
    density = replace(report.density, seconds=seconds, source=source)
    splits = tuple(replace(split, worker_seconds=split.num_missing_images * seconds) for split in report.splits)
    return replace(report, density=density, splits=splits)


def pipeline_text(project: Project, num_images: int) -> str:
    """Return the pipeline file of a project, with a comment at each key that its owner may want to change.

    Raises UserError: detector or CLIP are not understood, or a path is none that the file could name.
    """
    _refuse_unwritable(project)
    path, name = f"{project.name}.yaml", project.name
    steps = max(1, round(num_images * TRAIN_SHARE / BATCH_IMAGES))
    epochs = max(20, min(MAX_EPOCHS, -(-STEPS // steps)))
    images_per_shard = max(MIN_SHARD, min(MAX_SHARD, -(-num_images // SHARDS)))
    return f"""\
# {name}: a detector of one's own interactions, without any label. Made by `hoi new`; yours to edit.
#
#   {command("teacher-cache", config=path)}   detector and CLIP over every image, once
#   {command("train", config=path)}           the student, from the cache alone
#   {command("quality", config=path)}         what can be said without labels
#   {command("predict", config=path, images="FOLDER", out=f"outputs/{name}/pictures")}   pictures
#
# Any key can be replaced on the command line: {command("train", "train.epochs=60", config=path)}
# Every key, its meaning and its default: hoi/config. The file of phrases: docs/own-photographs.md.

name: {_text(name)}
output: {_text(f"outputs/{name}")}

dataset:
  name: folder
  images: {_text(project.images)}   # searched below, too
  vocabulary: {_text(project.phrases)}
  splits: {{train: {TRAIN_SHARE:g}, test: {1 - TRAIN_SHARE:.1f}}}   # by hash of the name: more images never move others
  # annotations: FILE.jsonl   # {{"file_name", "human_xyxy", "object_xyxy", "verb", "object"}} a line; only ever scores

detector:
{_detector(project)}

# Which detections pair up. Fewer people and objects make the cache smaller and faster.
pairs:
  min_score: 0.2
  max_humans: 10
  max_objects: 10

teacher:
{_teacher(project.clip)}

cache:
  folder: {_text(f"cache/{name}")}
  images_per_shard: {images_per_shard}
  max_failed_share: 0.1   # stage one stops where more of the images than this cannot be read

students:
  student:                # no label; explained in hoi/students/multilevel/settings.py
    method: multilevel
    targets: {{image: pairs}}
    gate: {{exponent: 0.5}}

train:
  seeds: [0]
  epochs: {epochs}   # about {STEPS} steps in all: small folders take more rounds

evaluation:
  tune_split: train       # read only if there are annotations
"""


def _detector(project: Project) -> str:
    value = project.detector
    kinds = {
        "torchvision": """\
  # name: torchvision     # COCO's 80 classes; weights are downloaded once (170 MB)
  # model: fasterrcnn_resnet50_fpn_v2""",
        "open_vocabulary": """\
  # name: open_vocabulary # any words as objects; pip install 'hoi-distill[open-vocabulary]'
  # model: hf-hub:google/owlv2-base-patch16-ensemble   # or hf-hub:IDEA-Research/grounding-dino-tiny""",
        "precomputed": """\
  # name: precomputed     # anybody's boxes, as COCO result JSON
  # results: FILE.json
  # instances: FILE.json  # COCO instances JSON: which image has which id""",
    }
    if value.startswith((LOCAL_DIR, HF_HUB)):
        chosen, kind = f"  name: open_vocabulary   # any words as objects\n  model: {_text(value)}", "open_vocabulary"
    elif value.endswith(".json"):
        if project.instances is None:
            what = "precomputed detections need to say which image has which id"
            expected = "--instances FILE.json, a COCO instances file"
            raise UserError(what, where=f"--detector {value}", expected=expected, fix="give it as well")
        chosen = f"  name: precomputed\n  results: {_text(value)}\n  instances: {_text(project.instances)}"
        kind = "precomputed"
    else:
        chosen = (
            f"  name: torchvision       # COCO's 80 classes\n  model: {_text(value)}   # weights are downloaded once"
        )
        kind = "torchvision"
    return "\n".join([chosen, *(text for name, text in kinds.items() if name != kind)])


def _teacher(clip: str) -> str:
    model, slash, tag = clip.partition("/")
    if clip.startswith((LOCAL_DIR, HF_HUB)):
        chosen = f"  model: {_text(clip)}"
    elif model and slash and tag:
        chosen = f"  model: {_text(model)}\n  pretrained: {_text(tag)}   # downloaded once"
    else:
        expected = f"MODEL/TAG, as {OPEN_CLIP_DEFAULT}, or {LOCAL_DIR}FOLDER, or {HF_HUB}owner/name"
        raise UserError("the CLIP is not understood", where="--clip", expected=expected, got=clip)
    return f"""{chosen}
  # model: ViT-B-16-SigLIP2     # stronger open weights, read by sigmoids; pip install transformers
  # pretrained: webli
  # model: {LOCAL_DIR}FOLDER       # an open_clip folder (open_clip_config.json and weights): nothing is downloaded"""


def _text(value: str) -> str:
    """Return a text as YAML: plain where that is safe, else quoted; `true`, `null` and `.inf` are no text for YAML."""
    plain = value.replace("-", "").replace("_", "").replace(".", "").replace("/", "")
    if plain.isalnum() and plain[0].isalpha() and value[0] != "-" and parse_yaml(value, "a text") == value:
        return value
    # YAML's own escapes: those of JSON are halves of a letter beyond 16 bits, and YAML folds a line at more letters.
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in json.dumps(value, ensure_ascii=False))


def _refuse_unwritable(project: Project) -> None:
    """Raise where a path has `${`, which pipeline files take for an environment variable, or is not UTF-8."""
    for option in ("images", "phrases", "detector", "instances", "clip"):
        value = getattr(project, option) or ""
        if "${" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
            what, expected = "a pipeline file cannot name this", "a path in UTF-8, without ${"
            fix = "rename it, or make a link to it"
            raise UserError(what, where=f"--{option}", expected=expected, got=ascii(value), fix=fix)
