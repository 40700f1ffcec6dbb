"""Files of one's own to predictions: what is written, what is refused, and that a stopped run goes on."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from hoi.config import PipelineConfig
from hoi.datasets import load_vocabulary, open_images
from hoi.errors import UserError
from hoi.evaluation import evaluate, score
from hoi.labels import load_labels
from hoi.prediction import run as predict
from hoi.prediction.run import PredictReport
from tests.fakes.pipelines import trained_world, write_pipeline


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> PipelineConfig:
    return trained_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def photographs(world: PipelineConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test scenes as PNG files, half of them a folder deeper."""
    folder, source = tmp_path_factory.mktemp("photographs"), open_images(world.dataset, "test")
    (folder / "deeper").mkdir()
    for row, image_id in enumerate(source.image_ids):
        Image.fromarray(source.read(row)).save(folder / ("deeper" if row % 2 else "") / f"{image_id}.png")
    return folder


@pytest.fixture(scope="module")
def run(world: PipelineConfig) -> Callable[..., PredictReport]:
    checkpoint = Path(world.output).parent / "checkpoint"

    def predict_with(images: object, out: Path, *further: str) -> PredictReport:
        paths = [str(each) for each in (images if isinstance(images, list) else [images])]
        return predict.main(["--images", *paths, "--out", str(out), "--checkpoint", str(checkpoint), *further])

    return predict_with


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_scenes_as_files_score_what_the_cached_evaluation_says(
    world: PipelineConfig, photographs: Path, run: Callable[..., PredictReport], tmp_path: Path
) -> None:
    report = run(photographs, tmp_path / "out", "--no-pictures")
    assert (report.num_images, report.num_now, report.unreadable, report.exit_code) == (10, 10, [], 0)
    source, labels = open_images(world.dataset, "test"), load_labels(world.dataset, "test")
    names = [f"{'deeper/' if row % 2 else ''}{image_id}.png" for row, image_id in enumerate(source.image_ids)]
    vocabulary = load_vocabulary(world.dataset)
    annotated = [
        {
            "file_name": names[image],
            "human_xyxy": human.tolist(),
            "object_xyxy": thing.tolist(),
            "verb": vocabulary.interactions[k][0],
            "object": vocabulary.interactions[k][1],
        }
        for image, human, thing, k in zip(labels.image, labels.boxes_h, labels.boxes_o, labels.interaction, strict=True)
    ]
    (tmp_path / "annotations.jsonl").write_text("".join(json.dumps(each) + "\n" for each in annotated))
    phrases = [{"verb": verb, "object": thing} for verb, thing in vocabulary.interactions]
    (tmp_path / "vocabulary.yaml").write_text(yaml.safe_dump(phrases))
    folder = {
        "name": "folder",
        "images": str(photographs),
        "vocabulary": str(tmp_path / "vocabulary.yaml"),
        "annotations": str(tmp_path / "annotations.jsonl"),
        "splits": {"train": 0.0, "test": 1.0},
    }
    plain = {**world.model_dump(mode="json"), "dataset": folder}
    (tmp_path / "folder.yaml").write_text(yaml.safe_dump(plain))
    predictions = tmp_path / "out" / "predictions.jsonl"
    by_files = score.main(
        ["--dataset", "world", "--annotations", str(tmp_path / "folder.yaml"), "--predictions", str(predictions)]
    )
    evaluate.main(world)
    rows = json.loads((Path(world.output) / "results.json").read_text())
    [cached] = [row["full"] for row in rows if row["name"] == "best"]
    assert cached > 1
    assert abs(100 * by_files.content["full"] - cached) < 0.1


def test_detections_are_cocos_layout_and_every_image_has_its_picture(
    photographs: Path, run: Callable[..., PredictReport], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(photographs, out, "--top", "4")
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


def test_a_run_that_was_stopped_ends_as_one_that_was_not_and_a_further_one_does_nothing(
    photographs: Path, run: Callable[..., PredictReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(photographs, whole, "--batch", "4")
    drawn = predict.draw_result
    monkeypatch.setattr(predict, "draw_result", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(photographs, stopped, "--batch", "4")
    monkeypatch.setattr(predict, "draw_result", drawn)
    assert not (stopped / "predictions.jsonl").exists()
    # As a kill leaves it: some lines whole, and the last one cut in two.
    journal = (whole / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (stopped / "journal.jsonl").write_bytes(b"".join(journal[:3]) + journal[3][:50])
    (stopped / "pictures").mkdir(exist_ok=True)
    for line in journal[:2]:
        name = json.loads(line)["name"]
        (stopped / "pictures" / name).parent.mkdir(exist_ok=True)
        (stopped / "pictures" / f"{name}.jpg").write_bytes((whole / "pictures" / f"{name}.jpg").read_bytes())
    assert run(photographs, stopped, "--batch", "4").num_now == 8
    one, other = lines(whole / "predictions.jsonl"), lines(stopped / "predictions.jsonl")
    for key in ("file_name", "interaction"):
        assert [each[key] for each in one] == [each[key] for each in other]
    np.testing.assert_allclose([each["score"] for each in one], [each["score"] for each in other], atol=1e-4)
    assert set(contents(whole)) == set(contents(stopped))
    before = contents(stopped)
    monkeypatch.setattr(predict, "Predictor", None)
    assert run(photographs, stopped).num_now == 0
    assert contents(stopped) == before


def test_results_of_other_settings_and_foreign_folders_are_refused_by_name(
    photographs: Path, run: Callable[..., PredictReport], tmp_path: Path
) -> None:
    image = next(photographs.glob("*.png"))
    run(image, tmp_path / "out", "--no-pictures")
    with pytest.raises(UserError, match=r"predictions of other settings .* top \(then: null, now: 3\)"):
        run(image, tmp_path / "out", "--top", "3")
    with pytest.raises(UserError, match=r"pairs\.min_score \(then: 0\.2, now: 0\.5\)"):
        run(image, tmp_path / "out", "pairs.min_score=0.5")
    with pytest.raises(UserError, match="this folder holds something else"):
        run(image, photographs)
    with pytest.raises(UserError, match="there is no such image, folder or video"):
        run(tmp_path / "nothing.png", tmp_path / "new")
    with pytest.raises(UserError, match="no file fits"):
        run(tmp_path / "*.png", tmp_path / "new")
    with pytest.raises(UserError, match="two files would have the name"):
        run([image, write(tmp_path / "other" / image.name, image.read_bytes())], tmp_path / "new")


def test_files_folders_and_patterns_name_images_alike_and_results_are_not_looked_at_again(
    photographs: Path, run: Callable[..., PredictReport], tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    data = next(photographs.glob("*.png")).read_bytes()
    for name in ("a.png", "deep/b.PNG", "deep/c.txt"):
        write(folder / name, data)
    by_pattern = run(folder / "**" / "*.[pP]*", tmp_path / "one", "--no-pictures")
    by_folder = run(folder, folder / "two")
    assert (by_pattern.num_images, by_folder.num_images, by_folder.passed_over) == (2, 2, ["deep/c.txt"])
    for out in (tmp_path / "one", folder / "two"):
        assert sorted({each["file_name"] for each in lines(out / "predictions.jsonl")}) == ["a.png", "deep/b.PNG"]
    assert run(folder, folder / "two").num_now == 0
    # A file that is named is looked at whatever its suffix, and one that was replaced is looked at again.
    assert run(folder / "deep" / "c.txt", tmp_path / "three", "--no-pictures").num_images == 1
    write(folder / "a.png", Path(next(photographs.glob("deeper/*.png"))).read_bytes())
    assert run(folder, folder / "two").num_now == 1


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def encoded(image: Image.Image, form: str, **settings: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, form, **settings)
    return buffer.getvalue()


def png_of_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is and holds next to nothing."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0")),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def odd_files(folder: Path, scene: np.ndarray) -> tuple[set[str], set[str], set[str]]:
    """Writes a hundred odd files; their names: surely readable, surely not, and those that either is right for."""
    dice, picture = random.Random(0), Image.fromarray(scene)
    jpeg, png = encoded(picture, "JPEG"), encoded(picture, "PNG")
    good, bad, either = {}, {}, {}
    for number in range(14):
        either[f"cut {number}.jpg"] = jpeg[: dice.randrange(1, len(jpeg))]
        either[f"cut {number}.png"] = png[: dice.randrange(1, len(png))]
    for number in range(20):
        spoilt = bytearray(jpeg if number % 2 else png)
        for _ in range(dice.randrange(1, 40)):
            spoilt[dice.randrange(len(spoilt))] = dice.randrange(256)
        either[f"spoilt {number}.{'jpg' if number % 2 else 'png'}"] = bytes(spoilt)
    for mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "F"):
        form = "PNG" if mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16") else "TIFF"
        try:
            moded = picture.convert(mode) if mode != "I;16" else Image.fromarray(scene[..., 0].astype(np.uint16) * 257)
            good[f"mode {mode}.{form.lower()}"] = encoded(moded, form)
        except (OSError, ValueError):
            good[f"mode {mode}.png"] = png
    for form in ("GIF", "BMP", "WEBP", "PPM", "TIFF"):
        good[f"wrong suffix of {form}.jpg"] = encoded(picture, form)
    still = [picture.rotate(90 * turn) for turn in range(3)]
    for form in ("GIF", "WEBP", "PNG"):
        good[f"animated.{form.lower()}"] = encoded(still[0], form, save_all=True, append_images=still[1:])
    for size in ((1, 1), (1, 300), (300, 1), (2, 3)):
        good[f"tiny {size[0]} x {size[1]}.png"] = encoded(picture.resize(size), "PNG")
    transposed = Image.Exif()
    transposed[0x0112] = 6
    good["turned.jpg"] = encoded(picture, "JPEG", exif=transposed)
    good["progressive.jpeg"] = encoded(picture, "JPEG", progressive=True)
    good["grey cmyk.JPG"] = encoded(picture.convert("CMYK"), "JPEG")
    for name in (
        "ünïcödé 写真 🐎.png",
        "line\nbreak.png",
        "-dash.png",
        "100%.png",
        "quote'\".png",
        "{brace}.png",
        "x" * 250 + ".png",
    ):
        name = name if len(os.fsencode(name)) <= 255 else name[-255:]
        good[name] = png
    good[os.fsdecode(b"no utf-8 \xff\xfe.png")] = png
    for size in ((100_000, 100_000), (2**31 - 1, 1), (70_000, 70_000), (0, 5)):
        bad[f"bomb {size[0]} x {size[1]}.png"] = png_of_header(*size)
    for number, data in enumerate(
        (b"", b"\0", b"hello", b"<html>", b"%!PS-Adobe-3.0\n", b"\xff\xd8\xff", b"GIF89a", b"II*\0")
    ):
        bad[f"no image {number}.jpg"] = data
    bad["zip.png"] = b"PK\x03\x04" + bytes(100)
    for name, data in {**good, **bad, **either}.items():
        write(folder / name, data)
    (folder / "folder.jpg").mkdir()
    (folder / "circle.jpg").symlink_to("circle.jpg")
    (folder / "lost.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "round").symlink_to(folder)
    return set(good), {*bad, "folder.jpg", "circle.jpg", "lost.jpg", "pipe.jpg"}, set(either)


def test_a_hundred_odd_files_are_read_or_refused_with_a_reason_and_none_stops_the_run(
    world: PipelineConfig, run: Callable[..., PredictReport], tmp_path: Path
) -> None:
    folder, out = tmp_path / "odd", tmp_path / "out"
    folder.mkdir()
    good, bad, either = odd_files(folder, open_images(world.dataset, "test").read(0))
    assert len(good | bad | either) >= 100
    report = run(folder, out)
    refused = {each["file_name"]: each["reason"] for each in lines(out / "unreadable.jsonl")}
    read = {image["file_name"] for image in json.loads((out / "detections.json").read_text())["images"]}
    assert refused == dict(report.unreadable)
    assert all(reason and "\n" not in reason for reason in refused.values())
    assert read.isdisjoint(refused)
    assert read | set(refused) == good | bad | either
    assert (good - read, bad - set(refused)) == (set(), set())
    assert len(list((out / "pictures").iterdir())) == len(read)
    assert "limit" in refused["bomb 100000 x 100000.png"]
    assert refused["folder.jpg"] == "this is a folder"
    assert str(report).isprintable() or all(line.isprintable() for line in str(report).split("\n"))
    assert "files could not be read:" in str(report)


def test_a_run_that_can_read_nothing_says_so_by_its_exit_code(
    run: Callable[..., PredictReport], tmp_path: Path
) -> None:
    report = run(write(tmp_path / "text.jpg", b"text"), tmp_path / "out")
    assert (report.exit_code, report.unreadable) == (
        1,
        [("text.jpg", "the file is no image, or of a format that is not read")],
    )


def test_a_video_of_scenes_comes_out_drawn_with_a_line_a_frame(
    world: PipelineConfig, run: Callable[..., PredictReport], tmp_path: Path
) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed: pip install '.[video]'")
    source, clip = open_images(world.dataset, "test"), tmp_path / "clip.mp4"
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 192, 192, "yuv420p", 4_000_000
        for row in range(7):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(source.read(row), format="rgb24")))
        container.mux(stream.encode(None))
    write(tmp_path / "cut.mp4", clip.read_bytes()[:2000])
    out = tmp_path / "out"
    report = run([clip, tmp_path / "cut.mp4"], out, "--batch", "3", "--top", "5")
    assert (report.num_images, report.num_videos, report.exit_code) == (0, 1, 0)
    [(name, reason)] = report.unreadable
    assert name == "cut.mp4"
    assert "video" in reason
    frames = lines(out / "videos" / "clip.mp4.jsonl")
    assert [(each["frame"], each["time_s"]) for each in frames] == [(n, n / 5) for n in range(7)]
    assert all(len(each["triplets"]) <= 5 for each in frames)
    assert sum(len(each["triplets"]) for each in frames) > 5
    with av.open(str(out / "videos" / "clip.mp4")) as drawn:
        pictures = [frame.to_ndarray(format="rgb24") for frame in drawn.decode(video=0)]
        assert float(drawn.streams.video[0].average_rate) == 5
    assert (len(pictures), pictures[0].shape) == (7, (640, 640, 3))
    assert not list((out / "videos").glob(".*"))
    assert run([clip, tmp_path / "cut.mp4"], out, "--top", "5").num_now == 0
    (out / "videos" / "clip.mp4").unlink()
    assert run(clip, out, "--top", "5", "--no-pictures").num_now == 0
    assert run(clip, out, "--top", "5").num_now == 1
    assert (out / "videos" / "clip.mp4").is_file()


def test_a_folder_without_an_image_is_a_mistake_and_nothing_is_written(
    run: Callable[..., PredictReport], tmp_path: Path
) -> None:
    write(tmp_path / "notes" / "text.txt", b"text")
    with pytest.raises(UserError, match=r"no image and no video .* got: 1 other files"):
        run(tmp_path / "notes", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_results_below_the_folder_of_images_are_never_looked_at_however_they_are_named(
    photographs: Path, run: Callable[..., PredictReport]
) -> None:
    out = photographs / "deeper" / ".." / "out"
    assert run(photographs, out, "--top", "1").num_images == run(photographs, out, "--top", "1").num_images == 10
    shutil.rmtree(out)


def test_without_a_checkpoint_the_pipeline_files_student_is_taken(
    world: PipelineConfig, photographs: Path, tmp_path: Path
) -> None:
    config = write_pipeline(world, tmp_path / "pipeline.yaml")
    image = next(photographs.glob("*.png"))
    report = predict.main(["--images", str(image), "--out", str(tmp_path / "out"), "--config", str(config)])
    assert report.num_images == 1
    assert (Path(world.output) / "checkpoints" / "best" / "checkpoint.json").is_file()
