"""Stage three: baselines and trained students to one table of average precision, from the cache and the labels.

Labels grade the evaluated split and, on another split, tune `direct_clip_tuned` and the supervised bound in their
favour; nothing here changes an annotation-free student. Without annotations, agreement with the teacher is all there
is to say.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from hoi.cache.read.split import CacheSplit, open_split
from hoi.cli.command_line import stage_config
from hoi.config import PipelineConfig
from hoi.errors import UserError, run_program
from hoi.evaluation.audit import audit, audit_row
from hoi.evaluation.baselines import direct_vlms
from hoi.evaluation.grading import (
    BATCH_IMAGES,
    GATED,
    PLAIN,
    STUDENT,
    TUNED,
    Grader,
    Run,
    row_name,
    zero_shot_splits,
)
from hoi.evaluation.predictions import prediction_lines
from hoi.evaluation.rows import Comparison, ResultRow, compare, per_class
from hoi.evaluation.summaries import format_vcoco, vcoco_means
from hoi.evaluation.table import best_of, format_agreement, format_comparison, format_table, means_over_seeds
from hoi.evaluation.zero_shot import (
    check_zero_shot,
    drop_unseen,
    format_zero_shot,
    in_percent,
    means_of_splits,
    splits_of_row,
)
from hoi.files import write_atomically, write_json
from hoi.labels import has_labels, load_labels
from hoi.machine import choose_device
from hoi.provenance import commit, library_versions
from hoi.scoring import extra_of, score_split
from hoi.training.train import run_folder

BRANCHES = ("global", "union", "human_object")
LIBRARIES = ("torch", "numpy", "open_clip_torch", "h5py", "safetensors")


@dataclass(frozen=True)
class Report:
    """What stage three found and wrote.

    Args:
        title: Which data were evaluated.
        rows: The result table; empty without annotations.
        comparisons: Paired bootstrap intervals.
        agreement: By student, then branch: the share of images or pairs on which student and teacher put the same
            interaction first, over all seeds.
        files: What was written.
        zero_shot: Splits whose unseen and seen means are shown, with the ids that each hides.
    """

    title: str
    rows: list[ResultRow]
    comparisons: list[Comparison]
    agreement: dict[str, dict[str, float]]
    files: list[Path]
    zero_shot: dict[str, np.ndarray] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.rows:
            parts = [
                f"{self.title}\nmean average precision in percent by HICO-DET's official rule, ± sd over seeds",
                format_table(self.rows),
                "\n".join(format_comparison(found) for found in self.comparisons),
            ]
            if self.rows[0].further:
                parts.append(format_vcoco(vcoco_means(self.rows)))
            if self.zero_shot:
                parts.append(format_zero_shot(self.rows, self.zero_shot))
        else:
            parts = [f"{self.title}, no annotations: no average precision", format_agreement(self.agreement)]
        return "\n\n".join([*filter(None, parts), "\n".join(f"wrote {path}" for path in self.files)])


def main(config: PipelineConfig) -> Report:
    """Scores everything that the config names and writes the results.

    Raises:
        UserError: no cache, no trained student, a cache or a run of other settings, wrong annotations.
    """
    check_zero_shot(config)
    torch.set_num_threads(config.train.threads)
    split = open_split(config, config.evaluation.split)
    device = choose_device(config.train.device)
    runs = list(_load_runs(config, split, device))
    agreement = _agreement(config, split, runs, device)
    is_labelled = has_labels(config.dataset, config.evaluation.split)
    rows = list(_grade(Grader(config, split, device), runs)) if is_labelled else []
    written = list(_write_predictions(config, split, runs, device)) if config.evaluation.save_predictions else []
    return _write(config, split, rows, _comparisons(config, rows), agreement, device, written)


def _load_runs(config: PipelineConfig, split: CacheSplit, device: torch.device) -> Iterator[Run]:
    for name in config.students:
        for seed in config.train.seeds:
            folder = run_folder(config, name, seed, split.fingerprint)
            student = folder.load_student(split.text_bank, split.vocabulary, split.axes)
            yield Run(name, seed, config.students[name], student.to(device))


def _agreement(
    config: PipelineConfig, split: CacheSplit, runs: list[Run], device: torch.device
) -> dict[str, dict[str, float]]:
    agreeing: dict[str, dict[str, list[torch.Tensor]]] = {}
    with torch.inference_mode():
        for run in runs:
            if run.settings.supervision == "labels":
                continue
            for batch in split.batches(BATCH_IMAGES, extra=run.student.extra_fields):
                for branch, agrees in run.student.losses(batch.to(device), None).agreement.items():
                    agreeing.setdefault(run.name, {}).setdefault(branch, []).append(agrees.cpu())
    return {
        name: {branch: float(torch.cat(parts).float().mean()) for branch, parts in branches.items()}
        for name, branches in agreeing.items()
    }


def _write_predictions(
    config: PipelineConfig, split: CacheSplit, runs: list[Run], device: torch.device
) -> Iterator[Path]:
    if not config.dataset.scores_interactions:
        raise UserError(
            "predictions of V-COCO have a score per action and are not written",
            where="evaluation.save_predictions",
            expected="a data set of interactions: world, folder or hicodet",
            got="vcoco",
            fix="set it to false; stage three grades V-COCO itself",
        )
    for run in runs:
        if run.settings.supervision == "teacher":
            batches = split.batches(BATCH_IMAGES, extra=extra_of(run.student))
            scored = score_split(run.student, batches, split.vocabulary, run.settings.score_exponent, device)
            path = Path(config.output) / "predictions" / f"{run.name}-seed-{run.seed}.jsonl.gz"
            inclusive = config.dataset.inclusive_boxes
            write_atomically(path, prediction_lines(scored[STUDENT], split.image_ids, inclusive=inclusive))
            yield path


def _grade(grader: Grader, runs: list[Run]) -> Iterator[ResultRow]:
    yield from grader.baselines()
    for run in tqdm(runs, desc="scoring students", unit="run", disable=None, leave=False):
        yield from grader.run(run)


def _comparisons(config: PipelineConfig, rows: list[ResultRow]) -> list[Comparison]:
    """Every student of the teacher, and the row `student`, against each of its teachers and its own best branch."""
    names = {row.name for row in rows}
    taught = [name for name, s in config.students.items() if s.supervision == "teacher" or name == STUDENT]
    direct = [name for name in (TUNED, GATED) if name in names] or [PLAIN]
    found = []
    for student in taught if rows else []:
        branches = [name for part in BRANCHES if (name := row_name(student, part)) in names]
        heard = config.students[student].vlm_names
        asked = [row for scorer in direct_vlms(config.vlms) if scorer.vlm in heard for row in scorer.rows]
        others = [*direct, *asked, *([best_of(rows, branches)] if branches else [])]
        found += [compare(rows, student, other) for other in others]
    return found


def _dropped(config: PipelineConfig, splits: dict[str, np.ndarray]) -> dict[str, dict[str, int]]:
    """What each zero-shot split takes out of the training labels; nothing without either of them."""
    if not splits or not has_labels(config.dataset, config.train.split):
        return {}
    labels = load_labels(config.dataset, config.train.split)
    return {name: asdict(drop_unseen(labels, ids)[1]) for name, ids in splits.items()}


def _plain(
    config: PipelineConfig, rows: list[ResultRow], num_images: int, splits: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Rows as they go into results.json, each with its zero-shot means in percent and the labels read for it."""
    plain = []
    for row in rows:
        means = means_of_splits(row.result, splits_of_row(row, splits))
        further = {"zero_shot": in_percent(means)} if means else {}
        plain.append({**row.to_dict(num_images), **further, "audit": audit_row(config, row.knobs)})
    return plain


def _write(
    config: PipelineConfig,
    split: CacheSplit,
    rows: list[ResultRow],
    comparisons: list[Comparison],
    agreement: dict[str, dict[str, float]],
    device: torch.device,
    written: list[Path],
) -> Report:
    folder, means = Path(config.output), means_over_seeds(rows)
    splits = zero_shot_splits(config) if rows else {}
    names = [record["name"] for record in means]
    direct = TUNED if TUNED in names else PLAIN
    summary: dict[str, Any] = {
        "split": config.evaluation.split,
        "num_images": split.num_images,
        "num_pairs": split.num_pairs,
        "means": means,
        "comparisons": [found.to_dict() for found in comparisons],
        "against_direct": [compare(rows, name, direct).to_dict() for name in names if name != direct],
        "agreement": agreement,
        "config": config.model_dump(mode="json"),
        "zero_shot_unseen": {name: ids.tolist() for name, ids in splits.items()},
        "zero_shot_dropped": _dropped(config, splits),
        "fingerprint": split.fingerprint,
        "commit": commit(),
        "versions": library_versions(LIBRARIES),
        "device": device.type,
    }
    contents: dict[str, Any] = {}
    if rows and rows[0].further:
        summary["vcoco"] = vcoco_means(rows)
    if rows:
        contents["per_class.json"] = per_class(rows, split.vocabulary)
    contents["summary.json"] = summary
    if rows:
        plain = _plain(config, rows, split.num_images, splits)
        contents["audit.json"] = audit(config, plain, summary["zero_shot_dropped"])
        # Last, so that a full disk leaves no result table that is newer than what explains it.
        contents["results.json"] = plain
    for name, plain in contents.items():
        write_json(folder / name, plain, sort_keys=name != "summary.json")
    positives = f", {int(rows[0].result.num_positives.sum())} annotated interactions" if rows else ""
    title = (
        f"{config.name}, split {config.evaluation.split}: {split.num_images} images, {split.num_pairs} pairs{positives}"
    )
    if rows and TUNED not in names:
        title += f"\nsplit {config.evaluation.tune_split} has no annotations: no {TUNED}, no {GATED}"
    files = [folder / name for name in contents]
    return Report(title, rows, comparisons, agreement, [*files, *written], splits)


def _command() -> None:
    config = stage_config("Stage three: the result table of baselines and trained students.")
    print(main(config))


if __name__ == "__main__":
    run_program(_command)
