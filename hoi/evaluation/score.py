"""Anybody's predictions to average precision: `hoi score`; docs/predictions.md describes the files."""

from __future__ import annotations

import hashlib
import json
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hoi.cli.command_line import Parser
from hoi.config import load_config
from hoi.datasets import dataset_of, load_vocabulary, open_images
from hoi.datasets.hicodet import UNSEEN_SHA256, hicodet_vocabulary, rare
from hoi.errors import UserError, nearest, run_program
from hoi.evaluation.converters import read_gen_vlkt, read_pvic, read_qpic, read_vsrl
from hoi.evaluation.hico import PROTOCOLS, HicoResult, known_object_images, match, score_matches
from hoi.evaluation.predictions import Images, Reader
from hoi.evaluation.summaries import Score, summarise_hico, summarise_vcoco
from hoi.evaluation.vcoco import VcocoPredictions
from hoi.evaluation.vcoco import evaluate as evaluate_vcoco
from hoi.evaluation.zero_shot import zero_shot_means
from hoi.files import write_atomically, write_json
from hoi.json_lines import Records, check_record, read_bytes, read_json_lines
from hoi.json_lines import read_json_lines_line_labels as read_label_lines
from hoi.labels import load_labels, rare_mask
from hoi.labels.hicodet import read_annotations
from hoi.labels.hicodet_mat import read_image_labels
from hoi.labels.vcoco_files import join_instances, read_labels
from hoi.provenance import commit, library_versions
from hoi.records import HoiLabels, Triplets
from hoi.vocabulary import NO_INTERACTION, Vocabulary

FORMATS = {
    "hicodet": ("lines", "gen-vlkt", "qpic", "pvic"),
    "vcoco": ("lines", "vsrl"),
    "world": ("lines",),
    "folder": ("lines",),
}
ONLY_HICODET = ("known_object", "images")
SHOWN = 5
"""Pairs left out that are named; of more, the number."""
TINY_PX = 2.0
"""An object box below this, pixel edge to pixel edge, stands for no object in some result files."""


def main(arguments: Sequence[str] | None = None) -> Score:
    """Command line arguments to the scores, written to `--json` whole or not at all.

    Raises:
        UserError: an option, the annotations or a prediction is wrong.
    """
    options = _parser().parse_args(arguments)
    _check(options)
    rules = {"hicodet": _score_hicodet, "vcoco": _score_vcoco, "world": _score_world, "folder": _score_folder}
    score = rules[options.dataset](options)
    files = {
        name: getattr(options, name) for name in ("annotations", "predictions", "known_object", "images", "instances")
    }
    score.content |= {
        "dataset": options.dataset,
        "notices": score.notices,
        "inputs": {name: _input(Path(path)) for name, path in files.items() if path is not None},
        "versions": library_versions(("numpy", "scipy")),
        "commit": commit(),
    }
    if options.json is not None:
        write_json(Path(options.json), score.content)
    return score


def _parser() -> Parser:
    parser = Parser(
        prog="python -m hoi.evaluation.score",
        description="Average precision of a file of predictions, by the data set's official rule or a named other one.",
        epilog="Formats, options and figures: docs/predictions.md",
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.shape = "--dataset NAME --annotations FILE --predictions FILE --json OUT [...]"
    add = parser.add_argument
    add("--dataset", required=True, choices=tuple(FORMATS))
    add(
        "--annotations", required=True, help="the data set's file; of a folder JSON lines, of the world a pipeline file"
    )
    add("--predictions", required=True, help="JSON lines, .gz or not")
    add("--json", help="where to write the scores")
    add("--protocol", choices=tuple(PROTOCOLS), default="official", help="whose rule (HICO-DET and the world)")
    add("--known-object", metavar="ANNO_MAT", help="HICO's anno.mat: score the known-object setting")
    add("--images", metavar="FILE", help="text file of image names: only those count (HICO-DET)")
    add("--instances", help="COCO's instances with V-COCO's boxes (default: instances*.json beside the annotations)")
    add(
        "--format",
        default="lines",
        help="of the predictions: " + "; ".join(f"{d}: {', '.join(f)}" for d, f in FORMATS.items()),
    )
    add("--clip", action="store_true", help="cut boxes to their image; otherwise one that lies outside is an error")
    add("--save-lines", metavar="FILE", help="also write the predictions as JSON lines: the converter")
    return parser


def _check(options: Namespace) -> None:
    if options.format not in FORMATS[options.dataset]:
        raise UserError(
            f"{options.dataset} has no such format of predictions",
            where="--format",
            expected=" or ".join(FORMATS[options.dataset]),
            got=options.format,
        )
    foreign = [name for name in ONLY_HICODET if options.dataset != "hicodet" and getattr(options, name) is not None]
    foreign += ["protocol"] if options.dataset == "vcoco" and options.protocol != "official" else []
    foreign += ["instances"] if options.dataset != "vcoco" and options.instances is not None else []
    if foreign:
        raise UserError(f"--{foreign[0].replace('_', '-')} is no option of {options.dataset}", fix="leave it out")


def _score_hicodet(options: Namespace) -> Score:
    annotations = read_annotations(options.annotations, "test2015")
    names, vocabulary = annotations.file_names, hicodet_vocabulary()
    counts = _counted_images(options.images, names)
    allowed = None if options.known_object is None else _allowed(Path(options.known_object), names, vocabulary)
    reader = _reader(Images(names, annotations.size_hw), options, inclusive=True)
    records = _read_hicodet_predictions(options, names)
    predictions = reader.triplets(records, len(vocabulary))
    labels = HoiLabels(annotations.image, annotations.boxes_h, annotations.boxes_o, annotations.interaction)

    settings: dict[str, HicoResult] = {}
    for setting in ("default",) if allowed is None else ("default", "known_object"):
        matches = match(
            predictions,
            labels,
            len(vocabulary),
            protocol=options.protocol,
            allowed=allowed if setting == "known_object" else None,
        )
        settings[setting] = score_matches(matches, predictions.score, rare(), vocabulary.is_no_interaction, counts)
    num = len(predictions) if counts is None else int(counts[predictions.image].sum())
    num_images = len(names) if counts is None else int(counts.sum())
    score = summarise_hico(settings, options.protocol, num_images, num, len(predictions) - num)
    score.content["zero_shot"] = zero_shot_means(list(settings.values())[-1], tuple(UNSEEN_SHA256))
    score.notices += [f"left out of the annotations: {what}" for what in annotations.dropped[:SHOWN]]
    if len(annotations.dropped) > SHOWN:
        score.notices.append(f"left out of the annotations: {len(annotations.dropped) - SHOWN} more pairs")
    if records.left_out:
        score.notices.append(f"{records.left_out} pairs of a verb and an object make no interaction and were left out")
    _save_lines(options, records)
    return _with_notices(score, reader, predictions)


def _reader(images: Images, options: Namespace, *, inclusive: bool) -> Reader:
    if options.clip and images.size_hw is None:
        raise UserError(
            "boxes cannot be cut to images of unknown size",
            where=options.annotations,
            expected="annotations with image sizes",
            fix="leave --clip out, or cut the boxes beforehand",
        )
    return Reader(images, inclusive, options.clip)


def _read_hicodet_predictions(options: Namespace, names: Sequence[str]) -> Records:
    path = Path(options.predictions)
    if options.format == "pvic":
        return read_pvic(path, names)
    return {"lines": read_json_lines, "gen-vlkt": read_gen_vlkt, "qpic": read_qpic}[options.format](path)


def _counted_images(path: str | None, names: Sequence[str]) -> np.ndarray | None:
    """A text file of image names to bool [I]; None for all."""
    if path is None:
        return None
    row_of = {name: row for row, name in enumerate(names)}
    counts = np.zeros(len(names), bool)
    for number, line in enumerate(
        read_bytes(Path(path), "image names").decode("utf-8", "replace").split("\n"), start=1
    ):
        name = line.strip()
        if name and name not in row_of:
            where = f"{path}, line {number}"
            raise UserError("an image is not in the annotations", where=where, expected=nearest(name, names), got=name)
        if name:
            counts[row_of[name]] = True
    if not counts.any():
        raise UserError("there is no image name in this file", where=path, expected="one file name a line")
    return counts


def _allowed(path: Path, names: Sequence[str], vocabulary: Vocabulary) -> np.ndarray:
    """HICO's image-level labels to bool [I, K], where predictions count in the known-object setting."""
    if not path.is_file():
        raise UserError("there is no such file", where=path, expected="HICO's anno.mat")
    labels = read_image_labels(path, "test2015")
    row_of = {name: row for row, name in enumerate(labels.file_names)}
    missing = [name for name in names if name not in row_of]
    if missing:
        raise UserError(
            "an annotated image has no image-level labels",
            where=path,
            expected=f"labels of all {len(names)} images",
            got=f"no {missing[0]}",
        )
    return known_object_images(labels.positive[[row_of[name] for name in names]], vocabulary.object_of)


def _with_notices(score: Score, reader: Reader, predictions: Triplets | VcocoPredictions) -> Score:
    if not len(predictions.image):
        score.notices.append("the file holds no prediction, so every AP is 0")
    if reader.images.size_hw is None:
        score.notices.append("the annotations give no image sizes, so boxes outside an image were not looked for")
    beyond = sum(reader.num_beyond(boxes, predictions.image) for boxes in (predictions.boxes_h, predictions.boxes_o))
    if beyond:
        score.notices.append(f"{beyond} boxes reach over the border of their image; they are scored as they are")
    return score


def _score_vcoco(options: Namespace) -> Score:
    labels, path = read_labels(Path(options.annotations)), Path(options.predictions)
    records = read_vsrl(path) if options.format == "vsrl" else read_json_lines(path)
    # First of all: predictions of another split are the likelier mistake than instances that lack it.
    Images(labels.image_ids, None).rows_of(records, "image_id")
    split = join_instances(labels, None if options.instances is None else Path(options.instances))
    options.instances = str(split.instances)
    reader = _reader(Images(labels.image_ids, split.size_hw), options, inclusive=True)
    predictions = reader.vcoco(records)
    score = summarise_vcoco(evaluate_vcoco(predictions, split.truth), len(labels.image_ids), len(records))
    tiny = predictions.has_object & (predictions.boxes_o[:, 2:] - predictions.boxes_o[:, :2] < TINY_PX).all(axis=1)
    if tiny.any():
        score.notices.append(
            f"{int(tiny.sum())} rows have an object box of about a pixel; a row without object says null, and "
            "scenario 1 tells the two apart"
        )
    _save_lines(options, records)
    return _with_notices(score, reader, predictions)


def _score_world(options: Namespace) -> Score:
    """The embedded world, or the folder of photographs, of a pipeline file: its evaluated split."""
    config = load_config(options.annotations)
    if config.dataset.inclusive_boxes:
        raise UserError(
            f"this pipeline file is of the data set {config.dataset.name}, whose predictions are in another frame",
            where=options.annotations,
            expected="dataset.name world or folder",
            fix=f"--dataset {config.dataset.name} with its own annotation file",
        )
    split = config.evaluation.split
    names, vocabulary = open_images(config.dataset, split).image_ids, load_vocabulary(config.dataset)
    image_hw = dataset_of(config.dataset).image_hw
    size_hw = None if image_hw is None else np.tile(image_hw, (len(names), 1))
    reader = _reader(Images(names, size_hw), options, inclusive=False)
    records = _with_interactions(read_json_lines(Path(options.predictions)), vocabulary)
    predictions = reader.triplets(records, len(vocabulary))
    matches = match(predictions, load_labels(config.dataset, split), len(vocabulary), protocol=options.protocol)
    is_rare = rare_mask(config.dataset, config.train.split)
    result = score_matches(matches, predictions.score, is_rare, vocabulary.is_no_interaction)
    score = summarise_hico({"default": result}, options.protocol, len(names), len(predictions))
    score.content["split"] = split
    _save_lines(options, records)
    return _with_notices(score, reader, predictions)


def _score_folder(options: Namespace) -> Score:
    """Annotations as JSON lines, such as the checking page writes: images and interactions are those that are named."""
    lines, records = read_label_lines(Path(options.annotations)), read_json_lines(Path(options.predictions))
    predicted = records.of_type("file_name", (str,), "text")
    for where, record in lines:
        named = record.get("file_name") if isinstance(record, dict) else None
        check_record(record, where, {named} if isinstance(named, str) else set())
    names = sorted({record["file_name"] for _, record in lines} | set(predicted))
    texts = (records.of_type("verb", (str,), "text"), records.of_type("object", (str,), "text"))
    annotated = [(record["verb"], record["object"]) for _, record in lines]
    pairs = sorted({*annotated, *zip(*texts, strict=True)})
    if not pairs:
        raise UserError("there is neither an annotation nor a prediction", where=options.annotations)
    rows = {name: row for row, name in enumerate(names)}
    row_of = {pair: k for k, pair in enumerate(pairs)}
    labels = HoiLabels(
        np.array([rows[record["file_name"]] for _, record in lines], np.int64),
        np.array([record["human_xyxy"] for _, record in lines], np.float32).reshape(-1, 4),
        np.array([record["object_xyxy"] for _, record in lines], np.float32).reshape(-1, 4),
        np.array([row_of[pair] for pair in annotated], np.int64),
    )
    interactions = [{**row, "interaction": row_of[row["verb"], row["object"]]} for row in records.rows]
    reader = _reader(Images(names, None), options, inclusive=False)
    predictions = reader.triplets(Records(records.path, interactions, records.lines, records.word), len(pairs))
    matches = match(predictions, labels, len(pairs), protocol=options.protocol)
    is_rare, is_no_interaction = np.zeros(len(pairs), bool), np.array([verb == NO_INTERACTION for verb, _ in pairs])
    score = summarise_hico(
        {"default": score_matches(matches, predictions.score, is_rare, is_no_interaction)},
        options.protocol,
        len(names),
        len(predictions),
    )
    score.content["interactions"] = [f"{verb} {thing}" for verb, thing in pairs]
    _save_lines(options, records)
    return _with_notices(score, reader, predictions)


def _with_interactions(records: Records, vocabulary: Vocabulary) -> Records:
    """Records that name `verb` and `object` to such with `interaction`."""
    row_of = {pair: k for k, pair in enumerate(vocabulary.interactions)}
    rows = []
    for place, row in enumerate(records.rows):
        if "interaction" not in row and {"verb", "object"} <= row.keys():
            named = (row["verb"], row["object"])
            if not all(isinstance(name, str) for name in named) or named not in row_of:
                raise UserError(
                    "a prediction names an unknown interaction",
                    where=records.where(place),
                    expected=nearest(" ".join(map(str, named)), vocabulary.names),
                    got=" ".join(map(str, named)),
                )
            row = {**row, "interaction": row_of[named]}
        rows.append(row)
    return Records(records.path, rows, records.lines, records.word)


def _save_lines(options: Namespace, records: Records) -> None:
    if options.save_lines is not None:
        text = "".join(json.dumps(row) + "\n" for row in records.rows)
        write_atomically(Path(options.save_lines), text.encode())


def _input(path: Path) -> dict[str, str]:
    """A file's name and hash; of a folder the name alone."""
    if path.is_dir():
        return {"path": str(path)}
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return {"path": str(path), "sha256": digest.hexdigest()}


def _command() -> None:
    print(main())


if __name__ == "__main__":
    run_program(_command)
