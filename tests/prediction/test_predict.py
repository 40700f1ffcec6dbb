"""Predicting files: what is written, what is refused, and that a stopped run continues."""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hoi.cli import run_verb
from hoi.config import PipelineConfig
from hoi.datasets import open_images
from hoi.evaluation.evaluate import evaluate
from hoi.evaluation.score import score
from hoi.prediction import Checkpoint, Predictor
from hoi.prediction import run as predict_module
from hoi.prediction.run import PredictReport, predict
from tests.fakes.pipelines import contents, refused, write_pipeline

Run = Callable[..., PredictReport]


@pytest.fixture(scope="module")
def photographs(trained: PipelineConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test scenes as PNG files, half of them a folder deeper."""
    folder, source = tmp_path_factory.mktemp("photographs"), open_images(trained.dataset, "test")
    for row, image_id in enumerate(source.image_ids):
        write(folder / ("deeper" if row % 2 else "") / f"{image_id}.png", encoded(source.read(row), "PNG"))
    return folder


@pytest.fixture(scope="module")
def run(trained: PipelineConfig) -> Run:
    checkpoint = Checkpoint.open(Path(trained.output).parent / "checkpoint")

    def predict_with(images: object, out: Path, **options: Any) -> PredictReport:
        paths = [str(each) for each in (images if isinstance(images, list) else [images])]
        return predict(paths, out, checkpoint, **{"device": "cpu", **options})

    return predict_with


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def encoded(image: Image.Image | np.ndarray, form: str, **settings: Any) -> bytes:
    buffer = BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, form, **settings)
    return buffer.getvalue()


def test_files_score_what_the_cached_evaluation_says(
    trained: PipelineConfig, photographs: Path, run: Run, tmp_path: Path
) -> None:
    report = run(photographs, tmp_path / "out", pictures=False)
    assert (report.num_images, report.num_now, report.unreadable, report.exit_code) == (10, 10, [], 0)
    by_id = [{**row, "file_name": Path(row["file_name"]).stem} for row in lines(report.files[0])]
    predictions = write(tmp_path / "by_id.jsonl", "".join(json.dumps(row) + "\n" for row in by_id).encode())
    by_files = score("world", write_pipeline(trained, tmp_path / "pipeline.yaml"), predictions)
    evaluate(trained)
    rows = json.loads((Path(trained.output) / "results.json").read_text())
    [cached] = [row["full"] for row in rows if row["name"] == "best"]
    assert cached > 1
    assert abs(100 * by_files.content["full"] - cached) < 0.1


def test_detections_have_cocos_layout_and_images_their_picture(photographs: Path, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(photographs, out, top=4)
    coco = json.loads((out / "detections.json").read_text())
    names = {image["id"]: image["file_name"] for image in coco["images"]}
    assert sorted(names.values()) == sorted(p.relative_to(photographs).as_posix() for p in photographs.rglob("*.png"))
    assert all((out / "pictures" / f"{name}.jpg").is_file() for name in names.values())
    assert Image.open(out / "pictures" / f"{names[1]}.jpg").size[0] == 640
    [person] = [each["id"] for each in coco["categories"] if each["name"] == "person"]
    boxes = {(names[each["image_id"]], *each["bbox"][:2]): each["category_id"] for each in coco["annotations"]}
    predicted = lines(out / "predictions.jsonl")
    assert {boxes[(each["file_name"], *each["human_xyxy"][:2])] for each in predicted} == {person}
    assert max(sum(each["file_name"] == name for each in predicted) for name in names.values()) == 4


def test_a_stopped_run_ends_as_one_that_was_not_stopped(
    photographs: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(photographs, whole, batch=4)
    with monkeypatch.context() as patch:
        patch.setattr(predict_module, "draw_result", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(photographs, stopped, batch=4)
    assert not (stopped / "predictions.jsonl").exists()
    # As a kill leaves it: some lines whole, and the last one cut in two.
    journal = (whole / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (stopped / "journal.jsonl").write_bytes(b"".join(journal[:3]) + journal[3][:50])
    for line in journal[:2]:
        name = f"pictures/{json.loads(line)['name']}.jpg"
        write(stopped / name, (whole / name).read_bytes())
    for half in (".predictions.jsonl.12.part", f"{Path(name).parent}/.{Path(name).name}.12.part"):
        (stopped / half).write_bytes(b"half")
    assert run(photographs, stopped, batch=4).num_now == 8
    # Which images share a batch moves the last bits of scores, and may swap triplets of nearly the same score.
    one, other = (
        sorted((row["file_name"], row["interaction"], row["score"]) for row in lines(folder / "predictions.jsonl"))
        for folder in (whole, stopped)
    )
    assert [row[:2] for row in one] == [row[:2] for row in other]
    np.testing.assert_allclose([row[2] for row in one], [row[2] for row in other], rtol=0, atol=1e-4)
    assert set(contents(whole)) == set(contents(stopped))
    before = contents(stopped)
    monkeypatch.setattr(predict_module, "Predictor", None)
    assert run(photographs, stopped).num_now == 0
    assert contents(stopped) == before


def test_results_of_other_settings_and_other_folders_are_refused(
    trained: PipelineConfig, photographs: Path, run: Run, tmp_path: Path
) -> None:
    image, out = next(photographs.glob("*.png")), tmp_path / "out"
    run(image, out, pictures=False)
    error = refused(run, image, out, top=3)
    assert (error.expected, error.got) == ("top null", "top 3")
    overridden = Checkpoint.open(Path(trained.output).parent / "checkpoint", ["pairs.min_score=0.5"])
    error = refused(predict, [image], out, overridden)
    assert (error.expected, error.got) == ("pairs.min_score 0.2", "pairs.min_score 0.5")
    other = write(tmp_path / "other" / image.name, image.read_bytes())
    for images, folder, what in (
        (image, photographs, "this folder holds something else"),
        (image, other, "the folder for results is a file"),
        (tmp_path / "nothing.png", tmp_path / "new", "there is no such image, folder or video"),
        (tmp_path / "*.png", tmp_path / "new", "no file matches"),
        ([image, other], tmp_path / "new", "two files would have the name"),
    ):
        assert what in refused(run, images, folder).what
    for options in ({"batch": 0}, {"top": 0}, {"shown": 0}, {"threshold": float("nan")}):
        assert refused(run, image, tmp_path / "new", **options).where == f"--{next(iter(options))}"
    assert not (tmp_path / "new").exists()


def test_a_second_run_in_the_same_folder_is_refused(
    photographs: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, reasons = next(photographs.glob("*.png")), []

    class Second(Predictor):
        def predict(self, *images: object, **options: Any) -> list:
            reasons.append(refused(run, image, tmp_path / "out").what)
            return super().predict(*images, **options)

    monkeypatch.setattr(predict_module, "Predictor", Second)
    assert run(image, tmp_path / "out", pictures=False).num_images == 1
    assert reasons == ["another run writes into this folder"]


def test_files_folders_and_patterns_name_images_alike(photographs: Path, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    data = next(photographs.glob("*.png")).read_bytes()
    for name in ("a.png", "deep/b.PNG", "deep/c.txt"):
        write(folder / name, data)
    by_pattern = run(folder / "**" / "*.[pP]*", tmp_path / "one", pictures=False)
    by_folder = run(folder, folder / "two")
    assert (by_pattern.num_images, by_folder.num_images, by_folder.ignored) == (2, 2, ["deep/c.txt"])
    for out in (tmp_path / "one", folder / "two"):
        assert sorted({each["file_name"] for each in lines(out / "predictions.jsonl")}) == ["a.png", "deep/b.PNG"]
    # The results lie below the images, and are not read, however the folder is spelt.
    assert run(folder, folder / "deep" / ".." / "two").num_now == 0
    # A file that is named is read whatever its suffix, and one that was replaced is read again.
    assert run(folder / "deep" / "c.txt", tmp_path / "three", pictures=False).num_images == 1
    write(folder / "a.png", next(photographs.glob("deeper/*.png")).read_bytes())
    assert run(folder, folder / "two").num_now == 1


def png_of_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is and holds next to nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def odd_files(folder: Path, scene: np.ndarray) -> tuple[set[str], set[str]]:
    """Write odd files and return the names of those that can be read, and of those that cannot."""
    picture = Image.fromarray(scene)
    jpeg, png = encoded(picture, "JPEG"), encoded(picture, "PNG")
    good = {"turned.jpg": encoded(picture, "JPEG", exif=b"Exif\0\0II*\0\xff"), "gif.jpg": encoded(picture, "GIF")}
    for size in ((1, 1), (1, 300), (300, 1), (2, 3)):
        good[f"tiny {size[0]} x {size[1]}.png"] = encoded(picture.resize(size), "PNG")
    names = ("ünïcödé 写真 🐎", "line\nbreak", "-dash", "100%", "quote'\"", "{brace}", "x" * 250)
    for name in (*names, os.fsdecode(b"no utf-8 \xff\xfe")):
        good[f"{name}.png"] = png
    bombs = ((100_000, 100_000), (2**31 - 1, 1), (70_000, 70_000), (0, 5))
    bad = {f"bomb {width} x {height}.png": png_of_header(width, height) for width, height in bombs}
    broken = (b"", b"hello", b"%!PS-Adobe-3.0\n", b"\xff\xd8\xff", b"GIF89a", jpeg[: len(jpeg) // 2])
    bad |= {f"no image {number}.jpg": data for number, data in enumerate(broken)}
    for name, data in {**good, **bad}.items():
        write(folder / name, data)
    (folder / "folder.jpg").mkdir()
    (folder / "circle.jpg").symlink_to("circle.jpg")
    (folder / "lost.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "round").symlink_to(folder)
    return set(good), {*bad, "folder.jpg", "circle.jpg", "lost.jpg", "pipe.jpg"}


def test_odd_files_are_read_or_refused_with_a_reason(trained: PipelineConfig, run: Run, tmp_path: Path) -> None:
    folder, out = tmp_path / "odd", tmp_path / "out"
    folder.mkdir()
    good, bad = odd_files(folder, open_images(trained.dataset, "test").read(0)[::3, ::3])
    report = run(folder, out, shown=1)
    refused = {each["file_name"]: each["reason"] for each in lines(out / "unreadable.jsonl")}
    read = {image["file_name"] for image in json.loads((out / "detections.json").read_text())["images"]}
    assert refused == dict(report.unreadable)
    assert all(reason and "\n" not in reason for reason in refused.values())
    assert (read, set(refused)) == (good, bad)
    assert len(list((out / "pictures").iterdir())) == len(read)
    assert "limit" in refused["bomb 100000 x 100000.png"]
    assert refused["folder.jpg"] == "this is a folder"
    assert all(line.isprintable() for line in str(report).split("\n"))
    assert "files could not be read:" in str(report)


def test_what_does_not_fit_in_memory_is_tried_alone(
    photographs: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Small(Predictor):
        def predict(self, images: list, names: list[str], **options: Any) -> list:  # type: ignore[override]
            if len(images) > 1:
                raise torch.cuda.OutOfMemoryError
            if names[0].endswith("0.png"):
                raise MemoryError
            return super().predict(images, names, **options)

    monkeypatch.setattr(predict_module, "Predictor", Small)
    report = run(photographs, tmp_path / "out", pictures=False)
    assert report.num_images == 9
    [(name, reason)] = report.unreadable
    assert name.endswith("0.png")
    assert reason == "there is not enough memory for 192 x 192 pixels"


def test_a_video_comes_out_drawn_with_a_line_a_frame(trained: PipelineConfig, run: Run, tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed: pip install '.[video]'")
    source, clip = open_images(trained.dataset, "test"), tmp_path / "clip.mp4"
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 192, 192, "yuv420p", 4_000_000
        for row in range(7):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(source.read(row), format="rgb24")))
        container.mux(stream.encode(None))
    cut, out = write(tmp_path / "cut.mp4", clip.read_bytes()[:2000]), tmp_path / "out"
    with av.open(str(clip)) as whole, av.open(str(tmp_path / "end.mkv"), "w") as copy:
        copied = copy.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.dts is not None:
                packet.stream = copied
                copy.mux(packet)
    end = write(tmp_path / "end.mkv", (tmp_path / "end.mkv").read_bytes()[: clip.stat().st_size // 2])
    report = run([clip, cut, end], out, batch=3, top=5)
    assert (report.num_images, report.num_videos, report.exit_code) == (0, 2, 0)
    [(name, reason)], [(cut_name, loss)] = report.unreadable, report.damaged
    assert (name, cut_name) == ("cut.mp4", "end.mkv")
    assert "video" in reason
    assert "frames were read, but" in loss
    assert "1 videos are damaged" in str(report)
    assert [each["reason"] for each in lines(out / "unreadable.jsonl")] == [reason, loss]
    frames = lines(out / "videos" / "clip.mp4.jsonl")
    assert [(each["frame"], each["time_s"]) for each in frames] == [(n, n / 5) for n in range(7)]
    assert all(len(each["triplets"]) <= 5 for each in frames)
    assert sum(len(each["triplets"]) for each in frames) > 5
    with av.open(str(out / "videos" / "clip.mp4")) as drawn:
        pictures = [frame.to_ndarray(format="rgb24") for frame in drawn.decode(video=0)]
        assert float(drawn.streams.video[0].average_rate) == 5
    assert (len(pictures), pictures[0].shape) == (7, (640, 640, 3))
    assert not list((out / "videos").glob(".*"))
    assert run([clip, cut], out, top=5).num_now == 0
    (out / "videos" / "clip.mp4").unlink()
    assert run(clip, out, top=5, pictures=False).num_now == 0
    assert run(clip, out, top=5).num_now == 1
    assert (out / "videos" / "clip.mp4").is_file()


def test_a_run_without_a_readable_image_says_so(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "notes" / "text.txt", b"text")
    error = refused(run, tmp_path / "notes", tmp_path / "out")
    assert (error.what, error.got) == ("there is no image and no video here", "1 other files")
    assert not (tmp_path / "out").exists()
    report = run(write(tmp_path / "text.jpg", b"text"), tmp_path / "out")
    assert (report.exit_code, [name for name, _ in report.unreadable]) == (1, ["text.jpg"])


def test_without_a_checkpoint_the_pipelines_student_is_taken(
    trained: PipelineConfig, photographs: Path, tmp_path: Path
) -> None:
    config = write_pipeline(trained, tmp_path / "pipeline.yaml")
    shutil.rmtree(Path(trained.output) / "checkpoints", ignore_errors=True)
    image, out = next(photographs.glob("*.png")), tmp_path / "out"
    assert run_verb(["predict", "--images", str(image), "--out", str(out), "--config", str(config)]) == 0
    assert (out / "predictions.jsonl").is_file()
    assert (Path(trained.output) / "checkpoints" / "best" / "checkpoint.json").is_file()
