"""Is it any good? What can be said of students without a label: agreement with CLIP, consistency, coverage.

Agreement and coverage are of all pairs of `evaluation.split`, out of the cache. Consistency is measured on a sample of
its images, which go through the teacher again: mirrored, cropped, and with boxes drawn otherwise. No label is read.

    python -m hoi.quality.run [--sample 24] [--branches] [--config pipeline.yaml] [section.key=value ...]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from hoi.cache.read.split import CacheSplit, open_split
from hoi.cli.command_line import stage_parser
from hoi.config import PipelineConfig, load_config
from hoi.datasets import UnreadableImage, open_images
from hoi.detectors import build_detector
from hoi.errors import UserError, run_program
from hoi.evaluation.baselines import DirectClip, direct_settings
from hoi.extraction import Extractor
from hoi.files import write_json
from hoi.machine import choose_device
from hoi.quality.looks import (
    CarriedDetections,
    Looks,
    SampledImage,
    found_again,
    look_again,
)
from hoi.quality.measures import LIMITS, coverage, format_quality, largest_object, mean_of, rank_agreement, same_first
from hoi.records import Detections, PairBatch
from hoi.scoring import Scorer, extra_of
from hoi.training.train import run_folder

FILE_NAME = "quality.json"
BATCH_IMAGES = 64
TEACHER = "direct_clip"
STUDENT = "student"
"""Name of a student's fused score among its branches."""


@dataclass(frozen=True)
class Report:
    """What was measured and where it was written.

    Args:
        content: As in the file.
        path: The file.
    """

    content: dict[str, Any]
    path: Path

    def __str__(self) -> str:
        return f"{format_quality(self.content)}\n\nwrote {self.path}"


@dataclass(frozen=True)
class Candidate:
    """A scorer of pairs: a student, or the teacher in its place.

    Args:
        scorer: On its device.
        row: Name of its score.
        exponent: Of the detection prior.
        device: Where it computes.
    """

    scorer: Scorer
    row: str
    exponent: float
    device: torch.device

    def score(self, batch: PairBatch) -> torch.Tensor:
        """[P, K] on the CPU, without the detection prior."""
        return self.scorer.branch_scores(batch.to(self.device))[self.row].cpu()


@dataclass(frozen=True)
class Scored:
    """All pairs of a split.

    Args:
        scores: [P, K] by candidate, without the prior.
        prior: [P], s_h · s_o.
        admitted: bool [P, K].
        image: [P].
        labels_o: [P].
    """

    scores: dict[str, np.ndarray]
    prior: np.ndarray
    admitted: np.ndarray
    image: np.ndarray
    labels_o: np.ndarray


def main(config: PipelineConfig, sample: int = 24, branches: bool = False) -> Report:
    """Measures every student of the teacher, first seed, and the teacher itself.

    Args:
        config: The pipeline file.
        sample: Images that are looked at again; 0 for none.
        branches: Whether each branch of a student is measured as well.

    Raises:
        UserError: no cache, no trained student, or a split without a pair.
    """
    torch.set_num_threads(config.train.threads)
    split = open_split(config, config.evaluation.split)
    if not split.num_pairs:
        raise UserError("there is no pair to look at", where=f"split '{config.evaluation.split}'", fix="add images")
    candidates = _candidates(config, split, branches)
    scored = _score(split, candidates)
    looks, refound, num_looked = _look_again(config, split, candidates, scored, sample)
    common, thing = largest_object(scored.labels_o, len(split.vocabulary.objects)), split.vocabulary.objects
    content: dict[str, Any] = {
        "name": config.name,
        "split": config.evaluation.split,
        "num_images": split.num_images,
        "num_readable": int(split.is_readable.sum()),
        "num_images_with_pair": int((np.diff(split.pair_offsets) > 0).sum()),
        "num_pairs": split.num_pairs,
        "num_images_looked_at_again": num_looked,
        "largest_object": {"name": thing[common[0]], "share_of_pairs": common[1]},
        "detections_found_again": refound,
        "phrases": split.vocabulary.names,
        "scorers": {name: _judge(name, c, scored, looks) for name, c in candidates.items()},
        "limits": list(LIMITS),
        "labels_read": None,
        "fingerprint": split.fingerprint,
    }
    path = Path(config.output) / FILE_NAME
    write_json(path, content)
    return Report(content, path)


def _candidates(config: PipelineConfig, split: CacheSplit, branches: bool) -> dict[str, Candidate]:
    device = choose_device(config.train.device)
    plain = DirectClip(split.text_bank, split.vocabulary, direct_settings(split.text_bank, split.axes["M"])[0], TEACHER)
    found = {}
    for name, settings in config.students.items():
        if settings.supervision == "teacher":
            folder = run_folder(config, name, config.train.seeds[0], split.fingerprint)
            student = folder.load_student(split.text_bank, split.vocabulary, split.axes).to(device)
            found[name] = Candidate(student, STUDENT, settings.score_exponent, device)
            if branches:
                batch = next(split.batches(1, extra=student.extra_fields)).to(device)
                with torch.inference_mode():
                    rows = [row for row in student.branch_scores(batch) if row != STUDENT]
                found |= {f"{name}/{row}": Candidate(student, row, settings.score_exponent, device) for row in rows}
    return {**found, TEACHER: Candidate(plain, TEACHER, 1.0, device)}


def _extra(candidates: dict[str, Candidate]) -> list[str]:
    return sorted({field for each in candidates.values() for field in extra_of(each.scorer)})


def _score(split: CacheSplit, candidates: dict[str, Candidate]) -> Scored:
    scores: dict[str, list[np.ndarray]] = {name: [] for name in candidates}
    prior, image, labels = [], [], []
    with torch.inference_mode():
        for batch in split.batches(BATCH_IMAGES, extra=_extra(candidates)):
            for name, candidate in candidates.items():
                scores[name].append(candidate.score(batch).double().numpy())
            prior.append((batch.scores_h * batch.scores_o).double().numpy())
            image.append(batch.image_rows[batch.pair_image].numpy())
            labels.append(batch.labels_o.numpy())
    labels_o = np.concatenate(labels)
    return Scored(
        {name: np.concatenate(parts) for name, parts in scores.items()},
        np.concatenate(prior),
        split.vocabulary.object_mask[labels_o],
        np.concatenate(image),
        labels_o,
    )


def _look_again(
    config: PipelineConfig, split: CacheSplit, candidates: dict[str, Candidate], scored: Scored, sample: int
) -> tuple[dict[str, Looks], float | None, int]:
    """Views' scores, the share of detections that are found again, and the images that this was seen on."""
    with_pair = np.flatnonzero(np.diff(split.pair_offsets) > 0)
    rows = with_pair[np.unique(np.linspace(0, len(with_pair) - 1, min(sample, len(with_pair))).astype(int))]
    images = list(_sampled(config, split, scored, rows)) if sample else []
    if not images:
        return {}, None, 0
    device = choose_device(config.cache.device, "cache.device").type
    carried = CarriedDetections()
    extractor = Extractor(config, split.vocabulary, device, split.text_bank, few_images=True, detector=carried)
    scorers: dict[str, Callable[[PairBatch], torch.Tensor]] = {name: c.score for name, c in candidates.items()}
    with tqdm(total=len(images), desc="looking again", unit="image", disable=None, leave=False) as bar:
        looks = look_again(
            images, extractor, carried, scorers, _extra(candidates), split.vocabulary, partial(bar.update, 1)
        )
    refound = None
    if not config.detector.is_looked_up:
        detector = build_detector(config.detector, split.vocabulary, device, config.dataset)
        refound = found_again(images, detector, config.pairs.min_score)
    return looks, refound, len(images)


def _sampled(config: PipelineConfig, split: CacheSplit, scored: Scored, rows: np.ndarray) -> Iterator[SampledImage]:
    source = open_images(config.dataset, config.evaluation.split)
    row_of = {image_id: row for row, image_id in enumerate(source.image_ids)}
    for row in rows.tolist():
        image_id = split.image_ids[row]
        try:
            pixels = source.read(row_of[image_id])
        except UnreadableImage:
            continue
        there = slice(*split.detection_offsets[row : row + 2])
        detections = Detections(split.boxes_xyxy[there], split.scores[there], split.labels[there])
        pairs = scored.image == row
        yield SampledImage(image_id, pixels, detections, {name: s[pairs] for name, s in scored.scores.items()})


def _judge(name: str, candidate: Candidate, scored: Scored, looks: dict[str, Looks]) -> dict[str, Any]:
    """Everything that is said of one scorer."""
    own, teacher = scored.scores[name], scored.scores[TEACHER]
    measured: dict[str, Any] = {}
    if name != TEACHER:
        measured["teacher"] = _alike(own, teacher, scored.admitted)
    for view, look in looks.items():
        measured[view] = _alike(*look.of(name))
    final = own * (scored.prior**candidate.exponent)[:, None]
    covered = coverage(final, scored.admitted, scored.image)
    return {
        "measures": {
            key: {"rank": value["rank"], "same_first": value["same_first"]} for key, value in measured.items()
        },
        "phrases": [
            {**found.to_dict(), "rank": {key: value["by_phrase"][k] for key, value in measured.items()}}
            for k, found in enumerate(covered)
        ],
    }


def _alike(first: np.ndarray, second: np.ndarray, admitted: np.ndarray) -> dict[str, Any]:
    by_phrase = rank_agreement(first, second, admitted)
    return {"rank": mean_of(by_phrase), "same_first": same_first(first, second, admitted), "by_phrase": by_phrase}


def _command(arguments: Sequence[str] | None = None) -> None:
    parser = stage_parser("What can be said of the students without labels: agreement, consistency, coverage.")
    parser.add_argument(
        "--sample", type=int, default=24, metavar="N", help="images that are looked at again (default: %(default)s)"
    )
    parser.add_argument("--branches", action="store_true", help="measure each branch of a student as well")
    parsed = parser.parse_args(arguments)
    if parsed.sample < 0:
        parser.error("--sample must not be negative")
    print(main(load_config(parsed.config, parsed.overrides), parsed.sample, parsed.branches))


if __name__ == "__main__":
    run_program(_command)
