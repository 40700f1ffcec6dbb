"""Export a checkpoint's student to ONNX: it takes signals of any number of images and pairs and gives final scores.

Detector and CLIP are not in it: they have exports of their own. Needs the extra `onnx`.

Shapes: B images, P pairs, K interactions.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hoi.config import StudentSettings
from hoi.errors import UserError
from hoi.files import size_text
from hoi.prediction.checkpoint import Checkpoint
from hoi.prediction.predictor import IMAGE_FIELDS, PAIR_FIELDS, ExtraFields, batch_of, random_signals
from hoi.records import PairBatch
from hoi.students.base import Student

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
OPSET = 18
EXPORTED = ("multilevel",)
MAX_DIFFERENCE = 1e-4  # from torch's score, absolute and relative to the largest: scores of random signals are low
IMAGE_INPUTS = ("size_hw", "image_embedding", "image_similarity")
PAIR_INPUTS = (
    *("pair_image", "boxes_h", "boxes_o", "scores_h", "scores_o", "labels_o", "rows_h", "rows_o"),
    *("human_feature", "object_feature", "union_feature", "union_similarity"),
)
CHECKED = ((1, 1), (1, 6), (2, 0), (3, 4), (5, 9))
"""Numbers of images, and of pairs of each at most, of the batches on which torch and ONNX are compared."""


class ScoringStudent(nn.Module):
    """A student followed by detection prior and object mask: the scores of `score_triplets`, [P, K].

    A padding pair, with detections of its own, is added to each batch and its scores are dropped: onnxruntime aborts
    the process at operators that get no row. `exponent` is γ of the prior, `extra` the names of extra fields.
    """

    object_mask: Tensor  # bool [O, K]

    def __init__(self, student: Student, object_mask: Tensor, exponent: float, extra: Sequence[str]) -> None:
        super().__init__()
        self.student, self.exponent, self.extra = student, exponent, tuple(extra)
        self.register_buffer("object_mask", object_mask)

    def forward(self, *inputs: Tensor) -> Tensor:
        named = self._named(inputs)
        return self._scores(
            {name: value if _is_of_image(name) else _padded(name, value) for name, value in named.items()}
        )[:-1]

    def without_padding(self, *inputs: Tensor) -> Tensor:
        """Score the pairs alone, as `Predictor` does."""
        return self._scores(self._named(inputs))

    def _named(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        return dict(zip((*IMAGE_INPUTS, *PAIR_INPUTS, *self.extra), inputs, strict=True))

    def _scores(self, named: dict[str, Tensor]) -> Tensor:
        extra = ExtraFields({name: named.pop(name) for name in self.extra})
        rows = torch.arange(0)
        batch = PairBatch(image_rows=rows, pair_rows=rows, extra=extra, **named)
        scores = self.student.branch_scores(batch)["student"]
        prior = (batch.scores_h * batch.scores_o) ** self.exponent
        return torch.where(self.object_mask[batch.labels_o], prior[:, None] * scores, 0.0)


def _is_of_image(name: str) -> bool:
    return name in (*IMAGE_INPUTS, *IMAGE_FIELDS)


def _padded(name: str, values: Tensor) -> Tensor:
    # The padding pair's boxes have an area, and its detections belong to no other pair.
    added = values.new_full((1, *values.shape[1:]), -1 if name in ("rows_h", "rows_o") else 0)
    if name in ("boxes_h", "boxes_o"):
        added = values.new_tensor([[0.0, 0.0, 1.0, 1.0]])
    return torch.cat([values, added])


def export_student(folder: Path) -> tuple[bytes, str]:
    """Export the student of a checkpoint's folder, and compare it with torch on random signals of several sizes.

    Returns the ONNX file, and in words how far its scores are from torch's. Raises UserError: a package is missing, the
    student cannot be exported, or its scores differ by more than 1e-4.
    """
    for package in PACKAGES:
        try:
            import_module(package)
        except ImportError:
            problem, fix = f"an ONNX file needs {package}, which is not installed", f"pip install {' '.join(PACKAGES)}"
            raise UserError(problem, expected="the extra `onnx`", fix=fix) from None
    checkpoint = Checkpoint.open(folder)
    settings = checkpoint.config.students[checkpoint.name]
    check_exportable(checkpoint.name, settings)
    student, mask = checkpoint.student(), torch.from_numpy(checkpoint.vocabulary.object_mask)
    scoring = ScoringStudent(student, mask, settings.score_exponent, student.scoring_fields).eval()
    names = (*IMAGE_INPUTS, *PAIR_INPUTS, *scoring.extra)
    data = _export(scoring, _inputs(_random_batch(checkpoint, 2, 5, seed=0), scoring.extra), names)
    difference, share = _compare(data, scoring, checkpoint, names)
    return data, (
        f"{size_text(len(data))}, at most {difference:.1e} from torch, {share:.1e} of the largest score, "
        f"in {len(CHECKED)} batches of different sizes"
    )


def check_exportable(name: str, settings: StudentSettings) -> None:
    """Raise if a student's method has no ONNX form: attention over pairs, whose number the exporter would fix."""
    if settings.method not in EXPORTED:
        raise UserError(
            f"a student of the method '{settings.method}' has no ONNX form",
            where=f"student '{name}'",
            expected=f"method {' or '.join(EXPORTED)}",
            fix="leave out --onnx: hoi predict and Predictor run the checkpoint itself",
        )


def _export(scoring: ScoringStudent, example: tuple[Tensor, ...], names: Sequence[str]) -> bytes:
    images, pairs = torch.export.Dim("images"), torch.export.Dim("pairs")
    shapes = tuple({0: images if _is_of_image(name) else pairs} for name in names)
    # The exporter prints, warns and logs.
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.export.export(scoring, example, dynamic_shapes=(shapes,), strict=True)
        exported = torch.onnx.export(
            program, input_names=list(names), output_names=["score"], opset_version=OPSET, dynamo=True, verbose=False
        )
    if exported is None:
        raise RuntimeError("torch.onnx.export gave no program")
    return exported.model_proto.SerializeToString()


def _compare(data: bytes, scoring: ScoringStudent, checkpoint: Checkpoint, names: Sequence[str]) -> tuple[float, float]:
    runtime = import_module("onnxruntime")
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    wanted = {each.name for each in session.get_inputs()}
    worst, share = 0.0, 0.0
    for seed, (num_images, most_pairs) in enumerate(CHECKED, start=1):
        inputs = _inputs(_random_batch(checkpoint, num_images, most_pairs, seed), scoring.extra)
        with torch.inference_mode():
            expected = scoring.without_padding(*inputs).numpy()
        fed = {name: value.numpy() for name, value in zip(names, inputs, strict=True) if name in wanted}
        [actual] = session.run(None, fed)
        if actual.shape != expected.shape:
            raise RuntimeError(f"the ONNX file gives scores {actual.shape} for {expected.shape}")
        difference = float(np.abs(actual - expected).max(initial=0))
        worst, share = max(worst, difference), max(share, difference / float(expected.max(initial=1e-30)))
    if not max(worst, share) <= MAX_DIFFERENCE:
        raise UserError(
            "the ONNX file does not score as torch does",
            where=checkpoint.folder,
            expected=f"a difference of at most {MAX_DIFFERENCE:g}",
            got=f"{worst:.2g}, {share:.2g} of the largest score",
        )
    return worst, share


def _inputs(batch: PairBatch, extra: Sequence[str]) -> tuple[Tensor, ...]:
    fields = [getattr(batch, name) for name in (*IMAGE_INPUTS, *PAIR_INPUTS)]
    return (*fields, *(batch.extra[name] for name in extra))


def _random_batch(checkpoint: Checkpoint, num_images: int, most_pairs: int, seed: int) -> PairBatch:
    rng = np.random.default_rng(seed)
    num_pairs = [1 + int(rng.integers(most_pairs)) if most_pairs else 0 for _ in range(num_images)]
    signals = [random_signals(checkpoint, num, rng) for num in num_pairs]
    known = [name for name in (*IMAGE_FIELDS, *PAIR_FIELDS) if getattr(signals[0], name) is not None]
    return batch_of(signals, known, checkpoint.vocabulary.no_object_idx)
