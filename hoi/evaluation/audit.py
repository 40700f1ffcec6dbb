"""The audit of a result: which labels were read and for what, and what detector and teacher were trained on.

Facts come from what made the row (its settings and the resolved config), not from its name.

Source of the training data: torchvision's and detectron2's model cards, open_clip's list of pretrained weights, COCO's
2017 release (train2017 = train2014 and 35,504 images of val2014) and V-COCO (test: 4,946 images of val2014).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import Struct

from hoi.config import PipelineConfig, parse_config
from hoi.datasets import dataset_of, open_images
from hoi.errors import UserError
from hoi.evaluation.rows import align
from hoi.evaluation.written import read_written
from hoi.files import parse_json, read_bytes, write_json

UNKNOWN = "unknown"
LISTED = "COCO instances, {images: [{file_name}]}, or image names, one a line"
COUNTED_SPLITS = ("rare_first", "non_rare_first")
"""Zero-shot splits that follow from counts of labels, where no list was published."""
TEACHERS = (
    ("mscoco", "a public image-text set, then the captions of COCO"),
    ("openai", "OpenAI's WIT, 400 M image-text pairs, not public"),
    ("laion400m", "LAION-400M image-text pairs"),
    ("laion2b", "LAION-2B image-text pairs"),
    ("laion5b", "LAION-5B image-text pairs"),
    ("datacomp", "DataComp image-text pairs"),
    ("commonpool", "CommonPool image-text pairs"),
    ("metaclip", "MetaCLIP image-text pairs"),
    ("dfn", "DFN image-text pairs"),
    ("webli", "WebLI image-text pairs, not public"),
    ("yfcc15m", "YFCC-15M image-text pairs (Flickr)"),
    ("cc12m", "Conceptual 12M image-text pairs"),
)
"""Part of open_clip's tag → what such weights were trained on."""


@dataclass(frozen=True)
class AuditReport:
    """The content of audit.json, and where it was written."""

    content: dict[str, Any]
    file: Path

    def __str__(self) -> str:
        content = self.content
        rows = []
        for row in content["rows"]:
            read = row["labels_read"]
            chosen = read["tuning"] or read["choosing the epoch"]
            tried = f" ({row['num_settings_tried']} settings)" if row["num_settings_tried"] else ""
            without = f" without {row['zero_shot']}'s unseen" if "zero_shot" in row else ""
            chosen_by = f"{chosen}{tried}{without}" if chosen else "–"
            cells = [row["name"], row["supervision"], (read["training"] or "–") + without, chosen_by, read["grading"]]
            rows += [cells] if cells not in rows else []
        heading = ["", "supervision", "labels for training", "for choosing and tuning", "for grading"]
        lines = [align(heading, rows, left=True), ""]
        for part in ("detector", "teacher"):
            model = content[part]
            lines.append(f"{part}: {model['name']}, weights {model['weights']}, trained on {model['trained_on']}")
        lines.append(f"rare interactions: {content['rare_list']}")
        lines += [
            f"zero-shot {name}: training without its {drop['num_pairs']} pairs loses {drop['num_unseen']} unseen and "
            f"{drop['num_seen']} seen labels"
            for name, drop in content["zero_shot_dropped"].items()
        ]
        if "zero_shot_counted_on" in content:
            counted, split = " and ".join(COUNTED_SPLITS), content["zero_shot_counted_on"]
            lines.append(f"what {counted} hide was counted on all labels of split {split}")
        lines += [f"warning: {warning}" for warning in content["warnings"]]
        judged_by = content.get("sanity_gates", {}).get("labels_read")
        if judged_by is not None:
            said = "to judge detector and teacher before training; no setting, checkpoint or student depends on them"
            lines.append(f"sanity gates read the labels of split {judged_by} {said}")
        if "seen_in_training" in content:
            seen = content["seen_in_training"]
            lines.append(f"{seen['num_seen']} of {seen['num_evaluated']} evaluated images are in {seen['list']}")
        return "\n".join([*lines, f"wrote {self.file}"])


def run_audit(config: PipelineConfig, training_images: Path | None = None) -> AuditReport:
    """Audit the results in `config.output` by the config that made them, and write audit.json there.

    `training_images` lists what the detector was trained on. Raises UserError: no results, or no such list.
    """
    folder = Path(config.output)
    rows = read_written(folder / "results.json")
    summary = read_written(folder / "summary.json")
    made_by = parse_config(summary["config"], str(folder / "summary.json"))
    content = audit(made_by, rows, summary["zero_shot_dropped"])
    gates = read_written(folder / "sanity.json", required=False)
    if gates is not None:
        # They choose nothing, but may have ended a run.
        levels = {gate["name"]: gate["level"] for gate in gates["gates"]}
        content["sanity_gates"] = {"labels_read": gates["labels_read"], "levels": levels}
    if training_images is not None:
        content["seen_in_training"] = _overlap(made_by, training_images)
    write_json(folder / "audit.json", content)
    return AuditReport(content, folder / "audit.json")


def audit(config: PipelineConfig, rows: Sequence[dict[str, Any]], dropped: dict[str, Any]) -> dict[str, Any]:
    """Return what touched a run's results, from its config and its rows (as in results.json).

    `dropped` maps zero-shot splits to what each takes out of the training labels.
    """
    detector, teacher = detector_training_data(config), teacher_training_data(config)
    named = {*config.evaluation.zero_shot, *(student.zero_shot for student in config.students.values())}
    is_counted = dataset_of(config.dataset).zero_shot_splits is None and named & {*COUNTED_SPLITS}
    return {
        "data_set": config.dataset.name,
        "splits": {"train": config.train.split, "evaluated": config.evaluation.split},
        "detector": detector,
        "teacher": teacher,
        "rare_list": config.dataset.RARE_LIST or f"counts of the labels of split {config.train.split}",
        "zero_shot_dropped": dropped,
        # Labels, those of unseen interactions among them, decided what these splits hide.
        **({"zero_shot_counted_on": config.train.split} if is_counted else {}),
        "warnings": _warnings(config, detector, teacher),
        "rows": [{"name": row["name"], "seed": row["seed"], **audit_row(config, row["knobs"])} for row in rows],
    }


def audit_row(config: PipelineConfig, settings: dict[str, Any]) -> dict[str, Any]:
    """Return `supervision` (none, teacher or labels) and `labels_read` (purpose → split, or None) of a row."""
    supervision = settings.get("supervision", "none")
    by_labels = supervision == "labels"
    return {
        "supervision": supervision,
        "labels_read": {
            "training": config.train.split if by_labels else None,
            "choosing the epoch": config.evaluation.tune_split if by_labels else None,
            "tuning": settings.get("tuned_on"),
            "grading": config.evaluation.split,
        },
        **({"zero_shot": settings["zero_shot"]} if settings.get("zero_shot") else {}),
        "num_settings_tried": settings.get("num_tried", 0),
    }


def detector_training_data(config: PipelineConfig) -> dict[str, str]:
    """Return the detector and what its weights were trained on, as far as that is known."""
    detector = config.detector
    known = config.evaluation.detector_trained_on or detector.trained_on() or UNKNOWN
    return {"name": detector.name, "weights": detector.weights_name, "trained_on": known}


def teacher_training_data(config: PipelineConfig) -> dict[str, str]:
    """Return the teacher and what its weights were trained on, as far as that is known."""
    teacher = config.teacher
    tag = f"{teacher.model} {teacher.pretrained or ''}".lower()
    known = next((data for part, data in TEACHERS if part in tag), UNKNOWN)
    if config.evaluation.teacher_trained_on is not None:
        known = config.evaluation.teacher_trained_on
    elif teacher.pretrained == "random":
        known = "nothing: random weights"
    elif teacher.model.endswith("hoi/world/weights/clip"):
        known = "scenes of the world's split `clip`: images and captions"
    return {"name": teacher.model, "weights": str(teacher.pretrained), "trained_on": known}


def _warnings(config: PipelineConfig, detector: dict[str, str], teacher: dict[str, str]) -> list[str]:
    parts = (("detector", detector, config.dataset.COCO_DETECTOR), ("teacher", teacher, config.dataset.COCO_TEACHER))
    warnings = [leak for _, data, leak in parts if leak is not None and "coco" in data["trained_on"].lower()]
    for part, data, _ in parts:
        if data["trained_on"] == UNKNOWN:
            warnings.append(f"what the {part} was trained on is not known; say it in evaluation.{part}_trained_on")
    if config.detector.needs_annotations:
        warnings.append("the detections are annotated boxes: an upper bound, no result")
    saw = [name for name, s in config.students.items() if s.supervision == "labels" and s.zero_shot is None]
    if saw and (config.evaluation.zero_shot or any(s.zero_shot for s in config.students.values())):
        warnings.append(
            f"students with supervision: labels and no zero_shot of their own ({', '.join(saw)}) were trained with the "
            "labels of unseen interactions: their unseen means are no zero-shot results"
        )
    warnings.append(
        "the branch that the student is compared with last is the best one by labels of the evaluated split, in that "
        "branch's favour"
    )
    return warnings


class _Image(Struct):
    file_name: str


class _Listed(Struct):
    images: list[_Image]


def _overlap(config: PipelineConfig, path: Path) -> dict[str, Any]:
    """Count the evaluated images that a list of training images holds; COCO's file names join by their number."""
    data = read_bytes(path, "a list of training images")
    if not data.lstrip().startswith((b"{", b"[")):
        names = [line.strip() for line in data.decode("utf-8", "replace").split("\n") if line.strip()]
    else:
        try:
            names = [image.file_name for image in parse_json(data, _Listed).images]
        except ValueError as error:
            raise UserError("this is no list of training images", where=path, expected=LISTED, got=error) from None
    if not names:
        # A list that is misread would pass for a result without a leak.
        raise UserError("this list names no image", where=path, expected=LISTED)
    trained_on = {_key(name) for name in names}
    image_ids = open_images(config.dataset, config.evaluation.split).image_ids
    num_seen = sum(_key(image_id) in trained_on for image_id in image_ids)
    return {"list": str(path), "num_listed": len(trained_on), "num_evaluated": len(image_ids), "num_seen": num_seen}


def _key(name: str) -> str:
    # Without folder and suffix; of COCO's names the number alone, as 2014 and 2017 name images differently.
    stem = Path(name).stem
    numbered = re.fullmatch(r"(?:COCO_\w+_)?0*(\d+)", stem)
    return numbered.group(1) if numbered else stem
