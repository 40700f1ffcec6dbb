"""Loss by cause in anybody's predictions: `hoi diagnose`; docs/diagnose.md says what each line means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hoi.evaluation.diagnose import CAUSES, MISSES, Diagnosis, diagnose
from hoi.evaluation.score import ScoreReport, score
from hoi.files import write_json

TOGETHER = {"false_positives": "all false positives mended", "missed": "all misses mended"}


def diagnose_file(
    dataset: str, annotations: Path, predictions: Path, *, json: Path | None = None, **options: Any
) -> ScoreReport:
    """Score a file as `hoi.evaluation.score.score` does, with its options, and say where its mAP is lost.

    Raises UserError: as `score`.
    """
    report = score(dataset, annotations, predictions, diagnose=True, **options)
    assert report.compared is not None
    found = diagnose(report.compared)
    report.content["diagnosis"] = {**found.to_dict(), "measure": measure_of(dataset)}
    report.lines = [*report.lines, "", *table(found, measure_of(dataset))]
    if json is not None:
        write_json(Path(json), report.content)
    return report


def measure_of(dataset: str) -> str:
    """Return the name of the mean that is taken apart."""
    return "role AP, scenario 1, 24 roles" if dataset == "vcoco" else "mAP"


def table(found: Diagnosis, measure: str = "mAP") -> list[str]:
    """Return the lines of a text table, in percent."""
    width = max(map(len, (*CAUSES, *MISSES, *TOGETHER)))

    def line(name: str, about: str) -> str:
        count = f"{found.counts[name]:>10,}" if name in found.counts else " " * 10
        return f"  {name:{width}}{count}{100 * found.gains[name]:>+9.2f}  {about}"

    heading = f"{'number':>{width + 12}}{'gain':>9}"
    means = f"{measure} {_percent(found.full)}"
    if found.no_interaction is not None:
        means += f", interacting {_percent(found.interacting)}, no_interaction {_percent(found.no_interaction)}"
    return [
        means,
        f"pairs found, whatever their verb: {_percent(found.pair_recall)} % of {found.num_pairs:,}",
        f"{found.num_true:,} true positives, {found.num_missed:,} annotations missed; gain: {measure} with this mended",
        f"false positives{heading[15:]}",
        *(line(name, about) for name, about in CAUSES.items()),
        "annotations missed",
        *(line(name, about) for name, about in MISSES.items()),
        "together",
        *(line(name, about) for name, about in TOGETHER.items()),
    ]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"
