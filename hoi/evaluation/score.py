"""Average precision of anybody's predictions: `hoi score`; docs/predictions.md describes the files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from hoi.config import load_config
from hoi.datasets import dataset_of, load_vocabulary, open_images
from hoi.datasets.hicodet import UNSEEN_SHA256, hicodet_vocabulary, rare, unseen
from hoi.datasets.names import join_names, plain_name
from hoi.errors import UserError, nearest
from hoi.evaluation.diagnose import Compared, compare, compare_vcoco, diagnose, table
from hoi.evaluation.hico import (
    PROTOCOLS,
    HicoResult,
    ProtocolName,
    evaluate,
    known_object_images,
    match,
    score_matches,
    zero_shot_means,
)
from hoi.evaluation.predictions import FORMATS, PredictionReader
from hoi.evaluation.vcoco import VcocoPredictions
from hoi.evaluation.vcoco import evaluate as evaluate_vcoco
from hoi.files import file_sha256, read_lines, write_atomically, write_json
from hoi.json_lines import Records
from hoi.labels import load_labels, rare_mask
from hoi.labels.folder import read_annotation_lines
from hoi.labels.hicodet_files import read_annotations, read_image_labels
from hoi.labels.vcoco_files import join_instances, read_labels
from hoi.provenance import commit, library_versions
from hoi.records import HoiLabels, Triplets
from hoi.vocabulary import NO_INTERACTION, Vocabulary

MEANS = ("full", "rare", "non_rare", "without_no_interaction")
NUM_SHOWN = 5  # pairs left out that are named; of more, the number
TINY_PX = 2.0  # an object box below this, edge to edge, stands for no object in some result files


@dataclass
class ScoreReport:
    """Figures of a file of predictions; fractions are written, percents printed."""

    content: dict[str, Any]  # what goes into the JSON file
    lines: list[str]
    notices: list[str] = field(default_factory=list)  # what a reader of the figures should know
    compare: Callable[[], Compared] | None = None  # for the diagnosis, in the setting that was asked for

    def __str__(self) -> str:
        return "\n".join([*self.lines, *(f"note: {notice}" for notice in self.notices)])


@dataclass(frozen=True)
class _Options:
    annotations: Path
    predictions: Path
    format: str
    protocol: ProtocolName
    known_object: Path | None
    images: Path | None
    instances: Path | None
    clip: bool
    save_lines: Path | None

    def reader(self, names: Sequence[Any], size_hw: np.ndarray | None, *, inclusive: bool) -> PredictionReader:
        if self.clip and size_hw is None:
            what, fix = "boxes cannot be cut to images of unknown size", "leave --clip out, or cut the boxes beforehand"
            raise UserError(what, where=self.annotations, fix=fix)
        return PredictionReader(names, size_hw, inclusive, self.clip)


def score(
    dataset: str,
    annotations: Path,
    predictions: Path,
    *,
    format: str = "lines",
    protocol: str = "official",
    known_object: Path | None = None,
    images: Path | None = None,
    instances: Path | None = None,
    clip: bool = False,
    json: Path | None = None,
    save_lines: Path | None = None,
    by_cause: bool = False,
) -> ScoreReport:
    """Score a file of predictions by the dataset's official rule or a named other one (`PROTOCOLS`, but for V-COCO).

    `dataset` and `format` are keys of `FORMATS`; the other options are those of the command, see docs/predictions.md.
    `by_cause` adds where the mAP is lost, see docs/diagnose.md.
    Raises UserError: an option, the annotations or a prediction is wrong.
    """
    for option, value, known in (
        ("dataset", dataset, list(FORMATS)),
        ("format", format, list(FORMATS.get(dataset, {}))),
        ("protocol", protocol, list(PROTOCOLS)),
    ):
        if value not in known:
            raise UserError(f"there is no such {option}", where=f"--{option}", expected=" or ".join(known), got=value)
    foreign = {
        "known-object": dataset != "hicodet" and known_object is not None,
        "images": dataset != "hicodet" and images is not None,
        "protocol": dataset == "vcoco" and protocol != "official",
        "instances": dataset != "vcoco" and instances is not None,
    }
    for name in (name for name, is_foreign in foreign.items() if is_foreign):
        raise UserError(f"--{name} is no option of {dataset}", fix="leave it out")
    rule = cast(ProtocolName, protocol)
    options = _Options(annotations, predictions, format, rule, known_object, images, instances, clip, save_lines)
    report = RULES[dataset](options)
    inputs: dict[str, Path | None]
    inputs = {"annotations": annotations, "predictions": predictions, "known_object": known_object, "images": images}
    inputs["instances"] = report.content.pop("instances", instances)
    report.content |= {
        "dataset": dataset,
        "notices": report.notices,
        "inputs": {
            name: {"path": str(path)} | ({} if path.is_dir() else {"sha256": file_sha256(path)})
            for name, path in inputs.items()
            if path is not None
        },
        "versions": library_versions(("numpy", "scipy")),
        "commit": commit(),
    }
    if by_cause:
        assert report.compare is not None
        diagnosis = diagnose(report.compare())
        report.content["diagnosis"] = diagnosis.to_dict()
        report.lines += ["", *table(diagnosis)]
    if json is not None:
        write_json(Path(json), report.content)
    return report


def _score_hicodet(options: _Options) -> ScoreReport:
    annotations, vocabulary = read_annotations(options.annotations, "test2015"), hicodet_vocabulary()
    names = annotations.file_names
    counts = None if options.images is None else _counted_images(options.images, names)
    allowed = None if options.known_object is None else _allowed(options.known_object, names, vocabulary)
    reader = options.reader(names, annotations.size_hw, inclusive=True)
    records = FORMATS["hicodet"][options.format](options.predictions, names)
    predictions = reader.triplets(records, len(vocabulary))
    labels = HoiLabels(annotations.image, annotations.boxes_h, annotations.boxes_o, annotations.interaction)

    settings: dict[str, HicoResult] = {}
    for setting, where in {"default": None, **({} if allowed is None else {"known_object": allowed})}.items():
        matches = match(predictions, labels, len(vocabulary), protocol=options.protocol, allowed=where)
        settings[setting] = score_matches(matches, predictions.score, rare(), vocabulary.is_no_interaction, counts)
    here = np.ones(len(names), bool) if counts is None else counts
    num = int(here[predictions.image].sum())
    report = _summarise(settings, options.protocol, int(here.sum()), num, len(predictions) - num)
    report.compare = partial(compare, predictions, labels, vocabulary.interactions, options.protocol, allowed, counts)
    splits = {name: unseen(name) for name in UNSEEN_SHA256}
    report.content["zero_shot"] = zero_shot_means(list(settings.values())[-1], splits)
    dropped, num_impossible = list(annotations.dropped), records.num_left_out
    more = [f"{len(dropped) - NUM_SHOWN} more pairs"] if len(dropped) > NUM_SHOWN else []
    report.notices += [f"left out of the annotations: {what}" for what in dropped[:NUM_SHOWN] + more]
    if num_impossible:
        report.notices.append(f"{num_impossible} pairs of a verb and an object make no interaction and were left out")
    return _finish(report, options, reader, records, predictions)


def _counted_images(path: Path, names: Sequence[str]) -> np.ndarray:
    row_of = {name: row for row, name in enumerate(names)}
    counts = np.zeros(len(names), bool)
    for number, name in enumerate(map(str.strip, read_lines(path, "image names, one a line")), start=1):
        if name and name not in row_of:
            where = f"{path}, line {number}"
            raise UserError("an image is not in the annotations", where=where, expected=nearest(name, names), got=name)
        if name:
            counts[row_of[name]] = True
    if not counts.any():
        raise UserError("there is no image name in this file", where=path, expected="one file name a line")
    return counts


def _allowed(path: Path, names: Sequence[str], vocabulary: Vocabulary) -> np.ndarray:
    # bool [I, K], where predictions count in the known-object setting.
    labels = read_image_labels(path, "test2015")
    row_of = {name: row for row, name in enumerate(labels.file_names)}
    missing = [name for name in names if name not in row_of]
    if missing:
        expected = f"labels of all {len(names)} images"
        what = "an annotated image has no image-level labels"
        raise UserError(what, where=path, expected=expected, got=f"no {missing[0]}")
    return known_object_images(labels.positive[[row_of[name] for name in names]], vocabulary.object_of)


def _score_vcoco(options: _Options) -> ScoreReport:
    labels = read_labels(options.annotations)
    records = FORMATS["vcoco"][options.format](options.predictions, labels.image_ids)
    # First of all: predictions of another split are the likelier mistake than instances that lack it.
    PredictionReader(labels.image_ids, None).image_rows(records, "image_id")
    split = join_instances(labels, options.instances)
    reader = options.reader(labels.image_ids, split.size_hw, inclusive=True)
    predictions = reader.vcoco(records)
    result = evaluate_vcoco(predictions, split.truth)
    num = {"num_images": len(labels.image_ids), "num_predictions": len(records)}
    content = {**result.to_dict(), **num, "instances": split.instances}
    lines = [
        f"vsrl_eval's rule: {len(labels.image_ids)} images, {len(records)} predictions",
        f"{'':19}{'scenario 1':>12}{'scenario 2':>12}",
    ]
    for num_roles, suffix in ((25, ""), (24, "_24")):
        s1, s2 = (_percent(content[f"role_ap_{scenario}{suffix}"]) for scenario in ("s1", "s2"))
        lines.append(f"role AP, {num_roles} roles  {s1:>12}{s2:>12}")
    report = ScoreReport(content, [*lines, f"{'agent AP':19}{_percent(result.agent):>12}"])
    report.compare = partial(compare_vcoco, predictions, split.truth)
    tiny = predictions.has_object & (predictions.boxes_o[:, 2:] - predictions.boxes_o[:, :2] < TINY_PX).all(axis=1)
    if tiny.any():
        said = "rows have an object box of about a pixel; a row without object says null: scenario 1 tells them apart"
        report.notices.append(f"{int(tiny.sum())} {said}")
    return _finish(report, options, reader, records, predictions)


def _score_pipeline(options: _Options) -> ScoreReport:
    """Score the evaluated split of a pipeline file: of the world, or of a folder of photographs."""
    config = load_config(options.annotations)
    if config.dataset.inclusive_boxes:
        name = config.dataset.name
        what = f"this pipeline file is of the data set {name}, whose predictions are in another frame"
        fix = f"--dataset {name} with its own annotation file"
        raise UserError(what, where=options.annotations, expected="dataset.name world or folder", fix=fix)
    split = config.evaluation.split
    names, vocabulary = open_images(config.dataset, split).image_ids, load_vocabulary(config.dataset)
    image_hw = dataset_of(config.dataset).image_hw
    size_hw = None if image_hw is None else np.tile(image_hw, (len(names), 1))
    reader = options.reader(names, size_hw, inclusive=False)
    records = _with_interactions(FORMATS["world"][options.format](options.predictions, names), vocabulary)
    predictions = reader.triplets(records, len(vocabulary))
    labels, is_rare = load_labels(config.dataset, split), rare_mask(config.dataset, config.train.split)
    is_none = vocabulary.is_no_interaction
    result = evaluate(predictions, labels, len(vocabulary), is_rare, is_none, protocol=options.protocol)
    report = _summarise({"default": result}, options.protocol, len(names), len(predictions))
    report.content["split"] = split
    report.compare = partial(compare, predictions, labels, vocabulary.interactions, options.protocol)
    return _finish(report, options, reader, records, predictions)


def _with_interactions(records: Records, vocabulary: Vocabulary) -> Records:
    # Records may name `verb` and `object` in place of `interaction`.
    row_of = {pair: k for k, pair in enumerate(vocabulary.interactions)}
    rows = []
    for place, row in enumerate(records.rows):
        if "interaction" not in row and {"verb", "object"} <= row.keys():
            named = (row["verb"], row["object"])
            if not all(isinstance(name, str) for name in named) or named not in row_of:
                text = " ".join(map(str, named))
                raise UserError(
                    "a prediction names an unknown interaction",
                    where=records.where(place),
                    expected=nearest(text, vocabulary.names),
                    got=text,
                )
            row = {**row, "interaction": row_of[named]}
        rows.append(row)
    return Records(records.path, rows, records.lines, records.word)


def _score_folder(options: _Options) -> ScoreReport:
    """Score against JSON lines, such as the checking page writes: images and interactions are those that are named."""
    truth = read_annotation_lines(options.annotations)
    records = FORMATS["folder"][options.format](options.predictions, [])
    true_names, predicted_names = [plain_name(name) for name in truth.file_names], records.texts("file_name")
    known = list(dict.fromkeys(true_names))
    joined = join_names(predicted_names, known)
    predicted_names = [known[joined.rows[n]] if n in joined.rows else plain_name(n) for n in predicted_names]
    names = sorted({*true_names, *predicted_names})
    predicted = list(zip(records.texts("verb"), records.texts("object"), strict=True))
    pairs = sorted({*truth.pairs, *predicted})
    if not pairs:
        raise UserError("there is neither an annotation nor a prediction", where=options.annotations)
    notices = [*truth.notices, *joined.notices("images of the predictions")]
    notices += _unjoined("images", true_names, predicted_names, options)
    notices += _unjoined("interactions", map(" ".join, truth.pairs), map(" ".join, predicted), options)
    row_of_name, row_of = {n: row for row, n in enumerate(names)}, {pair: k for k, pair in enumerate(pairs)}
    labels = HoiLabels(
        np.array([row_of_name[name] for name in true_names], np.int64),
        truth.boxes_h,
        truth.boxes_o,
        np.array([row_of[pair] for pair in truth.pairs], np.int64),
    )
    interactions = [
        {**row, "file_name": name, "interaction": row_of[pair]}
        for row, name, pair in zip(records.rows, predicted_names, predicted, strict=True)
    ]
    reader = options.reader(names, None, inclusive=False)
    predictions = reader.triplets(Records(records.path, interactions, records.lines, records.word), len(pairs))
    is_rare, is_none = np.zeros(len(pairs), bool), np.array([verb == NO_INTERACTION for verb, _ in pairs])
    result = evaluate(predictions, labels, len(pairs), is_rare, is_none, protocol=options.protocol)
    report = _summarise({"default": result}, options.protocol, len(names), len(predictions))
    report.content["interactions"] = [f"{verb} {obj}" for verb, obj in pairs]
    report.compare = partial(compare, predictions, labels, pairs, options.protocol)
    report.notices += notices
    return _finish(report, options, reader, records, predictions)


def _unjoined(what: str, true: Iterable[str], predicted: Iterable[str], options: _Options) -> list[str]:
    """Count what one side alone has, with an example. Raises UserError: nothing joins."""
    of_truth, of_predictions = set(true), set(predicted)
    missed, foreign = sorted(of_truth - of_predictions), sorted(of_predictions - of_truth)
    if missed and foreign and not of_truth & of_predictions:
        problem = f"the predictions and the annotations have no {what} in common"
        expected, fix = f"'{missed[0]}', spelt as in {options.annotations}", "write both in the same words"
        raise UserError(problem, where=options.predictions, expected=expected, got=f"'{foreign[0]}'", fix=fix)
    sides = (("annotated", missed, "no prediction"), ("predicted", foreign, "no annotation"))
    return [f"{len(of)} {side} {what} have {lack}, as '{of[0]}'" for side, of, lack in sides if of]


RULES = {"hicodet": _score_hicodet, "vcoco": _score_vcoco, "world": _score_pipeline, "folder": _score_folder}


def _summarise(
    settings: Mapping[str, HicoResult], protocol: str, num_images: int, num_predictions: int, num_elsewhere: int = 0
) -> ScoreReport:
    # The last setting is the one that was asked for.
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
    for name, of_setting in settings.items():
        full, rare, non_rare, without = map(_percent, _means(of_setting).values())
        lines.append(f"{name:14}{full:>8}{rare:>8}{non_rare:>10}{without:>24}")
    return ScoreReport(content, lines)


def _means(result: HicoResult) -> dict[str, float | None]:
    return {name: getattr(result, name) for name in MEANS}


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def _finish(
    report: ScoreReport,
    options: _Options,
    reader: PredictionReader,
    records: Records,
    predictions: Triplets | VcocoPredictions,
) -> ScoreReport:
    """Write the lines that were asked for, and note what is odd about the boxes."""
    if options.save_lines is not None:
        text = "".join(json.dumps(row) + "\n" for row in records.rows)
        write_atomically(Path(options.save_lines), text.encode())
    if not len(predictions):
        report.notices.append("the file holds no prediction, so every AP is 0")
    if reader.size_hw is None:
        report.notices.append("the annotations give no image sizes, so boxes outside an image were not looked for")
    report.notices += reader.notices
    num_beyond = reader.num_beyond(predictions)
    if num_beyond:
        report.notices.append(f"{num_beyond} boxes reach over the border of their image; they are scored as they are")
    return report
