"""Evaluators' results to what `stages.score` writes and prints. Fractions are written, percents printed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hoi.datasets.vcoco_actions import ACTION_ROLES, ACTIONS
from hoi.evaluation.hico import HicoResult
from hoi.evaluation.vcoco import VcocoResult

MEANS = ("full", "rare", "non_rare", "without_no_interaction")


@dataclass
class Score:
    """What was found.

    Args:
        content: What goes into the JSON file.
        lines: What is printed.
        notices: What a reader of the figures should know; printed and written.
    """

    content: dict[str, Any]
    lines: list[str]
    notices: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join([*self.lines, *(f"note: {notice}" for notice in self.notices)])


def summarise_hico(
    settings: Mapping[str, HicoResult], protocol: str, num_images: int, num_predictions: int, num_elsewhere: int = 0
) -> Score:
    """Results by setting, the last of them the one that was asked for, to a score.

    Args:
        settings: `default` and, where it was asked for, `known_object`.
        protocol: Whose rule.
        num_images: Those that count.
        num_predictions: Those in images that count.
        num_elsewhere: Predictions in other images.
    """
    setting, result = list(settings.items())[-1]
    num_with_truth = int((result.num_positives > 0).sum())
    content = {
        **_means(result),
        "ap": result.ap.tolist(),
        "num_positives": result.num_positives.tolist(),
        "num_interactions_with_truth": num_with_truth,
        "protocol": protocol,
        "setting": setting,
        "num_images": num_images,
        "num_predictions": num_predictions,
        "num_predictions_elsewhere": num_elsewhere,
    }
    if setting != "default":
        content["default"] = _means(settings["default"])
    lines = [
        f"{protocol} rule: {num_images} images, {int(result.num_positives.sum())} annotated interactions of "
        f"{num_with_truth} kinds, {num_predictions} predictions",
        f"{'':14}{'full':>8}{'rare':>8}{'non-rare':>10}{'without no_interaction':>24}",
    ]
    for name, found in settings.items():
        full, rare, non_rare, without = (_percent(value) for value in _means(found).values())
        lines.append(f"{name:14}{full:>8}{rare:>8}{non_rare:>10}{without:>24}")
    return Score(content, lines)


def summarise_vcoco(result: VcocoResult, num_images: int, num_predictions: int) -> Score:
    """V-COCO's result to a score; `role_ap_s1` and `role_ap_s2` are over all 25 roles, `..._24` without `point`."""
    role_ap = np.stack([result.role_ap_s1, result.role_ap_s2], axis=1).tolist()
    content: dict[str, Any] = {
        "agent_ap": result.agent,
        "role_ap_s1": result.role("scenario_1", 25),
        "role_ap_s2": result.role("scenario_2", 25),
        "role_ap_s1_24": result.role("scenario_1", 24),
        "role_ap_s2_24": result.role("scenario_2", 24),
        "per_role": {
            f"{action}_{role}": {"s1": s1, "s2": s2}
            for (action, role), (s1, s2) in zip(ACTION_ROLES, role_ap, strict=True)
        },
        "per_agent": dict(zip(ACTIONS, result.agent_ap.tolist(), strict=True)),
        "num_positives": dict(zip(ACTIONS, result.num_positives.tolist(), strict=True)),
        "num_images": num_images,
        "num_predictions": num_predictions,
    }
    lines = [
        f"vsrl_eval's rule: {num_images} images, {num_predictions} predictions",
        f"{'':19}{'scenario 1':>12}{'scenario 2':>12}",
    ]
    for num_roles, suffix in ((25, ""), (24, "_24")):
        s1, s2 = (_percent(content[f"role_ap_{scenario}{suffix}"]) for scenario in ("s1", "s2"))
        lines.append(f"role AP, {num_roles} roles  {s1:>12}{s2:>12}")
    return Score(content, [*lines, f"{'agent AP':19}{_percent(result.agent):>12}"])


def _means(result: HicoResult) -> dict[str, float | None]:
    return {name: getattr(result, name) for name in MEANS}


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"
