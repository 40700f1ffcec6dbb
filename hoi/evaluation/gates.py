"""Between stages one and two: is the cache sane? Written to sanity.json beside the results; nothing trains on it.

    python -m hoi.evaluation.gates [--config pipeline.yaml] [section.key=value ...]

The exit code is 1 where a figure is at chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hoi.cache.plan import splits_of
from hoi.cache.read.split import CacheSplit, open_split
from hoi.cli.command_line import stage_config
from hoi.config import PipelineConfig
from hoi.errors import run_program
from hoi.evaluation.sanity import Boxes, SanityGate, detector_gate, images_gate, teacher_gate, vlm_gate
from hoi.files import read_json, write_json
from hoi.labels import has_labels, load_labels
from hoi.records import HoiLabels

FILE_NAME = "sanity.json"


@dataclass(frozen=True)
class Report:
    """What the sanity gates found.

    Args:
        split: The one whose labels were read; None where it has none.
        gates: In the order of the flow.
    """

    split: str | None
    gates: tuple[SanityGate, ...]

    @property
    def stops(self) -> bool:
        """Whether a figure is at chance, so that nothing after it could mean anything."""
        return any(gate.level == "stop" for gate in self.gates)

    def __str__(self) -> str:
        unjudged = [] if self.split else ["no annotations: detector and teacher are not judged"]
        return "\n".join([*map(str, self.gates), *unjudged])


def main(config: PipelineConfig) -> Report:
    """Measures detector and teacher on the evaluated split, and shares of images and pairs on all of them.

    Raises:
        UserError: no cache, one of other settings, or wrong annotations.
    """
    splits = {name: open_split(config, name) for name in splits_of(config)}
    name, file = config.evaluation.split, Path(config.output) / FILE_NAME
    gates = [images_gate({key: (split.is_readable, np.diff(split.pair_offsets)) for key, split in splits.items()})]
    judged = None
    labels = load_labels(config.dataset, name) if has_labels(config.dataset, name) else None
    if labels is not None and len(labels):
        judged = name
        gates += _judge(splits[name], labels)
        passes = [key for key, settings in config.vlms.items() if settings.image_scores]
        gates += [_judge_pass(splits[name], key, labels) for key in passes]
    content: dict[str, Any] = {
        "gates": [gate.to_dict() for gate in gates],
        "labels_read": judged,
        "fingerprint": splits[name].fingerprint,
    }
    write_json(file, content)
    return Report(judged, tuple(gates))


def read(file: Path) -> Report:
    """What `main` wrote, back from its file."""
    content = read_json(file)
    return Report(content["labels_read"], tuple(SanityGate(**gate) for gate in content["gates"]))


def _judge(split: CacheSplit, labels: HoiLabels) -> list[SanityGate]:
    image = np.repeat(np.arange(split.num_images), np.diff(split.detection_offsets))
    detections = Boxes(image, split.labels, split.boxes_xyxy, split.boxes_xyxy)
    human, thing = split.pairs_ho.T
    pairs = Boxes(image[human], split.labels[thing], split.boxes_xyxy[human], split.boxes_xyxy[thing])
    similarity, scale = split.table("image_similarity"), split.text_bank.logit_scale
    return [
        detector_gate(detections, pairs, labels, split.vocabulary, split.num_images),
        teacher_gate(similarity, scale, split.is_readable, labels, split.vocabulary),
    ]


def _judge_pass(split: CacheSplit, name: str, labels: HoiLabels) -> SanityGate:
    scores, asked = (split.table(f"{name}/{own}") for own in ("vlm_scores", "vlm_asked"))
    similarity, scale = split.table("image_similarity"), split.text_bank.logit_scale
    return vlm_gate(name, scores, asked, similarity, scale, split.is_readable, labels, split.vocabulary)


def _command() -> int:
    config = stage_config("Is the cache sane? Detector and teacher against the labels of the evaluated split.")
    report = main(config)
    print(f"{report}\nwrote {Path(config.output) / FILE_NAME}")
    return 1 if report.stops else 0


if __name__ == "__main__":
    run_program(_command)
