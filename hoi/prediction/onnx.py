"""A checkpoint's student as an ONNX file: signals of any number of images and pairs to the final score of each pair.

Detector and CLIP are not in it: they have exports of their own. Needs the extra `onnx`.

Letters: B images, P pairs, K interactions.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hoi.config import StudentSettings
from hoi.errors import UserError
from hoi.extraction import similarity
from hoi.prediction.batch import IMAGE_FIELDS, PAIR_FIELDS, ExtraFields, batch_of
from hoi.prediction.checkpoint import Checkpoint
from hoi.records import Detections, ImageSignals, PairBatch
from hoi.students.registry import Student

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
OPSET = 18
EXPORTED = ("multilevel",)
MAX_DIFFERENCE = 1e-4
"""Of any score from torch, as it is and as a share of the largest: scores of made-up signals are low."""
IMAGE_INPUTS = ("size_hw", "image_embedding", "image_similarity")
PAIR_INPUTS = (
    *("pair_image", "boxes_h", "boxes_o", "scores_h", "scores_o", "labels_o", "rows_h", "rows_o"),
    *("human_feature", "object_feature", "union_feature", "union_similarity"),
)
CHECKED = ((1, 1), (1, 6), (2, 0), (3, 4), (5, 9))
"""Images of a batch and most pairs of each, on which torch and ONNX are compared."""
BOXES = ("boxes_h", "boxes_o")
ROWS = ("rows_h", "rows_o")


class ScoringStudent(nn.Module):
    """A student with the detection prior and the object mask behind it: what `score_triplets` would give, [P, K].

    One more pair, with detections of its own, goes along with those of a batch and is dropped again: onnxruntime ends
    the whole process at operators that are given no row.

    Args:
        student: In evaluation mode.
        object_mask: bool [O, K].
        exponent: γ of the prior.
        extra: Names of the further fields that it scores with.
    """

    object_mask: Tensor

    def __init__(self, student: Student, object_mask: Tensor, exponent: float, extra: Sequence[str]) -> None:
        super().__init__()
        self.student, self.exponent, self.extra = student, exponent, tuple(extra)
        self.register_buffer("object_mask", object_mask)

    def forward(self, *inputs: Tensor) -> Tensor:
        named = self._named(inputs)
        return self._scores(
            {name: value if _is_of_image(name) else _one_more(name, value) for name, value in named.items()}
        )[:-1]

    def plain(self, *inputs: Tensor) -> Tensor:
        """The same of the pairs alone, as `Predictor` has it."""
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


def _one_more(name: str, values: Tensor) -> Tensor:
    """Values of the pairs, and of one more whose boxes have an area and whose detections are nobody else's."""
    if name in BOXES:
        added = values.new_tensor([[0.0, 0.0, 1.0, 1.0]])
    else:
        added = values.new_full((1, *values.shape[1:]), -1 if name in ROWS else 0)
    return torch.cat([values, added])


@dataclass(frozen=True)
class ExportedStudent:
    """An ONNX file.

    Args:
        data: Its bytes.
        difference: The largest, between its scores and torch's.
        share: The same as a share of its batch's largest score.
        num_compared: Batches of other numbers of images and pairs than the exported one.
    """

    data: bytes
    difference: float
    share: float
    num_compared: int

    def __str__(self) -> str:
        return (
            f"{len(self.data) / 1e6:.1f} MB, at most {self.difference:.1e} from torch, {self.share:.1e} "
            f"of the largest score, in {self.num_compared} batches of different sizes"
        )


def export_student(folder: Path) -> ExportedStudent:
    """A checkpoint's folder to its student as an ONNX file.

    The difference is measured on made-up signals of several numbers of images and pairs, none of them the exported one.

    Raises:
        UserError: a package is missing, the student cannot be exported, or its scores differ by more than 1e-4.
    """
    _check_packages()
    checkpoint = Checkpoint.open(folder)
    settings = checkpoint.config.students[checkpoint.name]
    refuse_what_has_no_export(checkpoint.name, settings)
    student = checkpoint.student()
    extra = student.scoring_fields
    mask = torch.from_numpy(checkpoint.vocabulary.object_mask)
    scoring = ScoringStudent(student, mask, settings.score_exponent, extra).eval()
    names = (*IMAGE_INPUTS, *PAIR_INPUTS, *extra)
    data = _export(scoring, _inputs(_made_up(checkpoint, 2, 5, seed=0), extra), names)
    return ExportedStudent(data, *_compare(data, scoring, checkpoint, names), len(CHECKED))


def refuse_what_has_no_export(name: str, settings: StudentSettings) -> None:
    """Nothing, where a student's method can be written as ONNX.

    Raises:
        UserError: its attention runs over each image's own pairs, whose number ONNX's exporter would fix.
    """
    if settings.method not in EXPORTED:
        raise UserError(
            f"a student of the method '{settings.method}' has no ONNX form",
            where=f"student '{name}'",
            expected=f"method {' or '.join(EXPORTED)}",
            fix="leave --onnx out: the checkpoint itself runs by hoi.prediction.run and Predictor",
        )


def _check_packages() -> None:
    for package in PACKAGES:
        try:
            import_module(package)
        except ImportError:
            raise UserError(
                f"an ONNX file needs {package}, which is not installed",
                expected="the extra `onnx`",
                fix=f"pip install {' '.join(PACKAGES)}",
            ) from None


def _export(scoring: ScoringStudent, example: tuple[Tensor, ...], names: Sequence[str]) -> bytes:
    """The network to the bytes of its ONNX file, for any number of images and pairs."""
    images, pairs = torch.export.Dim("images"), torch.export.Dim("pairs")
    shapes = tuple({0: images if _is_of_image(name) else pairs} for name in names)
    # The exporter talks on every channel that there is.
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
    """The largest difference between torch's scores and those of the file, and the largest share of a score."""
    runtime = import_module("onnxruntime")
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    asked = {each.name for each in session.get_inputs()}
    worst, share = 0.0, 0.0
    for seed, (num_images, most_pairs) in enumerate(CHECKED, start=1):
        inputs = _inputs(_made_up(checkpoint, num_images, most_pairs, seed), scoring.extra)
        with torch.inference_mode():
            expected = scoring.plain(*inputs).numpy()
        fed = {name: value.numpy() for name, value in zip(names, inputs, strict=True) if name in asked}
        [found] = session.run(None, fed)
        if found.shape != expected.shape:
            raise RuntimeError(f"the ONNX file gives scores {found.shape} for {expected.shape}")
        difference = float(np.abs(found - expected).max(initial=0))
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
    own = [getattr(batch, name) for name in (*IMAGE_INPUTS, *PAIR_INPUTS)]
    return (*own, *(batch.extra[name] for name in extra))


def _made_up(checkpoint: Checkpoint, num_images: int, most_pairs: int, seed: int) -> PairBatch:
    """Signals that no image has: features near the texts of interactions, so that scores are of all sizes."""
    dice = np.random.default_rng(seed)
    num_pairs = [1 + int(dice.integers(most_pairs)) if most_pairs else 0 for _ in range(num_images)]
    signals = [_image(checkpoint, dice, num) for num in num_pairs]
    known = [name for name in (*IMAGE_FIELDS, *PAIR_FIELDS) if getattr(signals[0], name) is not None]
    return batch_of(signals, known, checkpoint.vocabulary.no_object_idx)


def _image(checkpoint: Checkpoint, dice: np.random.Generator, num_pairs: int) -> ImageSignals:
    axes, texts = checkpoint.axes, checkpoint.bank.text_embedding
    num = num_pairs + 1

    def near_texts(*shape: int) -> np.ndarray:
        vectors = texts[dice.integers(len(texts), size=shape)] + dice.normal(
            0, 0.3 / axes["D"] ** 0.5, (*shape, axes["D"])
        )
        return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float16)

    corners = dice.uniform(0, 400, (num, 2))
    image, union = near_texts(), near_texts(num_pairs, axes["M"])
    has_map = {"C", "H", "W"} <= axes.keys()
    return ImageSignals(
        image_id="made up",
        size_hw=np.array([480, 640], np.int32),
        detections=Detections(
            np.concatenate([corners, corners + dice.uniform(5, 80, (num, 2))], 1).astype(np.float32),
            dice.uniform(0.2, 1, num).astype(np.float32),
            np.r_[checkpoint.vocabulary.person_idx, dice.integers(len(checkpoint.vocabulary.objects), size=num_pairs)],
        ),
        pairs_ho=np.stack([np.zeros(num_pairs), np.arange(1, num)], 1).astype(np.int32),
        image_embedding=image,
        image_similarity=similarity(image, texts),
        union_embedding=union,
        union_similarity=similarity(union, texts),
        detection_feature=near_texts(num, axes["L"]),
        union_feature=near_texts(num_pairs, axes["L"]),
        spatial_map=dice.normal(size=(axes["C"], axes["H"], axes["W"])).astype(np.float16) if has_map else None,
    )
