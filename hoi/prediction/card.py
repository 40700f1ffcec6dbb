"""What a checkpoint is, in words: its model card."""

from __future__ import annotations

from typing import Any

from hoi.config import PipelineConfig
from hoi.evaluation.audit import detector_training_data, teacher_training_data
from hoi.vocabulary import Vocabulary

MEANS = {"full": "mAP", "rare": "rare", "non_rare": "non-rare"}
SHOWN_INTERACTIONS = 12


def model_card(record: dict[str, Any], config: PipelineConfig, vocabulary: Vocabulary) -> str:
    """A checkpoint's record and the config that it was trained with to its card, Markdown.

    Args:
        record: What goes into checkpoint.json.
        config: With places as they were at training.
        vocabulary: Of the student.
    """
    name, trained = record["name"], record["trained"]
    settings = config.students[name]
    by_labels = settings.supervision == "labels"
    labels = (
        f"HOI labels of the split `{config.train.split}` trained it, and those of `{config.evaluation.tune_split}` "
        "chose its epoch."
        if by_labels
        else "None. It learned from frozen CLIP's scores of the training images."
    )
    detector, teacher = detector_training_data(config), teacher_training_data(config)
    listed = ", ".join(vocabulary.names[:SHOWN_INTERACTIONS]).replace("_", " ")
    more = len(vocabulary) - SHOWN_INTERACTIONS
    parts = [
        f"# {config.name}: {name}, seed {record['seed']}",
        f"A human-object interaction detector: ⟨human, verb, object⟩ with both boxes, method `{settings.method}`. "
        f"Run it with `python -m stages.predict --checkpoint DIR --images PATH --out OUT`, or "
        "`Predictor.from_checkpoint(DIR)` of `hoi.prediction`.",
        "## What it was made from",
        f"- Images: {trained['num_images']} of the split `{config.train.split}` of the data set "
        f"`{config.dataset.name}`, with {trained['num_pairs']} pairs.\n"
        f"- HOI labels: {labels}\n"
        f"- Detector: {_model(record, 'detector', detector)}\n"
        f"- CLIP: {_model(record, 'teacher', teacher)}\n"
        f"- Vocabulary: {len(vocabulary)} interactions of {len(vocabulary.objects)} objects and "
        f"{len(vocabulary.verbs)} verbs: {listed}{f', and {more} more' if more > 0 else ''}.",
        "## Figures",
        _figures(record["figures"], config),
        "## Limits",
        "- It knows the interactions of its vocabulary and no other, and of each pair it scores those alone that the "
        "detected object admits. What the detector misses, it cannot find.\n"
        "- Scores order the findings of one interaction. They are no probabilities, and those of two interactions "
        "cannot be compared with confidence.\n"
        "- What CLIP takes for likely in a picture, the student has learned, CLIP's mistakes and prejudices among it. "
        "Nobody has checked it on groups of people, and it must not decide anything about anybody.\n"
        "- Figures hold for images like those that they were measured on.",
        "## Provenance",
        f"Cache fingerprint `{trained['fingerprint']}`, commit `{trained['commit']}`, "
        + ", ".join(f"{package} {version}" for package, version in sorted(trained["versions"].items()))
        + ".",
    ]
    return "\n\n".join(parts) + "\n"


def _model(record: dict[str, Any], part: str, known: dict[str, str]) -> str:
    own = [place for key, place in record["places"].items() if key.startswith(f"{part}.")]
    where = "in `models/`" if own and all(place["copy"] for place in own) else "not in this folder"
    sha256 = record["models"][part].get("weights_sha256")
    hashed = f", weights sha256 `{sha256[:16]}…`" if sha256 else ""
    return f"`{known['name']}`{hashed}, {where}. Trained on: {known['trained_on']}."


def _figures(figures: dict[str, Any] | None, config: PipelineConfig) -> str:
    if figures is None:
        return "It has not been graded (`python -m stages.evaluate`, with annotations)."
    means = ", ".join(
        f"{word} {figures['means'][mean]:.2f}" for mean, word in MEANS.items() if mean in figures["means"]
    )
    return (
        f"Split `{figures['split']}` of `{config.dataset.name}`, {figures['num_images']} images, by HICO-DET's "
        f"official rule, in percent, this seed: {means}."
    )
