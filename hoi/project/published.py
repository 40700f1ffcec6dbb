"""The eight steps of HICO-DET and V-COCO, from files on disk to the report; the same command after a kill goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hoi.cache.build.run import build_cache
from hoi.cache.tools.estimate import plan
from hoi.config import PipelineConfig
from hoi.errors import UserError
from hoi.evaluation.audit import run_audit
from hoi.files import file_sha256, json_sha256, read_json, size_text, write_atomically, write_json
from hoi.labels import label_files
from hoi.project import doctor
from hoi.provenance import commit
from hoi.report.build import write_report

SAMPLED_IMAGES = 8
"""Images that are run through the models to tell what a cache will cost, before any of it is there."""
REPORT_NAME = "report.txt"


class Progress:
    """A small file of finished steps, each with a hash of all that it depended on; a step counts while that holds.

    Every step depends on the config, the annotation files and the commit; `extra` is what one depends on beside them,
    as plain data.
    """

    def __init__(self, path: Path, config: PipelineConfig) -> None:
        self._path = path
        labels = [file_sha256(file) for file in label_files(config.dataset)]
        self._digest = json_sha256([config.model_dump(mode="json"), labels, commit()])

    def is_done(self, step: str, file: Path, extra: Any = None) -> bool:
        """Return whether a step was finished with the same settings, and `file`, which it writes last, is there."""
        return file.is_file() and self._steps().get(step) == json_sha256([self._digest, extra])

    def note(self, step: str, extra: Any = None) -> None:
        write_json(self._path, {**self._steps(), step: json_sha256([self._digest, extra])})

    def _steps(self) -> dict[str, str]:
        try:
            return read_json(self._path, dict[str, str]) or {}
        except UserError:
            # Whoever edited it: steps are done again.
            return {}


def run_published(config: PipelineConfig, *, heeds_gates: bool = True) -> None:
    """Run and print all steps in order; what is finished already is not done again.

    Args:
        heeds_gates: Whether a figure at chance ends the run before anything is trained.

    Raises UserError: the doctor found an error, the disk is too small, a figure is at chance, or what a stage raises.
    """
    from hoi.training import train

    progress = Progress(Path(config.output) / "steps.json", config)
    _heading("doctor: is all there, whole, and of one kind?")
    _examine(config, progress)
    _heading("plan: what the teacher cache will take")
    _estimate(config)
    _heading("teacher cache: detector and teacher over every image")
    print(build_cache(config), flush=True)
    _heading("sanity gates: is the cache what it should be?")
    fingerprint = _judge(config, progress, heeds_gates)
    _heading("train: students, from the cache alone")
    print(train.train_students(config), flush=True)
    _heading("evaluate: the result table")
    _evaluate(config, progress, fingerprint)
    _heading("audit: what touched these results")
    if (Path(config.output) / "results.json").is_file():
        print(run_audit(config))
    else:
        print("no annotations, so there is no average precision to audit")
    _heading("report: all of it as one page")
    print(write_report(config), flush=True)


def _heading(text: str) -> None:
    print(f"\n== {text}", flush=True)


def _examine(config: PipelineConfig, progress: Progress) -> None:
    file = Path(config.output) / "doctor.json"
    if progress.is_done("doctor", file):
        print(f"passed before · {file}")
        return
    findings = doctor.examine(config)
    write_json(file, findings.to_dict())
    print(f"{findings}\nwrote {file}", flush=True)
    if findings.num_errors:
        fix = "mend what the lines above say, then run the same command again"
        raise UserError(f"the doctor found {findings.num_errors} errors", where=file, expected="none", fix=fix)
    progress.note("doctor")


def _estimate(config: PipelineConfig) -> None:
    estimate = plan(config)
    is_unknown = estimate.density.seconds is None and any(split.num_missing_images for split in estimate.splits)
    if is_unknown and config.cache.scheduler in ("local", "synchronous"):
        from hoi.cache.build.worker import release

        estimate = plan(config, SAMPLED_IMAGES)
        release()
    print(estimate, flush=True)
    if not estimate.fits:
        missing = sum(split.bytes_missing for split in estimate.splits)
        what, fix = "the disk is too small for the teacher cache", "free space, or set cache.folder to a larger disk"
        sizes = {"expected": f"{size_text(missing, 3)} free", "got": size_text(estimate.free, 3)}
        raise UserError(what, where=config.cache.folder, **sizes, fix=fix)


def _judge(config: PipelineConfig, progress: Progress, heeds_gates: bool) -> str:
    """Return the cache's fingerprint, once its figures are better than chance."""
    from hoi.cache.read.split import open_split
    from hoi.evaluation import sanity

    file = Path(config.output) / sanity.FILE_NAME
    fingerprint = open_split(config, config.evaluation.split).fingerprint
    if progress.is_done("sanity", file, fingerprint):
        print(f"{sanity.read_sanity(file)}\nmeasured before", flush=True)
        return fingerprint
    measured = sanity.check_sanity(config)
    print(f"{measured}\nwrote {file}", flush=True)
    if not measured.stops:
        progress.note("sanity", fingerprint)
    elif heeds_gates:
        what = "a sanity gate found a figure no better than chance, so training would be for nothing"
        fix = "look at what its line above names; to go on all the same, add --no-gates (with make: NO_GATES=1)"
        got = ", ".join(gate.name for gate in measured.gates if gate.level == "stop")
        raise UserError(what, where=file, got=got, fix=fix)
    return fingerprint


def _evaluate(config: PipelineConfig, progress: Progress, fingerprint: str) -> None:
    from hoi.evaluation.evaluate import evaluate

    file = Path(config.output) / REPORT_NAME
    if progress.is_done("evaluate", file, fingerprint):
        print(f"{file.read_text(encoding='utf-8')}finished before · {file}", flush=True)
        return
    text = f"{evaluate(config)}\n"
    write_atomically(file, text.encode())
    print(f"{text}wrote {file}", flush=True)
    progress.note("evaluate", fingerprint)
