"""The part of the report that labels decide: tables, curves, calibration, and what each branch adds."""

from __future__ import annotations

from typing import Any

import numpy as np
from markupsafe import Markup

from hoi.config import MultiLevelConfig, StudentConfig
from hoi.errors import UserError
from hoi.evaluation.bootstrap import ResampledMap, Resamples, paired_difference, resample_map
from hoi.evaluation.ranking import Matches
from hoi.report.curves import calibration_of, curves_of
from hoi.report.page import Graded, VariantLine
from hoi.report.plots import Series, calibration_plot, difference_bars, recall_plot, spread_plot
from hoi.report.tables import ResultLine, class_lines, in_words, largest_differences, result_lines, verb_lines
from stages.report_methods import Bench, Method

NUM_DIFFERENCES = 10
NUM_CLASSES = 6
TOLERANCE = 0.05
"""Percent of mAP by which triplets that are scored again may miss what stage three wrote."""
WEIGHTS = {
    "score_union_weight": "union",
    "score_human_object_weight": "human_object",
    "score_global_weight": "global",
    "score_spatial_weight": "spatial",
}


def graded(
    bench: Bench,
    summary: dict[str, Any],
    results: list[dict[str, Any]],
    per_class: list[dict[str, Any]],
    audit: dict[str, Any],
) -> Graded:
    """A finished evaluation and what stage three wrote of it to the graded part of the page.

    Raises:
        UserError: the triplets that are scored again have another mAP than stage three wrote.
    """
    student, teacher, matches = bench.student.name, bench.teacher.name, bench.matches
    if matches is None:
        raise ValueError("without labels there is nothing to grade")
    lines = result_lines(summary, results)
    classes = class_lines(per_class, bench.split.vocabulary, bench.columns)
    ahead, behind = largest_differences(classes, student, teacher, NUM_DIFFERENCES)
    shown = [bench.teacher, bench.student, *bench.others]
    calibration = [(method.name, calibration_of(matches, method.triplets.score)) for method in shown[:2]]
    return Graded(
        results=lines,
        against=teacher,
        spread=_spread(lines, {teacher: 1, student: 2}),
        comparisons=summary["comparisons"],
        variants=_variants(bench, matches, results),
        recall=_recall(bench, matches, shown),
        calibration=calibration_plot("share that is right over mean score", calibration),
        calibration_errors={name: found.error for name, found in calibration},
        ahead=difference_bars(f"classes in which {student} is ahead", ahead, 2),
        behind=difference_bars(f"classes in which {teacher} is ahead", behind, 1),
        classes=classes,
        verbs=verb_lines(per_class, bench.split.vocabulary, bench.columns),
        audit=audit,
    )


def _spread(lines: list[ResultLine], series: dict[str, int]) -> Markup:
    rows = [(line, line.cells["full"]) for line in lines]
    return spread_plot(
        "full mAP of every method",
        [(line.name, full[0], line.seeds if line.num_seeds else []) for line, full in rows if full],
        series,
    )


def _recall(bench: Bench, matches: Matches, shown: list[Method]) -> list[tuple[str, Markup]]:
    """Plots of all triplets together, of the mean over classes, and of the classes with the most truth."""
    curves = {method.name: curves_of(matches, method.triplets.score) for method in shown}
    num_positives = np.where(bench.split.vocabulary.is_no_interaction, 0, matches.num_positives())
    most = np.argsort(-num_positives, kind="stable")[:NUM_CLASSES]
    names = [in_words(bench.split.vocabulary.names[k]) for k in most if num_positives[k] > 0]
    of_student = curves[bench.student.name].classes
    micro, macro = ([Series(n, getattr(c, kind).tolist()) for n, c in curves.items()] for kind in ("micro", "macro"))
    classes = [Series(n, of_student[:, k].tolist()) for n, k in zip(names, most, strict=False)]
    return [
        ("All triplets in one ranking (micro)", recall_plot("precision over recall, all triplets", micro)),
        ("Mean over interactions (macro)", recall_plot("precision over recall, mean of classes", macro)),
        (
            f"{bench.student.name}, most annotated interactions",
            recall_plot("precision over recall of some classes", classes),
        ),
    ]


def _variants(bench: Bench, matches: Matches, results: list[dict[str, Any]]) -> list[VariantLine]:
    """The shown student as it is, without each of its branches, and with those that it leaves out."""
    name, settings = bench.student.name, bench.config.students[bench.student.name]
    resamples = Resamples.draw(bench.config.evaluation.bootstrap, bench.split.num_images, seed=0)

    def resampled(variant: StudentConfig) -> list[ResampledMap]:
        return [resample_map(matches, triplets.score, resamples) for triplets in bench.rescored(variant)]

    as_it_is = resampled(settings)
    full = 100 * float(np.mean([found.observed for found in as_it_is]))
    written = float(np.mean([row["full"] for row in results if row["name"] == name]))
    if abs(full - written) > TOLERANCE:
        raise UserError(
            f"'{name}', scored again, has another mAP than the results say",
            where=bench.config.output,
            expected=f"{written:.2f}",
            got=f"{full:.2f}",
            fix="make eval, then make report",
        )
    lines = [VariantLine(f"{name} as it is", full, None)]
    for text, variant in branch_variants(settings):
        found = resampled(variant)
        difference = paired_difference(found, as_it_is)
        interval = (100 * difference.observed, 100 * difference.low, 100 * difference.high)
        lines.append(VariantLine(text, 100 * float(np.mean([one.observed for one in found])), interval))
    return lines


def branch_variants(settings: StudentConfig) -> list[tuple[str, StudentConfig]]:
    """A student's settings to those with one branch less, or with a branch more that it leaves out."""
    if not isinstance(settings, MultiLevelConfig):
        return []
    has = [key for key in WEIGHTS if getattr(settings, key) > 0]
    if settings.fusion == "early" and "score_union_weight" in has:
        has.remove("score_union_weight")
    found: list[tuple[str, StudentConfig]] = [
        (f"without {WEIGHTS[key]}", settings.model_copy(update={key: 0.0})) for key in has if len(has) > 1
    ]
    if "score_global_weight" not in has:
        for weight in (0.25, 1.0):
            variant = settings.model_copy(update={"score_global_weight": weight})
            found.append((f"with global, weight {weight:g}", variant))
    return found
