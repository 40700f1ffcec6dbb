"""One trained student to a self-contained folder, which `stages.predict` and `hoi.prediction.Predictor` run.

    python -m stages.checkpoint [--student NAME] [--seed N] [--out DIR] [--onnx] [section.key=value ...]

docs/predict.md describes the folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from os.path import expanduser
from pathlib import Path
from typing import Any

from cache.atomic import read_json, write_atomically
from hoi.config import PipelineConfig, load_config
from hoi.errors import UserError, nearest, run_program
from stages.checkpoint_files import CheckpointReport, Making, Models, save_checkpoint
from stages.command_line import stage_parser
from stages.train import open_training_split, run_folder

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
        from hoi.prediction.onnx_student import export_student

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
