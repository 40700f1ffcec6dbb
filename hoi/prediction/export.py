"""One trained student to a self-contained folder, which `hoi.prediction.run` and `hoi.prediction.Predictor` run.

    python -m hoi.prediction.export [--student NAME] [--seed N] [--out DIR] [--onnx] [section.key=value ...]

docs/predict.md describes the folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os.path import expanduser
from pathlib import Path
from typing import Any, Literal

from hoi.cli.command_line import stage_parser
from hoi.config import PipelineConfig, load_config
from hoi.errors import UserError, nearest, run_program
from hoi.files import LOCAL_DIR, find_local, read_json, remove_file, write_atomically
from hoi.prediction.checkpoint import (
    CARD_NAME,
    FORMAT,
    MODELS,
    RECORD_NAME,
    STUDENT_NAME,
    TEXT_NAME,
    VERSION,
    model_card,
    student_file,
    text_file,
)
from hoi.records import TextBank
from hoi.students.registry import Student
from hoi.training.train import open_training_split, run_folder
from hoi.vocabulary import Vocabulary

MAX_COPIED_BYTES = 64 << 20
"""A detector or CLIP of one's own up to this size is copied into the folder; `--models` decides otherwise."""
Models = Literal["auto", "copy", "refer"]


@dataclass(frozen=True)
class Making:
    """What a checkpoint is made of.

    Args:
        config: The pipeline that the student was trained in.
        name, seed: Of the student in it.
        student: Its weights.
        bank, vocabulary, axes: Of the signals that it reads.
        models: What detector and CLIP say of themselves (`Extractor.provenance`).
        trained: On what, and with what, for the card.
        figures: What stage three found of it, or None.
    """

    config: PipelineConfig
    name: str
    seed: int
    student: Student
    bank: TextBank
    vocabulary: Vocabulary
    axes: Mapping[str, int]
    models: Mapping[str, Any]
    trained: dict[str, Any]
    figures: dict[str, Any] | None = None


@dataclass(frozen=True)
class CheckpointReport:
    """A written checkpoint.

    Args:
        folder: Where it lies.
        name, seed: Of the student.
        notes: What its user should know.
    """

    folder: Path
    name: str
    seed: int
    notes: list[str]

    def __str__(self) -> str:
        size = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        return "\n".join([f"{self.name} seed {self.seed} · {self.folder} · {size / 1e6:.1f} MB", *self.notes])


def save_checkpoint(making: Making, folder: Path, models: Models = "auto") -> CheckpointReport:
    """Writes a checkpoint's files, the record last; equal parts give equal bytes.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """
    _refuse_other_folder(folder)
    copies = {} if models == "refer" else dict(_copies(making.config, None if models == "copy" else MAX_COPIED_BYTES))
    files = {STUDENT_NAME: student_file(making.student), TEXT_NAME: text_file(making.bank)}
    for copied in copies.values():
        files |= {name: path.read_bytes() for name, path in copied.files.items()}
    record = _record(making, copies)
    record["files"] = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    path = folder / RECORD_NAME
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        remove_file(path)
        for each, data in files.items():
            write_atomically(folder / each, data)
        write_atomically(folder / CARD_NAME, model_card(record, making.config, making.vocabulary).encode())
        write_atomically(path, text.encode())
    away = sorted({key.split(".")[0] for key, place in record["places"].items() if place["copy"] is None})
    notes = [f"{MODELS[part]} is not in the folder, but named with its hash" for part in away]
    return CheckpointReport(folder, making.name, making.seed, notes)


def _refuse_other_folder(folder: Path) -> None:
    if (
        folder.is_dir()
        and any(folder.iterdir())
        and not (folder / RECORD_NAME).is_file()
        and not (folder / STUDENT_NAME).is_file()
    ):
        raise UserError(
            "this folder holds something else",
            where=folder,
            expected="an empty folder, or a checkpoint",
            fix="--out DIR",
        )


@dataclass(frozen=True)
class _Copied:
    """A file or folder that a config names.

    Args:
        place: In the checkpoint.
        files: Names in the checkpoint to where the files lie now.
    """

    place: str
    files: dict[str, Path]


def _places(config: PipelineConfig) -> Iterator[tuple[str, str]]:
    """Keys of detector and teacher that name a file or folder of this machine, and what they say."""
    for part in MODELS:
        for key, value in getattr(config, part).model_dump(mode="json").items():
            if isinstance(value, str) and find_local(value).exists() and ("/" in value or "." in value):
                yield f"{part}.{key}", value


def _copies(config: PipelineConfig, max_bytes: int | None) -> Iterator[tuple[str, _Copied]]:
    for key, value in _places(config):
        source = find_local(value)
        # A detectron2 config may name others, and boxes that were looked up belong to images that are elsewhere.
        is_looked_up = config.detector.is_looked_up and key.startswith("detector.")
        if source.suffix in (".yaml", ".yml") or is_looked_up:
            continue
        paths = sorted(p for p in source.rglob("*") if p.is_file()) if source.is_dir() else [source]
        if max_bytes is not None and sum(path.stat().st_size for path in paths) > max_bytes:
            continue
        place = f"models/{key.split('.')[0]}/{source.name}"
        if source.is_dir():
            yield key, _Copied(place, {f"{place}/{path.relative_to(source).as_posix()}": path for path in paths})
        else:
            yield key, _Copied(place, {place: source})


def _record(making: Making, copies: Mapping[str, _Copied]) -> dict[str, Any]:
    config, bank = making.config.model_dump(mode="json"), making.bank
    config["students"] = {making.name: config["students"][making.name]}
    # `auto` was decided when the cache was built, and its vectors are what the student knows.
    config["teacher"]["precision"] = making.models["teacher"]["precision"]
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": making.name,
        "seed": making.seed,
        "config": config,
        "vocabulary": making.vocabulary.to_dict(),
        "axes": dict(making.axes),
        "text": {
            "logit_scale": bank.logit_scale,
            "logit_bias": bank.logit_bias,
            "prompts": [list(texts) for texts in bank.prompts],
        },
        "models": {part: making.models[part] for part in MODELS},
        "places": {
            key: {"copy": copies[key].place if key in copies else None, "was": _absolute(value)}
            for key, value in _places(making.config)
        },
        "trained": making.trained,
        "figures": making.figures,
    }


def _absolute(value: str) -> str:
    prefix = LOCAL_DIR if value.startswith(LOCAL_DIR) else ""
    return prefix + str(find_local(value).resolve())


PREFERRED = "best"
ONNX_NAME = "student.onnx"


def main(arguments: Sequence[str] | None = None) -> CheckpointReport:
    """Command line arguments to the checkpoint.

    Raises:
        UserError: no cache, no trained student of this name and seed, a folder that cannot be written.
    """
    parser = stage_parser(__doc__.splitlines()[0])
    parser.add_argument(
        "--student", help=f"its name in the pipeline file (default: {PREFERRED}, or the first without labels)"
    )
    parser.add_argument("--seed", type=int, help="of its training (default: the first of train.seeds)")
    parser.add_argument("--out", type=expanduser, help="the folder (default: OUTPUT/checkpoints/STUDENT)")
    parser.add_argument(
        "--models",
        choices=("auto", "copy", "refer"),
        default="auto",
        help="whether detector and CLIP are copied (default: small files of one's own)",
    )
    parser.add_argument("--onnx", action="store_true", help=f"also {ONNX_NAME}, and how far it is from torch")
    options = parser.parse_args(arguments)
    config = load_config(options.config, options.overrides)
    report = write_checkpoint(config, options.student, options.seed, options.out, options.models)
    if options.onnx:
        from hoi.prediction.onnx import export_student

        exported = export_student(report.folder)
        write_atomically(report.folder / ONNX_NAME, exported.data)
        report.notes.append(f"{ONNX_NAME}: {exported}")
    return report


def choose_student(config: PipelineConfig, name: str | None = None) -> str:
    """A student of the pipeline file: the one that is asked for, else `best`, else the first that reads no label.

    No figure chooses: those of the evaluated split are for grading.
    """
    if name is not None:
        if name not in config.students:
            raise UserError(
                "the pipeline file has no such student",
                where="--student",
                expected=nearest(name, config.students),
                got=name,
            )
        return name
    taught = [each for each, settings in config.students.items() if settings.supervision == "teacher"]
    return PREFERRED if PREFERRED in config.students else (taught or list(config.students))[0]


def write_checkpoint(
    config: PipelineConfig,
    student: str | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    models: Models = "auto",
) -> CheckpointReport:
    """A finished run to its checkpoint; one that is there already and the same is left alone.

    Raises:
        UserError: no cache, no such run, or a folder that holds something else.
    """
    name = choose_student(config, student)
    seed = config.train.seeds[0] if seed is None else seed
    split = open_training_split(config)
    run = run_folder(config, name, seed, split.fingerprint)
    trained = run.load_student(split.text_bank, split.vocabulary, split.axes)
    record = run.record()
    making = Making(
        config,
        name,
        seed,
        trained,
        split.text_bank,
        split.vocabulary,
        split.axes,
        split.attributes,
        {
            "num_images": split.num_images,
            "num_pairs": split.num_pairs,
            "fingerprint": split.fingerprint,
            "settings": record["settings"],
            **{key: record[key] for key in ("chosen_epoch", "versions", "commit")},
        },
        _figures(config, name, seed),
    )
    folder = Path(config.output) / "checkpoints" / name if out is None else Path(out)
    return save_checkpoint(making, folder, models)


def checkpoint_folder(checkpoint: str | None, config: str, student: str | None, overrides: list[str]) -> Path:
    """What a command line names to a checkpoint's folder; without one, that of a pipeline file's student is made.

    Raises:
        UserError: see `write_checkpoint`.
    """
    if checkpoint is not None:
        return Path(checkpoint)
    return write_checkpoint(load_config(config, overrides), student).folder


def _figures(config: PipelineConfig, name: str, seed: int) -> dict[str, Any] | None:
    """What stage three found of this very student, or None."""
    output = Path(config.output)
    try:
        rows, summary = read_json(output / "results.json") or [], read_json(output / "summary.json") or {}
    except ValueError:
        return None
    settings = config.students[name].model_dump(mode="json")
    for row in rows:
        same = row["name"] == name and row["seed"] == seed
        if same and {key: row["knobs"].get(key) for key in settings if key != "score_exponent"} == {
            key: value for key, value in settings.items() if key != "score_exponent"
        }:
            means = {mean: row[mean] for mean in ("full", "rare", "non_rare") if row.get(mean) is not None}
            return {"split": summary.get("split"), "num_images": summary.get("num_images"), "means": means}
    return None


def _command() -> None:
    print(main())


if __name__ == "__main__":
    run_program(_command)
