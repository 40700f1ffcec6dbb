"""Which labels, splits and training data touched a result: printed, and kept beside it in audit.json."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cache.atomic import read_json, write_json
from hoi.config import PipelineConfig, load_config, parse_config
from hoi.datasets import open_images
from hoi.errors import UserError, run_program
from hoi.evaluation.audit import audit, format_audit
from hoi.evaluation.json_lines import read_bytes
from stages.command_line import stage_parser

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
