"""After stage three: what it found, as one HTML page that can be read anywhere and needs nothing else.

    python -m hoi.report.build [--config pipeline.yaml] [--out FILE] [--sweep TABLE.json ...] [section.key=value ...]

Tables are those that stage three wrote. Curves and pictures need triplets, which are scored again, from the cache, for
one seed of the best annotation-free student and for direct CLIP. Nothing here changes or chooses a student.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from markupsafe import Markup

from hoi.cli.command_line import stage_parser
from hoi.config import PipelineConfig, load_config
from hoi.errors import UserError, run_program
from hoi.evaluation.bootstrap import ResampledMap, Resamples, paired_difference, resample_map
from hoi.evaluation.ranking import Matches
from hoi.evaluation.table import COLUMNS
from hoi.files import read_json, write_atomically
from hoi.machine import choose_device
from hoi.report.gallery import make_gallery
from hoi.report.methods import Bench, Method, open_bench
from hoi.report.page import AblationLine, AblationTable, Graded, Page, VariantLine, render
from hoi.report.plots import (
    Series,
    calibration_of,
    calibration_plot,
    curves_of,
    difference_bars,
    recall_plot,
    spread_plot,
)
from hoi.report.tables import ResultLine, class_lines, in_words, largest_differences, result_lines, verb_lines

NUM_DIFFERENCES = 10
NUM_CLASSES = 6
TOLERANCE = 0.05
"""Percent of mAP by which triplets that are scored again may miss what stage three wrote."""


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
    name = bench.student.name
    resamples = Resamples.draw(bench.config.evaluation.bootstrap, bench.split.num_images, seed=0)

    def resampled(variant: str | None) -> list[ResampledMap]:
        return [resample_map(matches, triplets.score, resamples) for triplets in bench.rescored(variant)]

    as_it_is = resampled(None)
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
    for text in bench.variants:
        found = resampled(text)
        difference = paired_difference(found, as_it_is)
        interval = (100 * difference.observed, 100 * difference.low, 100 * difference.high)
        lines.append(VariantLine(text, 100 * float(np.mean([one.observed for one in found])), interval))
    return lines


FILE_NAME = "report.html"
ELSEWHERE = ("output", "cache")
"""Sections that say where results and cache lie, which may have moved."""


@dataclass(frozen=True)
class Report:
    """The page that was written.

    Args:
        file: Where.
        num_bytes: Its size.
        notes: What it had to leave out.
    """

    file: Path
    num_bytes: int
    notes: list[str]

    def __str__(self) -> str:
        return "\n".join([*self.notes, f"wrote {self.file} ({self.num_bytes / 1e6:.1f} MB)"])


def main(config: PipelineConfig, out: Path | None = None, sweeps: Sequence[Path] | None = None) -> Report:
    """Writes the page of the results in `config.output`.

    Args:
        config: That the results were made with.
        out: The page; None for `report.html` in `output`.
        sweeps: Tables of sweeps (JSON); None for all that lie in `output`.

    Raises:
        UserError: there are no results, or settings, cache or a student are not those that they were made with.
    """
    folder = Path(config.output)
    summary = _read(folder / "summary.json")
    _refuse_other_settings(config, summary["config"], folder / "summary.json")
    torch.set_num_threads(config.train.threads)
    results = _read(folder / "results.json") if summary["means"] else []
    bench = open_bench(config, summary, results, choose_device(config.train.device))
    figures = None
    if results:
        contents = (_read(folder / name) for name in ("per_class.json", "audit.json"))
        figures = graded(bench, summary, results, *contents)
    gallery = make_gallery(bench)
    page = Page(
        title=f"{config.name}: {bench.student.name} beside {bench.teacher.name}",
        facts=_facts(config, summary, results),
        student=bench.student.name,
        teacher=bench.teacher.name,
        seed=bench.seed,
        methods=bench.columns,
        graded=figures,
        ablations=[_ablation(path, summary) for path in _sweeps(folder, sweeps)],
        agreement=summary["agreement"],
        exhibits=gallery.parts,
        no_pictures=gallery.none_because,
        notes=gallery.notes,
        settings=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        versions={
            "cache fingerprint": summary["fingerprint"],
            "commit": summary["commit"] or "not in a git checkout",
            **summary["versions"],
        },
        commands="make setup\nmake teacher-cache train eval report CONFIG=settings.yaml",
    )
    data = render(page).encode()
    file = folder / FILE_NAME if out is None else out
    write_atomically(file, data)
    none = [f"no pictures: {gallery.none_because}"] if gallery.none_because else []
    return Report(file, len(data), [*none, *gallery.notes])


def _refuse_other_settings(config: PipelineConfig, made_by: dict[str, Any], where: Path) -> None:
    now = config.model_dump(mode="json")
    sections = [section for section in sorted(now) if section not in ELSEWHERE]
    differing = [key for section in sections for key in _differing(section, now[section], made_by.get(section))]
    if differing:
        raise UserError(
            "these results were made with other settings",
            where=where,
            got=f"other values of {', '.join(differing[:5])}",
            fix="give the same file and overrides as to make eval, or make eval again",
        )


def _differing(key: str, now: Any, then: Any) -> list[str]:
    """Dotted keys, from this one on, whose values differ."""
    if isinstance(now, dict) and isinstance(then, dict):
        names = sorted(now.keys() | then.keys())
        return [found for name in names for found in _differing(f"{key}.{name}", now.get(name), then.get(name))]
    return [] if now == then else [key]


def _read(path: Path) -> Any:
    try:
        content = read_json(path)
    except ValueError as error:
        raise UserError("this result file is no JSON", where=path, got=error, fix="make eval") from None
    if content is None:
        raise UserError(
            "there are no results to report", where=path, expected="what stage three writes", fix="make eval"
        )
    return content


def _facts(config: PipelineConfig, summary: dict[str, Any], results: list[dict[str, Any]]) -> list[tuple[str, str]]:
    annotated = f"{results[0]['num_positives']:,}" if results else "none: agreement only"
    return [
        ("data set", config.dataset.name),
        ("split", summary["split"]),
        ("images", f"{summary['num_images']:,}"),
        ("pairs", f"{summary['num_pairs']:,}"),
        ("annotated interactions", annotated),
        ("detector", config.detector.name),
        ("teacher", config.teacher.model),
        ("seeds", ", ".join(map(str, config.train.seeds))),
        ("evaluated on", summary["device"]),
    ]


def _sweeps(folder: Path, given: Sequence[Path] | None) -> list[Path]:
    return sorted((folder / "sweeps").glob("*/table.json")) if given is None else list(given)


def _ablation(path: Path, summary: dict[str, Any]) -> AblationTable:
    """A sweep's table.json to its part of the page."""
    sweep = _read(path)
    try:
        lines = [_ablation_line(row) for row in (*sweep["baselines"], *sweep["rows"])]
        notes = [f"failed: {found['name']}, seed {found['seed']}: {found['reason']}" for found in sweep["failed"]]
        name, against, fingerprint = sweep["name"], sweep["against"], sweep["fingerprint"]
        split = sweep["split"]
    except (KeyError, TypeError) as error:
        raise UserError(
            "this is no table of a sweep", where=path, expected="table.json of make sweep", got=error
        ) from None
    if (fingerprint, split) != (summary["fingerprint"], summary["split"]):
        notes.append(f"Another cache or split than the rest of this page: {fingerprint}, {split}.")
    return AblationTable(name, against, notes, lines)


def _ablation_line(row: dict[str, Any]) -> AblationLine:
    start = [f"from {row['from']}"] if row.get("from") else []
    changes = ", ".join([*start, *(f"{key}: {value}" for key, value in row.get("changes", {}).items())])
    found = row["difference"]
    difference = None if found is None else (found["observed"], found["low"], found["high"])
    means = {
        name: None if row["means"][name] is None else (row["means"][name]["mean"], row["means"][name]["sd"])
        for name in COLUMNS
    }
    return AblationLine(row["name"], changes, row["num_seeds"], means, difference)


def _command() -> None:
    parser = stage_parser("The results in `output` as one HTML page.")
    parser.add_argument("--out", metavar="FILE", type=Path, help="the page (default: report.html in `output`)")
    parser.add_argument(
        "--sweep", metavar="FILE", type=Path, action="append", help="table.json of a sweep (default: all in `output`)"
    )
    options = parser.parse_args()
    print(main(load_config(options.config, options.overrides), options.out, options.sweep))


if __name__ == "__main__":
    run_program(_command)
