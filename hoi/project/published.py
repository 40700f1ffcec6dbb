"""From files on disk to the report, on HICO-DET or V-COCO: `make hicodet DATA=...`, `make vcoco DATA=...`.

    python -m hoi.project.published [--config examples/hicodet.yaml] [--no-gates] [section.key=value ...]

Eight steps, each of which says what it wrote; the same command after a kill goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hoi.cache.build import run as teacher_cache
from hoi.cache.tools.estimate import PlanReport, plan
from hoi.cli.command_line import stage_parser
from hoi.config import PipelineConfig, load_config
from hoi.errors import UserError, run_program
from hoi.evaluation import audit
from hoi.files import file_sha256, json_sha256, read_json, write_atomically, write_json
from hoi.labels import label_files
from hoi.project import doctor
from hoi.provenance import commit
from hoi.report import build as report


class Progress:
    """A small file: step → hash of all that it depended on, so that a step counts as done only as long as that holds.

    Args:
        path: The file.
        config: What runs now; with the annotation files and the commit it is what steps depend on.
    """

    def __init__(self, path: Path, config: PipelineConfig) -> None:
        self._path = path
        labels = [file_sha256(file) for file in label_files(config.dataset)]
        self._digest = json_sha256([config.model_dump(mode="json"), labels, commit()])

    def is_done(self, step: str, file: Path, further: Any = None) -> bool:
        """Whether a step was finished with the same settings, and what it wrote is there.

        Args:
            step: Its name.
            file: What it writes last.
            further: What it depends on beside settings, annotations and commit, as plain data.
        """
        return file.is_file() and self._steps().get(step) == json_sha256([self._digest, further])

    def note(self, step: str, further: Any = None) -> None:
        """A step is finished; arguments as in `is_done`."""
        write_json(self._path, {**self._steps(), step: json_sha256([self._digest, further])})

    def _steps(self) -> dict[str, str]:
        try:
            return read_json(self._path) or {}
        except ValueError:
            # Whoever edited it: steps are done again.
            return {}


SAMPLED_IMAGES = 8
"""Images that are run through the models to tell what a cache will cost, before any of it is there."""
REPORT_NAME = "report.txt"


def main(config: PipelineConfig, *, heeds_gates: bool = True) -> None:
    """All steps in order; what is finished already is not done again.

    Args:
        config: The pipeline file.
        heeds_gates: Whether a figure at chance ends the run before anything is trained.

    Raises:
        UserError: the doctor found an error, the disk is too small, a figure is at chance, or what a stage raises.
    """
    progress = Progress(Path(config.output) / "steps.json", config)
    _heading("doctor: is all there, whole, and of one kind?")
    _examine(config, progress)
    _heading("plan: what the teacher cache will take")
    _estimate(config)
    _heading("teacher cache: detector and teacher over every image")
    print(teacher_cache.build_cache(config), flush=True)
    _heading("sanity gates: is the cache what it should be?")
    _judge(config, progress, heeds_gates)
    _heading("train: students, from the cache alone")
    _train(config)
    _heading("evaluate: the result table")
    _evaluate(config, progress)
    _heading("audit: what touched these results")
    _audit(config)
    _heading("report: all of it as one page")
    print(report.main(config), flush=True)


def _heading(text: str) -> None:
    print(f"\n== {text}", flush=True)


def _examine(config: PipelineConfig, progress: Progress) -> None:
    file = Path(config.output) / "doctor.json"
    if progress.is_done("doctor", file):
        print(f"passed before · {file}")
        return
    found = doctor.main(config)
    write_json(file, found.to_dict())
    print(f"{found}\nwrote {file}", flush=True)
    if found.num_errors:
        raise UserError(
            f"the doctor found {found.num_errors} errors",
            where=file,
            expected="none",
            fix="mend what the lines above say, then run the same command again",
        )
    progress.note("doctor")


def _estimate(config: PipelineConfig) -> None:
    estimate = plan(config)
    if _cost_is_unknown(estimate) and config.cache.scheduler in ("local", "synchronous"):
        from hoi.cache.build.models import release

        estimate = plan(config, SAMPLED_IMAGES)
        release()
    print(estimate, flush=True)
    if not estimate.fits:
        raise UserError(
            "the disk is too small for the teacher cache",
            where=config.cache.folder,
            expected=f"{sum(split.bytes_missing for split in estimate.splits) / 1e9:.1f} GB",
            got=f"{estimate.free / 1e9:.1f} GB free",
            fix="free space, or set cache.folder to a larger disk",
        )


def _cost_is_unknown(estimate: PlanReport) -> bool:
    return estimate.density.seconds is None and any(split.num_missing_images for split in estimate.splits)


def _judge(config: PipelineConfig, progress: Progress, heeds_gates: bool) -> None:
    from hoi.evaluation import gates as sanity

    file, fingerprint = Path(config.output) / sanity.FILE_NAME, _fingerprint(config)
    if progress.is_done("sanity", file, fingerprint):
        print(f"{sanity.read(file)}\nmeasured before", flush=True)
        return
    measured = sanity.main(config)
    print(f"{measured}\nwrote {file}", flush=True)
    if not measured.stops:
        progress.note("sanity", fingerprint)
    elif heeds_gates:
        raise UserError(
            "a sanity gate found a figure no better than chance, so training would be for nothing",
            where=file,
            got=", ".join(gate.name for gate in measured.gates if gate.level == "stop"),
            fix="look at what its line above names; to go on all the same, add --no-gates (make ARGS=--no-gates)",
        )


def _fingerprint(config: PipelineConfig) -> str:
    from hoi.cache.read.split import open_split

    return open_split(config, config.evaluation.split).fingerprint


def _train(config: PipelineConfig) -> None:
    from hoi.training import train

    print(train.main(config), flush=True)


def _evaluate(config: PipelineConfig, progress: Progress) -> None:
    file, fingerprint = Path(config.output) / REPORT_NAME, _fingerprint(config)
    if progress.is_done("evaluate", file, fingerprint):
        print(f"{file.read_text(encoding='utf-8')}finished before · {file}", flush=True)
        return
    from hoi.evaluation import evaluate

    text = f"{evaluate.main(config)}\n"
    write_atomically(file, text.encode())
    print(f"{text}wrote {file}", flush=True)
    progress.note("evaluate", fingerprint)


def _audit(config: PipelineConfig) -> None:
    if not (Path(config.output) / "results.json").is_file():
        print("no annotations, so there is no average precision to audit")
        return
    print(audit.format_result(audit.main(config)))
    print(f"wrote {Path(config.output) / 'audit.json'}")


def _command(arguments: Sequence[str] | None = None) -> None:
    parser = stage_parser("From files on disk to the report; run it again to go on after an interruption.")
    parser.set_defaults(config="examples/hicodet.yaml")
    parser.add_argument("--no-gates", action="store_true", help="go on even if a sanity gate finds a figure at chance")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    main(load_config(options.config, options.overrides), heeds_gates=not options.no_gates)
    print(f"\ndone in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    run_program(_command)
