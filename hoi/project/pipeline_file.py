"""The pipeline file of a new project, with a comment at each key that its owner may want to change."""

from __future__ import annotations

import json
from dataclasses import dataclass

from hoi.config.loading import parse_yaml
from hoi.errors import UserError

OPEN_CLIP_DEFAULT = "ViT-B-16-quickgelu/openai"
LOCAL, HUB = "local-dir:", "hf-hub:"
STEPS, MAX_EPOCHS, BATCH_IMAGES = 500, 200, 32
"""What a small folder is trained with: about as many steps as the embedded world's students take. [choice]"""
TRAIN_SHARE = 0.8
SHARDS, MIN_SHARD, MAX_SHARD = 8, 16, 64
"""Shards of a small folder, so that several workers have something to do; images of a shard: each pays for whole
batches of crops, so fewer would waste time."""


@dataclass(frozen=True)
class Project:
    """What a new project is made of.

    Args:
        name: Of the pipeline file and its folder of outputs.
        images: Folder of images.
        phrases: Vocabulary file.
        detector: torchvision's name; a COCO result file (`*.json`); or `hf-hub:` / `local-dir:` for OWLv2 and Grounding
            DINO.
        instances: COCO instances file of a result file.
        clip: `MODEL/TAG` of open_clip, `hf-hub:owner/name` or `local-dir:folder`.
        num_images: How many images there are.
    """

    name: str
    images: str
    phrases: str
    detector: str
    instances: str | None
    clip: str
    num_images: int

    @property
    def epochs(self) -> int:
        """Few images take more rounds."""
        steps = max(1, round(self.num_images * TRAIN_SHARE / BATCH_IMAGES))
        return max(20, min(MAX_EPOCHS, -(-STEPS // steps)))

    @property
    def images_per_shard(self) -> int:
        """What an interruption loses at most."""
        return max(MIN_SHARD, min(MAX_SHARD, -(-self.num_images // SHARDS)))


def pipeline_text(project: Project) -> str:
    """A project to its pipeline file.

    Raises:
        UserError: detector or CLIP are not understood, or a path is none that the file could name.
    """
    _refuse_unwritable(project)
    return f"""\
# {project.name}: a detector of one's own interactions, without any label. Made by `make new`; yours to edit.
#
#   make teacher-cache CONFIG={project.name}.yaml   detector and CLIP over every image, once
#   make train CONFIG={project.name}.yaml           the student, from the cache alone
#   make quality CONFIG={project.name}.yaml         what can be said without labels
#   make predict CONFIG={project.name}.yaml IMAGES=FOLDER OUT=outputs/{project.name}/pictures   pictures
#
# Any key can be replaced on the command line: make train CONFIG={project.name}.yaml train.epochs=60
# Every key, its meaning and its default: hoi/config. The file of phrases: docs/own-photographs.md.

name: {_text(project.name)}
output: {_text(f"outputs/{project.name}")}

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
  folder: {_text(f"outputs/{project.name}/cache")}
  images_per_shard: {project.images_per_shard}
  max_failed_share: 0.1   # stage one stops where more of the images than this cannot be read

students:
  student:                # no label; explained in hoi/students/multilevel/settings.py
    method: multilevel
    targets: {{image: pairs}}
    gate: {{exponent: 0.5}}

train:
  seeds: [0]
  epochs: {project.epochs}   # about {STEPS} steps in all: small folders take more rounds

evaluation:
  tune_split: train       # read only if there are annotations
"""


def _detector(project: Project) -> str:
    value = project.detector
    others = {
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
    if value.startswith((LOCAL, HUB)):
        own, kind = f"  name: open_vocabulary   # any words as objects\n  model: {_text(value)}", "open_vocabulary"
    elif value.endswith(".json"):
        if project.instances is None:
            raise UserError(
                "precomputed detections need to say which image has which id",
                where=f"--detector {value}",
                expected="--instances FILE.json, a COCO instances file",
                fix="give INSTANCES=FILE.json as well",
            )
        own = f"  name: precomputed\n  results: {_text(value)}\n  instances: {_text(project.instances)}"
        kind = "precomputed"
    else:
        own = f"  name: torchvision       # COCO's 80 classes\n  model: {_text(value)}   # weights are downloaded once"
        kind = "torchvision"
    return "\n".join([own, *(text for name, text in others.items() if name != kind)])


def _teacher(clip: str) -> str:
    others = f"""\
  # model: ViT-B-16-SigLIP2     # stronger open weights, read by sigmoids; pip install transformers
  # pretrained: webli
  # model: {LOCAL}FOLDER       # an open_clip folder (open_clip_config.json and weights): nothing is downloaded"""
    if clip.startswith((LOCAL, HUB)):
        own = f"  model: {_text(clip)}"
    else:
        model, slash, tag = clip.partition("/")
        if not slash or not model or not tag:
            raise UserError(
                "the CLIP is not understood",
                where="--clip",
                expected=f"MODEL/TAG, as {OPEN_CLIP_DEFAULT}, or {LOCAL}FOLDER, or {HUB}owner/name",
                got=clip,
            )
        own = f"  model: {_text(model)}\n  pretrained: {_text(tag)}   # downloaded once"
    return f"{own}\n{others}"


def _text(value: str) -> str:
    """A text as YAML: plain where that is safe, else quoted; `true`, `null` and `.inf` are no text for YAML."""
    plain = value.replace("-", "").replace("_", "").replace(".", "").replace("/", "")
    is_safe = plain.isalnum() and plain[0].isalpha() and value[0] != "-" and parse_yaml(value, "a text") == value
    if is_safe:
        return value
    # YAML's own escapes: those of JSON are halves of a letter beyond 16 bits, and YAML folds a line at more letters.
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in json.dumps(value, ensure_ascii=False))


def _refuse_unwritable(project: Project) -> None:
    """Nothing, or a UserError: pipeline files take `${NAME}` for the environment's value, and are UTF-8."""
    for option in ("images", "phrases", "detector", "instances", "clip"):
        value = getattr(project, option) or ""
        if "${" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
            raise UserError(
                "a pipeline file cannot name this",
                where=f"--{option}",
                expected="a path in UTF-8, without ${",
                got=ascii(value),
                fix="rename it, or make a link to it",
            )
