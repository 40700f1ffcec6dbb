"""Is a vision language model sane? What it says of whole images against their labels, with CLIP beside it.

As the gates of `hoi.evaluation.sanity`, this one judges and chooses nothing.

Letters: I images, K interactions.
"""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from hoi.evaluation.sanity import NUM_SHUFFLES, TEACHER_FLOOR, Figure, SanityGate, judge, mean_ap, positives
from hoi.records import HoiLabels
from hoi.vocabulary import Vocabulary

NOT_ASKED = -1.0
"""Below every score: an image where an interaction was no candidate comes last."""


def vllm_gate(
    name: str,
    scores: np.ndarray,
    asked: np.ndarray,
    similarity: np.ndarray,
    logit_scale: float,
    is_readable: np.ndarray,
    labels: HoiLabels,
    vocabulary: Vocabulary,
) -> SanityGate:
    """Readable images ranked by a pass's confidences, against the image-level labels: mean AP.

    Over the interactions that it was asked in any image. CLIP's cosines are ranked on the same interactions twice: as
    they are, and with the images last where the pass was not asked, which the detector alone has told it.

    Args:
        name: Of the pass.
        scores, asked: [I, K].
        similarity: [I, K], CLIP's cosines of whole images.
        logit_scale: Of CLIP's softmax.
        is_readable: bool [I].
        labels: At least one.
        vocabulary: K interactions.
    """
    asked = asked[is_readable] > 0
    columns = asked.any(0)
    present = positives(labels, len(is_readable), vocabulary)[is_readable][:, columns]
    asked = asked[:, columns]
    said = np.where(asked, scores[is_readable][:, columns].astype(np.float64), NOT_ASKED)
    logits = logit_scale * similarity[is_readable].astype(np.float64)
    clip = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))[:, columns]
    readings = {name: said, "clip": clip, "clip_where_asked": np.where(asked, clip, NOT_ASKED)}
    orders = {reading: np.argsort(-of, axis=0, kind="stable") for reading, of in readings.items()}
    found = {reading: mean_ap(order, present) for reading, order in orders.items()}
    dice = np.random.default_rng(0)
    chance = max(mean_ap(orders[name], dice.permutation(present)) for _ in range(NUM_SHUFFLES))
    figure = Figure(found[name], chance, TEACHER_FLOOR)
    plain = {
        "image_level_map": {**asdict(figure), "by_reading": found},
        "num_images": len(present),
        "num_interactions": int(present.any(0).sum()),
        "num_candidates": float(asked.sum(1).mean()),
    }
    text = (
        f"image-level mAP {100 * figure.value:.1f} over {plain['num_interactions']} interactions that it was asked, "
        f"{plain['num_candidates']:.1f} of an image, by chance {100 * chance:.1f}; CLIP on the same "
        f"{100 * found['clip']:.1f}, where asked {100 * found['clip_where_asked']:.1f}"
    )
    fix = f"the weights, phrases and scoring under vllms.{name}"
    return judge(name, text, [figure], plain, fix)
