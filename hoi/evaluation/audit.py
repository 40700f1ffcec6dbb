"""What touched a result: labels that were read and for what, and what detector and teacher were trained on.

Facts come from what made the row (its knobs and the resolved config), not from its name.

Source of the training data: torchvision's and detectron2's model cards, open_clip's list of pretrained weights, COCO's
2017 release (train2017 = train2014 and 35,504 images of val2014) and V-COCO (test: 4,946 images of val2014).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hoi.cli.command_line import stage_parser
from hoi.config import PipelineConfig, load_config, parse_config
from hoi.datasets import dataset_of, open_images
from hoi.errors import UserError, run_program
from hoi.files import read_json, write_json
from hoi.json_lines import read_bytes

UNKNOWN = "unknown"
COUNTED_SPLITS = ("rare_first", "non_rare_first")
"""Zero-shot splits that follow from counts of labels, where no list was published."""
_TEACHERS = (
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


def audit(config: PipelineConfig, rows: Sequence[dict[str, Any]], dropped: dict[str, Any]) -> dict[str, Any]:
    """A run's resolved config and result rows to what touched them.

    Args:
        config: That made the rows.
        rows: As in results.json: `name`, `seed`, `knobs`.
        dropped: Zero-shot split → what it takes out of the training labels.
    """
    detector, teacher = detector_training_data(config), teacher_training_data(config)
    return {
        "data_set": config.dataset.name,
        "splits": {"train": config.train.split, "evaluated": config.evaluation.split},
        "detector": detector,
        "teacher": teacher,
        "rare_list": _rare_list(config),
        "zero_shot_dropped": dropped,
        **_zero_shot_counts(config),
        "warnings": _warnings(config, detector, teacher),
        "rows": [{"name": row["name"], "seed": row["seed"], **audit_row(config, row["knobs"])} for row in rows],
    }


def audit_row(config: PipelineConfig, knobs: dict[str, Any]) -> dict[str, Any]:
    """What made a row to the HOI labels that were read for it.

    Returns:
        `supervision` (none, teacher or labels) and `labels_read`: purpose → split, or None.
    """
    supervision = knobs.get("supervision", "none")
    by_labels = supervision == "labels"
    return {
        "supervision": supervision,
        "labels_read": {
            "training": config.train.split if by_labels else None,
            "choosing the epoch": config.evaluation.tune_split if by_labels else None,
            "tuning": knobs.get("tuned_on"),
            "grading": config.evaluation.split,
        },
        **({"zero_shot": knobs["zero_shot"]} if knobs.get("zero_shot") else {}),
        "num_settings_tried": knobs.get("num_tried", 0),
    }


def detector_training_data(config: PipelineConfig) -> dict[str, str]:
    """The detector and what its weights were trained on, as far as that is known."""
    detector = config.detector
    known = config.evaluation.detector_trained_on or detector.trained_on() or UNKNOWN
    return {"name": detector.name, "weights": detector.weights_name, "trained_on": known}


def teacher_training_data(config: PipelineConfig) -> dict[str, str]:
    """The teacher and what its weights were trained on, as far as that is known."""
    teacher = config.teacher
    tag = f"{teacher.model} {teacher.pretrained or ''}".lower()
    known = next((data for part, data in _TEACHERS if part in tag), UNKNOWN)
    if config.evaluation.teacher_trained_on is not None:
        known = config.evaluation.teacher_trained_on
    elif teacher.pretrained == "random":
        known = "nothing: random weights"
    elif teacher.model.endswith("hoi/world/weights/clip"):
        known = "scenes of the world's split `clip`: images and captions"
    return {"name": teacher.model, "weights": str(teacher.pretrained), "trained_on": known}


def _rare_list(config: PipelineConfig) -> str:
    return config.dataset.RARE_LIST or f"counts of the labels of split {config.train.split}"


def _zero_shot_counts(config: PipelineConfig) -> dict[str, str]:
    """Whose labels, the unseen ones among them, decided what the splits of a result hide; nothing where none did."""
    own = (student.zero_shot for student in config.students.values())
    if dataset_of(config.dataset).zero_shot_splits is not None or not {*config.evaluation.zero_shot, *own} & {
        *COUNTED_SPLITS
    }:
        return {}
    return {"zero_shot_counted_on": config.train.split}


def _warnings(config: PipelineConfig, detector: dict[str, str], teacher: dict[str, str]) -> list[str]:
    saw_coco = "coco" in f"{detector['trained_on']}".lower()
    found = []
    if config.dataset.COCO_DETECTOR is not None and saw_coco:
        found.append(config.dataset.COCO_DETECTOR)
    if config.dataset.COCO_TEACHER is not None and "coco" in teacher["trained_on"].lower():
        found.append(config.dataset.COCO_TEACHER)
    for part, data in (("detector", detector), ("teacher", teacher)):
        if data["trained_on"] == UNKNOWN:
            found.append(f"what the {part} was trained on is not known; say it in evaluation.{part}_trained_on")
    if config.detector.needs_annotations:
        found.append("the detections are annotated boxes: an upper bound, no result")
    saw = [name for name, s in config.students.items() if s.supervision == "labels" and s.zero_shot is None]
    if saw and (config.evaluation.zero_shot or any(s.zero_shot for s in config.students.values())):
        found.append(
            f"students with supervision: labels and no zero_shot of their own ({', '.join(saw)}) were trained with the "
            "labels of unseen interactions: their unseen means are no zero-shot results"
        )
    found.append(
        "the branch that the student is compared with last is the best one by labels of the evaluated split, in that "
        "branch's favour"
    )
    return found


def format_audit(found: dict[str, Any]) -> str:
    """An audit to the text that is printed: one line a method, then what is known of the models."""
    lines = [["", "supervision", "labels for training", "for choosing and tuning", "for grading"]]
    for row in found["rows"]:
        read = row["labels_read"]
        chosen = read["tuning"] or read["choosing the epoch"]
        tried = f" ({row['num_settings_tried']} settings)" if row["num_settings_tried"] else ""
        without = f" without {row['zero_shot']}'s unseen" if "zero_shot" in row else ""
        chosen_by = f"{chosen}{tried}{without}" if chosen else "–"
        line = [row["name"], row["supervision"], (read["training"] or "–") + without, chosen_by]
        if [*line, read["grading"]] not in lines:
            lines.append([*line, read["grading"]])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    models = [
        f"{part}: {found[part]['name']}, weights {found[part]['weights']}, trained on {found[part]['trained_on']}"
        for part in ("detector", "teacher")
    ]
    rare = f"rare interactions: {found['rare_list']}"
    drops = [
        f"zero-shot {name}: training without its {drop['num_pairs']} pairs loses {drop['num_unseen']} unseen and "
        f"{drop['num_seen']} seen labels"
        for name, drop in found["zero_shot_dropped"].items()
    ]
    if "zero_shot_counted_on" in found:
        counted, split = " and ".join(COUNTED_SPLITS), found["zero_shot_counted_on"]
        drops.append(f"what {counted} hide was counted on all labels of split {split}")
    return "\n".join([*table, "", *models, rare, *drops, *(f"warning: {warning}" for warning in found["warnings"])])


LISTED = "COCO instances, {images: [{file_name}]}, or image names, one a line"


def main(config: PipelineConfig, training_images: Path | None = None) -> dict[str, Any]:
    """Audits the results in `config.output` by the config that they were made with, and writes audit.json there.

    Args:
        config: Whose `output` is audited.
        training_images: A list of the images that the detector was trained on (COCO instances, or a name a line).

    Raises:
        UserError: there are no results.
    """
    folder = Path(config.output)
    rows, summary = (_read(folder / name, config) for name in ("results.json", "summary.json"))
    made_by = parse_config(summary["config"], str(folder / "summary.json"))
    found = audit(made_by, rows, summary.get("zero_shot_dropped", {}))
    gates = read_json(folder / "sanity.json")
    if gates is not None:
        # They choose nothing, but may have ended a run.
        levels = {gate["name"]: gate["level"] for gate in gates["gates"]}
        found["sanity_gates"] = {"labels_read": gates["labels_read"], "levels": levels}
    if training_images is not None:
        found["seen_in_training"] = _overlap(made_by, training_images)
    write_json(folder / "audit.json", found)
    return found


def _read(path: Path, config: PipelineConfig) -> Any:
    try:
        content = read_json(path)
    except ValueError as error:
        raise UserError("this result file is no JSON", where=path, got=error, fix="make eval") from None
    if content is None:
        raise UserError(
            "there are no results to audit", where=path, expected=f"results of {config.name}", fix="make eval"
        )
    return content


def _overlap(config: PipelineConfig, path: Path) -> dict[str, Any]:
    """How many evaluated images a list of training images holds; COCO's file names join by their number."""
    text = read_bytes(path, "training images").decode("utf-8", "replace")
    trained_on = {_key(name) for name in _listed(text, path)}
    image_ids = open_images(config.dataset, config.evaluation.split).image_ids
    seen = sum(_key(image_id) in trained_on for image_id in image_ids)
    return {"list": str(path), "num_listed": len(trained_on), "num_evaluated": len(image_ids), "num_seen": seen}


def _listed(text: str, path: Path) -> list[str]:
    """Names out of COCO instances, or one a line. A list that is misread would pass for a result without a leak."""
    if not text.lstrip().startswith(("{", "[")):
        names = [line.strip() for line in text.splitlines() if line.strip()]
    else:
        try:
            names = [image["file_name"] for image in json.loads(text)["images"]]
        except (ValueError, KeyError, TypeError) as error:
            got = f"no {error}" if isinstance(error, KeyError) else error
            raise UserError("this is no list of training images", where=path, expected=LISTED, got=got) from None
    if not names:
        raise UserError("this list names no image", where=path, expected=LISTED)
    return names


def _key(name: str) -> str:
    """A file name without folder and suffix; of COCO's, the number alone, as 2014 and 2017 name images differently."""
    stem = Path(name).stem
    numbered = re.fullmatch(r"(?:COCO_\w+_)?0*(\d+)", stem)
    return numbered.group(1) if numbered else stem


def format_result(found: dict[str, Any]) -> str:
    """The audit as printed."""
    parts = [format_audit(found)]
    judged_by = found.get("sanity_gates", {}).get("labels_read")
    if judged_by is not None:
        parts.append(
            f"sanity gates read the labels of split {judged_by} to judge detector and teacher before "
            "training; no setting, checkpoint or student depends on them"
        )
    if "seen_in_training" in found:
        seen = found["seen_in_training"]
        parts.append(f"{seen['num_seen']} of {seen['num_evaluated']} evaluated images are in {seen['list']}")
    return "\n".join(parts)


def _command(arguments: Sequence[str] | None = None) -> None:
    parser = stage_parser("What touched the results in `output`: labels, splits, training data of the models.")
    parser.add_argument("--training-images", metavar="FILE", help="images that the detector was trained on")
    options = parser.parse_args(arguments)
    config = load_config(options.config, options.overrides)
    found = main(config, None if options.training_images is None else Path(options.training_images))
    print(format_result(found))
    print(f"wrote {Path(config.output) / 'audit.json'}")


if __name__ == "__main__":
    run_program(_command)
