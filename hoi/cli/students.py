"""Trained students at work: predictions, checkpoints, pages, scores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from hoi.cli.program import (
    AllowHost,
    Checkpoint,
    Config,
    Device,
    Host,
    Overrides,
    Port,
    Student,
    option,
    path_option,
    pipeline,
    say_next,
    verb,
)

if TYPE_CHECKING:
    from hoi.prediction import Checkpoint as OpenedCheckpoint


@contextmanager
def _checkpoint(
    folder: Path | None, config: str | None, student: str | None, overrides: list[str] | None
) -> Iterator[OpenedCheckpoint]:
    """Open a checkpoint's folder or, without one, make and open that of the pipeline file's student."""
    from hoi.prediction import Checkpoint as Opened
    from hoi.prediction.export import make_checkpoint

    if folder is not None:
        yield Opened.open(folder, overrides or ())
        return
    with pipeline(config, overrides) as settings:
        yield Opened.open(make_checkpoint(settings, student).folder)


@verb("predict", "hoi predict --images photos/ --out outputs/pictures --config mine.yaml --threshold 0.1")
def predict(
    images: Annotated[list[str], option("images, folders, patterns or videos; may be repeated", "PATH...")],
    out: Annotated[Path, path_option("where results go; the same again goes on", "FOLDER")] = Path(
        "outputs/predictions"
    ),
    config: Config = None,
    overrides: Overrides = None,
    checkpoint: Checkpoint = None,
    student: Student = None,
    top: Annotated[int | None, option("triplets kept of an image (default: all)", "N", least=1)] = None,
    threshold: Annotated[float, option("least score of a triplet that is kept", "X")] = 0.0,
    batch: Annotated[int, option("images that are looked at together", "N", least=1)] = 8,
    shown: Annotated[int | None, option("pairs that are drawn, at most", "N", least=1)] = None,
    no_pictures: Annotated[bool, option("draw nothing", name="--no-pictures")] = False,
    device: Device = "auto",
) -> int:
    """Turn images, folders or videos into predictions and pictures."""
    from hoi.prediction import run
    from hoi.prediction.pictures import MAX_PAIRS

    with _checkpoint(checkpoint, config, student, overrides) as opened:
        report = run.predict(
            images,
            out,
            opened,
            top=top,
            threshold=threshold,
            batch=batch,
            shown=MAX_PAIRS if shown is None else shown,
            pictures=not no_pictures,
            device=device,
        )
    print(report, flush=True)
    if report.num_images and len(images) == 1 and Path(images[0]).exists():
        folder = images[0] if Path(images[0]).is_dir() else Path(images[0]).parent
        lines = str(out / "predictions.jsonl")
        say_next("check-page", config=None, predictions=lines, images=folder, out=str(out / "check"), serve=True)
    return report.exit_code


@verb("checkpoint", "hoi checkpoint --student best --out best/ --onnx --config mine.yaml")
def checkpoint(
    config: Config = None,
    overrides: Overrides = None,
    student: Student = None,
    seed: Annotated[int | None, option("of its training (default: the first of train.seeds)")] = None,
    out: Annotated[Path | None, path_option("(default: OUTPUT/checkpoints/STUDENT)", "FOLDER")] = None,
    models: Annotated[
        Literal["auto", "copy", "refer"],
        option("whether detector and CLIP are copied; auto copies small files of one's own"),
    ] = "auto",
    onnx: Annotated[bool, option("also as ONNX, and how far it is from torch", name="--onnx")] = False,
) -> None:
    """Write a trained student as one self-contained folder."""
    from hoi.prediction.export import make_checkpoint

    with pipeline(config, overrides) as settings:
        report = make_checkpoint(settings, student, seed, out, models, onnx)
        print(report, flush=True)
        say_next("app", config=None, checkpoint=report.folder)


@verb("app", "hoi app --checkpoint outputs/mine/checkpoints/best --port 9000")
def page(
    config: Config = None,
    overrides: Overrides = None,
    checkpoint: Checkpoint = None,
    student: Student = None,
    device: Device = "auto",
    max_upload_mb: Annotated[float, option("largest file")] = 25.0,
    max_megapixels: Annotated[float, option("largest image")] = 50.0,
    host: Host = "127.0.0.1",
    port: Port = 8008,
    allow_host: AllowHost = None,
) -> None:
    """Serve a page on this machine: drop an image, see who does what."""
    from hoi.web.app import serve_app

    with _checkpoint(checkpoint, config, student, overrides) as opened:
        serve_app(
            opened,
            device=device,
            host=host,
            port=port,
            allow_hosts=allow_host or (),
            max_upload_mb=max_upload_mb,
            max_megapixels=max_megapixels,
        )


@verb("check-page", "hoi check-page --predictions outputs/pictures/predictions.jsonl --images photos/ --serve")
def check_page(
    predictions: Annotated[Path, path_option("JSON lines, gzipped or not")],
    images: Annotated[Path | None, path_option("which their file names are below", "FOLDER")] = None,
    config: Annotated[
        str | None, option("whose data set they are of, in place of --images, or for its vocabulary", "FILE")
    ] = None,
    overrides: Overrides = None,
    split: Annotated[str | None, option("of that data set (default: evaluation.split)")] = None,
    out: Annotated[Path, path_option("of marks and results", "FOLDER")] = Path("outputs/check"),
    number: Annotated[int, option("how many triplets are asked")] = 50,
    seed: Annotated[int, option("of their draw")] = 0,
    serve: Annotated[bool, option("open the page", name="--serve")] = False,
    host: Host = "127.0.0.1",
    port: Port = 8008,
    allow_host: AllowHost = None,
) -> None:
    """Mark some predictions right or wrong: precision and AP with intervals."""
    from hoi.web import check_page as page

    with pipeline(config, overrides) if config is not None else nullcontext() as settings:
        report = page.check_page(
            predictions,
            images,
            settings,
            split,
            out=out,
            number=number,
            seed=seed,
            open_page=serve,
            host=host,
            port=port,
            allow_hosts=allow_host or (),
        )
    print(report)


ScoredData = Annotated[Literal["hicodet", "vcoco", "world", "folder"], option("whose rule")]
Annotations = Annotated[
    Path, path_option("the data set's file; of a folder JSON lines, of the world a pipeline file", "PATH")
]
PredictedLines = Annotated[Path, path_option("JSON lines, gzipped or not", "PATH")]
Protocol = Annotated[str, option("HICO-DET and the world: whose rule")]
KnownObject = Annotated[Path | None, path_option("HICO's anno.mat: score the known-object setting", "ANNO_MAT")]
Counted = Annotated[Path | None, path_option("text file of image names: only those count (HICO-DET)")]
Instances = Annotated[
    Path | None, path_option("COCO's instances (V-COCO; default: instances*.json beside the annotations)", "PATH")
]
Format = Annotated[str, option("of the predictions: lines, gen-vlkt, qpic, pvic, vsrl")]
Clip = Annotated[bool, option("cut boxes to their image; otherwise one that lies outside is an error", name="--clip")]


@verb("score", "hoi score --dataset hicodet --annotations anno_bbox.mat --predictions mine.jsonl.gz --json scores.json")
def score(
    dataset: ScoredData,
    annotations: Annotations,
    predictions: PredictedLines,
    json: Annotated[Path | None, path_option("where to write the scores")] = None,
    protocol: Protocol = "official",
    known_object: KnownObject = None,
    images: Counted = None,
    instances: Instances = None,
    format: Format = "lines",
    clip: Clip = False,
    save_lines: Annotated[Path | None, path_option("also write the predictions there")] = None,
) -> None:
    """Average precision of anybody's predictions, by the data set's official rule or a named other one.

    Formats, options and figures: docs/predictions.md.
    """
    from hoi.evaluation.score import score as run

    report = run(
        dataset,
        annotations,
        predictions,
        format=format,
        protocol=protocol,
        known_object=known_object,
        images=images,
        instances=instances,
        clip=clip,
        json=json,
        save_lines=save_lines,
    )
    print(report)


@verb("diagnose", "hoi diagnose --dataset hicodet --annotations anno_bbox.mat --predictions mine.jsonl.gz")
def diagnose(
    dataset: ScoredData,
    annotations: Annotations,
    predictions: PredictedLines,
    json: Annotated[Path | None, path_option("where to write the scores and the diagnosis")] = None,
    protocol: Protocol = "official",
    known_object: KnownObject = None,
    images: Counted = None,
    instances: Instances = None,
    format: Format = "lines",
    clip: Clip = False,
) -> None:
    """Where the mAP goes: errors of anybody's predictions by cause, and what mending each alone would gain.

    Formats and options are those of `hoi score`; causes: docs/diagnose.md.
    """
    from hoi.evaluation.score import score as run

    report = run(
        dataset,
        annotations,
        predictions,
        json=json,
        protocol=protocol,
        known_object=known_object,
        images=images,
        instances=instances,
        format=format,
        clip=clip,
        by_cause=True,
    )
    print(report)
