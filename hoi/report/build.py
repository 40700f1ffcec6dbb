"""The report: what stage three found, as one HTML page that needs no other file.

Tables are those that stage three wrote. Curves and pictures need triplets, which are scored again, from the cache, for
one seed of the best annotation-free student and for direct CLIP. Nothing here changes or chooses a student.

The page loads nothing: its content security policy allows its own style, the one script by its hash, and embedded
pictures. All text is escaped by the template; plots come as escaped markup.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hoi.config import PipelineConfig
from hoi.errors import UserError, command
from hoi.evaluation.bootstrap import ResampledMap, Resamples, paired_difference, resample_map
from hoi.evaluation.diagnose import CAUSES, MISSES, TOGETHER, Compared, compare, compare_vcoco, diagnose
from hoi.evaluation.hico import Matches
from hoi.evaluation.rows import COLUMNS
from hoi.evaluation.vcoco import VcocoRoles, vcoco_rows
from hoi.evaluation.written import check_together, read_written
from hoi.files import size_text, sole_writer, write_atomically
from hoi.machine import choose_device
from hoi.provenance import flatten
from hoi.records import Triplets
from hoi.report.finished import (
    FinishedEvaluation,
    class_lines,
    in_words,
    largest_differences,
    open_finished,
    result_lines,
    sweep_lines,
    verb_lines,
)
from hoi.report.gallery import make_gallery
from hoi.report.plots import (
    calibration_of,
    calibration_plot,
    curves_of,
    difference_bars,
    recall_plot,
    spread_plot,
)

PACKAGE = "hoi.report"
FILE_NAME = "report.html"
ELSEWHERE = ("output", "cache")  # sections that say where results and cache are, which may have moved
VERBS = ("teacher-cache", "train", "eval", "report")
NUM_DIFFERENCES = 10
NUM_CLASSES = 6
TOLERANCE = 0.05  # percent of mAP by which triplets that are scored again may miss what stage three wrote


@dataclass(frozen=True)
class HtmlReport:
    file: Path
    num_bytes: int
    notes: list[str]  # what had to be left out

    def __str__(self) -> str:
        return "\n".join([*self.notes, f"wrote {self.file} ({size_text(self.num_bytes)})"])


def write_report(config: PipelineConfig, out: Path | None = None, sweeps: Sequence[Path] | None = None) -> HtmlReport:
    """Write the page of the results in `config.output`, with the tables (JSON) of some sweeps, or of all there are.

    Raises UserError: there are no results, or settings, cache or a student are not those that they were made with, or
    another run writes into their folder, if the page goes there.
    """
    folder = Path(config.output)
    summary = read_written(folder / "summary.json")
    _refuse_other_settings(config, summary["config"], folder / "summary.json")
    with sole_writer(folder) if out is None else nullcontext():
        return _write_report(config, folder, summary, folder / FILE_NAME if out is None else out, sweeps)


def _write_report(
    config: PipelineConfig, folder: Path, summary: dict[str, Any], file: Path, sweeps: Sequence[Path] | None
) -> HtmlReport:
    torch.set_num_threads(config.train.threads)
    results = read_written(folder / "results.json") if summary["means"] else []
    check_together(folder, summary, results)
    finished = open_finished(config, summary, results, choose_device(config.train.device))
    with_labels = _with_labels(finished, summary, results, folder) if results else None
    gallery = make_gallery(finished)
    if sweeps is None:
        sweeps = sorted((folder / "sweeps").glob("*/table.json"))
    page = {
        "title": f"{config.name}: {finished.student.name} beside {finished.teacher.name}",
        "facts": _facts(config, summary, results),
        "student": finished.student.name,
        "teacher": finished.teacher.name,
        "seed": finished.seed,
        "methods": finished.columns,
        "with_labels": with_labels,
        "sweeps": [sweep_lines(path, summary) for path in sweeps],
        "agreement": summary["agreement"],
        "gallery": gallery,
        "settings": yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        "versions": {
            "cache fingerprint": summary["fingerprint"],
            "commit": summary["commit"] or "not in a git checkout",
            **summary["versions"],
        },
        "commands": "\n".join(f"hoi {verb} --config settings.yaml" for verb in VERBS),
    }
    data = _render(page).encode()
    write_atomically(file, data)
    none = [f"no pictures: {gallery.none_because}"] if gallery.none_because else []
    return HtmlReport(file, len(data), [*none, *gallery.notes])


def _refuse_other_settings(config: PipelineConfig, made_by: dict[str, Any], where: Path) -> None:
    now = config.model_dump(mode="json", exclude=set(ELSEWHERE))
    ours, theirs = flatten(now), flatten({section: made_by.get(section) for section in now})
    differing = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    if differing:
        raise UserError(
            "these results were made with other settings",
            where=where,
            got=f"other values of {', '.join(differing[:5])}",
            fix=f"give the file and overrides that made them, or {command('eval')} again",
        )


def _facts(config: PipelineConfig, summary: dict[str, Any], results: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [
        ("data set", config.dataset.name),
        ("split", summary["split"]),
        ("images", f"{summary['num_images']:,}"),
        ("pairs", f"{summary['num_pairs']:,}"),
        ("annotated interactions", f"{results[0]['num_positives']:,}" if results else "none: agreement only"),
        ("detector", config.detector.name),
        ("teacher", config.teacher.model),
        ("seeds", ", ".join(map(str, config.train.seeds))),
        ("evaluated on", summary["device"]),
    ]


def _with_labels(
    finished: FinishedEvaluation, summary: dict[str, Any], results: list[dict[str, Any]], folder: Path
) -> dict[str, Any]:
    """Return the part of the page that only labels can tell."""
    per_class, audit = (read_written(folder / name) for name in ("per_class.json", "audit.json"))
    student, teacher, matches = finished.student.name, finished.teacher.name, finished.matches
    assert matches is not None
    lines, vocabulary = result_lines(summary, results), finished.split.vocabulary
    if [record["interaction"] for record in per_class] != vocabulary.names or not all(
        {*finished.columns} <= {row["name"] for row in record["ap"]} for record in per_class
    ):
        what, where = "these results are of another vocabulary or other students", folder / "per_class.json"
        raise UserError(what, where=where, fix=command("eval"))
    classes = class_lines(per_class, vocabulary, finished.columns)
    ahead, behind = largest_differences(classes, student, teacher, NUM_DIFFERENCES)
    calibration = [(m.name, calibration_of(matches, m.triplets.score)) for m in (finished.teacher, finished.student)]
    full = [(line, line.cells["full"]) for line in lines]
    spread = [(line.name, cell[0], line.seeds if line.num_seeds else []) for line, cell in full if cell]
    return {
        "results": lines,
        "against": teacher,
        "spread": spread_plot("full mAP of every method", spread, {teacher: 1, student: 2}),
        "comparisons": summary["comparisons"],
        "variants": _variants(finished, matches, results),
        "loss": _loss(finished),
        "recall": _recall(finished, matches),
        "calibration": calibration_plot("share that is right over mean score", calibration),
        "calibration_errors": {name: of_method.error for name, of_method in calibration},
        "ahead": difference_bars(f"classes in which {student} is ahead", ahead, 2),
        "behind": difference_bars(f"classes in which {teacher} is ahead", behind, 1),
        "classes": classes,
        "verbs": verb_lines(per_class, vocabulary, finished.columns),
        "audit": audit,
    }


def _recall(finished: FinishedEvaluation, matches: Matches) -> list[tuple[str, Markup]]:
    # Plots of all triplets together, of the mean over classes, and of the classes with the most truth.
    shown, student = [finished.teacher, finished.student, *finished.others], finished.student.name
    curves = {method.name: curves_of(matches, method.triplets.score) for method in shown}
    vocabulary = finished.split.vocabulary
    num_positives = np.where(vocabulary.is_no_interaction, 0, matches.num_positives())
    most = np.argsort(-num_positives, kind="stable")[:NUM_CLASSES]
    micro, macro = ([(name, getattr(c, kind)) for name, c in curves.items()] for kind in ("micro", "macro"))
    classes = [(in_words(vocabulary.names[k]), curves[student].classes[:, k]) for k in most if num_positives[k] > 0]
    return [
        ("All triplets in one ranking (micro)", recall_plot("precision over recall, all triplets", micro)),
        ("Mean over interactions (macro)", recall_plot("precision over recall, mean of classes", macro)),
        (f"{student}, most annotated interactions", recall_plot("precision over recall of some classes", classes)),
    ]


def _variants(
    finished: FinishedEvaluation, matches: Matches, results: list[dict[str, Any]]
) -> list[tuple[str, float, tuple[float, float, float] | None]]:
    # The shown student as it is, without each of its branches, and with those that it leaves out: name, full mAP, and
    # the difference to the student as it is with its interval; percent.
    name = finished.student.name
    resamples = Resamples.draw(finished.config.evaluation.bootstrap, finished.split.num_images, seed=0)

    def resampled(variant: str | None) -> list[ResampledMap]:
        return [resample_map(matches, triplets.score, resamples) for triplets in finished.rescored(variant)]

    def full(maps: list[ResampledMap]) -> float:
        return 100 * float(np.mean([of_seed.observed for of_seed in maps]))

    as_it_is = resampled(None)
    written = float(np.mean([row["full"] for row in results if row["name"] == name]))
    if abs(full(as_it_is) - written) > TOLERANCE:
        raise UserError(
            f"'{name}', scored again, has another mAP than the results say",
            where=finished.config.output,
            expected=f"{written:.2f}",
            got=f"{full(as_it_is):.2f}",
            fix=f"{command('eval')}, then {command('report')}",
        )
    lines: list[tuple[str, float, tuple[float, float, float] | None]] = [(f"{name} as it is", full(as_it_is), None)]
    for text in finished.variants:
        difference = paired_difference(maps := resampled(text), as_it_is)
        lines.append((text, full(maps), (100 * difference.observed, 100 * difference.low, 100 * difference.high)))
    return lines


def _loss(finished: FinishedEvaluation) -> dict[str, Any]:
    # Where the mAP of teacher and student goes; on V-COCO its own role AP, where its own label files are there.
    labels, vocabulary = finished.labels, finished.split.vocabulary
    assert labels is not None
    roles = VcocoRoles.open(finished.config, finished.split)

    def compared(triplets: Triplets) -> Compared:
        if roles is not None:
            return compare_vcoco(vcoco_rows(triplets, vocabulary), roles.truth)
        return compare(triplets, labels, vocabulary.interactions)

    found = {m.name: diagnose(compared(m.triplets)) for m in (finished.teacher, finished.student)}
    groups = {"false positives": CAUSES, "annotations missed": MISSES, "together": TOGETHER}
    return {
        "methods": found,
        "measure": found[finished.student.name].measure,
        "is_vcoco": roles is not None,
        "groups": {title: [(name, in_words(name), about) for name, about in g.items()] for title, g in groups.items()},
    }


def _render(page: dict[str, Any]) -> str:
    options: dict[str, Any] = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=PackageLoader(PACKAGE, "."), autoescape=True, **options)
    environment.filters.update(
        signed=lambda value: "0.00" if abs(value) < 0.005 else _minus(f"{value:+.2f}"),
        percent=lambda value: "–" if value is None else f"{value:.2f}",
        share=lambda value: "–" if value is None else f"{100 * value:.2f}",
        minus=_minus,
    )
    style, script = (files(PACKAGE).joinpath(name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    # The hash is of the very characters between the tags.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("template.html").render(
        page=page, columns=COLUMNS, style=Markup(style), script=Markup(script), script_hash=digest
    )


def _minus(text: str) -> str:
    # Real minus signs, as wide as the plus.
    return text.replace("-", "−")
