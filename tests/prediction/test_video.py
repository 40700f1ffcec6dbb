"""Videos as cameras, phones and browsers write them: uneven times, mirrored pictures, ends that are cut off."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hoi.datasets import UnreadableImage
from hoi.prediction.folder import Source
from hoi.prediction.video import VideoReader, VideoWriter

av = pytest.importorskip("av", reason="PyAV is not installed: pip install '.[video]'")
UNEVEN_MS = (0, 33, 66, 100, 1100, 2100, 3100, 4100)
PICTURE = np.zeros((48, 64, 3), np.uint8)
PICTURE[:16, :, 0], PICTURE[:, :16, 2] = 255, 255  # red above, blue on the left
IDENTITY = np.array([1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()


def write_video(path: Path, times_ms: Sequence[int], codec: str = "mpeg4", rate: int = 10, offset_ms: int = 0) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.time_base = Fraction(1, rate if codec == "mjpeg" else 1000)
        for each in times_ms:
            frame = av.VideoFrame.from_ndarray(PICTURE, format="rgb24")
            frame.time_base = stream.codec_context.time_base
            frame.pts = round((each + offset_ms) / 1000 / frame.time_base)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_every_drawn_frame_keeps_its_time(tmp_path: Path, suffix: str) -> None:
    rate = {".mp4": 10, ".mkv": 1000}[suffix]
    reader = VideoReader(write_video(tmp_path / f"clip{suffix}", UNEVEN_MS, rate=rate, offset_ms=500), 10**6)
    with VideoWriter(tmp_path / "drawn.mp4", reader.rate) as writer:
        times = []
        for _, time_s, pixels in reader.frames():
            times.append(time_s)
            writer.write(Image.fromarray(pixels), time_s)
    np.testing.assert_allclose(times, np.array(UNEVEN_MS) / 1000, atol=1e-3)
    assert reader.damage is None
    with av.open(str(tmp_path / "drawn.mp4")) as drawn:
        np.testing.assert_allclose([frame.time for frame in drawn.decode(video=0)], times, atol=1e-3)
        assert drawn.duration / 1e6 == pytest.approx(4.4, abs=0.3)


def test_frames_before_a_damaged_end_are_read_and_it_is_told(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "clip.avi", range(0, 800, 100), "mjpeg").read_bytes()
    (tmp_path / "clip.avi").write_bytes(whole[: len(whole) * 7 // 10])
    reader = VideoReader(tmp_path / "clip.avi", 10**6)
    number = len(list(reader.frames()))
    assert 3 <= number < 8
    assert str(reader.damage).startswith(f"{number} frames were read, but ")
    assert "lasts 0.80 s" in str(reader.damage)


def test_a_time_that_jumps_back_or_far_ahead_is_told(tmp_path: Path) -> None:
    times = (0, 100, 90_000_000, 90_000_100)
    reader = VideoReader(write_video(tmp_path / "clip.mkv", times, "mjpeg", rate=1000), 10**6)
    read = [time_s for _, time_s, _ in reader.frames()]
    assert (read[0], read[1], read[-1]) == (0, 0.1, pytest.approx(read[2] + 0.1))
    assert read[2] < 10
    assert "the times of 1 frames are damaged" in str(reader.damage)


@pytest.mark.parametrize("matrix", [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)] + [
    (0, b, c, 0) for b in (1, -1) for c in (1, -1)
])  # fmt: skip
def test_a_turned_or_mirrored_picture_comes_out_upright(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    a, b, c, d = matrix
    clip = write_video(tmp_path / "clip.mp4", (0, 100))
    turned = np.array([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()
    track = clip.read_bytes().index(b"tkhd")
    clip.write_bytes(clip.read_bytes()[:track] + clip.read_bytes()[track:].replace(IDENTITY, turned, 1))
    [(_, _, pixels), _] = VideoReader(clip, 10**6).frames()
    # By the definition: the pixel at (x, y), seen from the middle, goes to (a x + c y, b x + d y).
    y, x = np.mgrid[:48, :64]
    to_x, to_y = a * x + c * y, b * x + d * y
    expected = np.zeros((48, 64, 3) if a else (64, 48, 3), np.uint8)
    expected[to_y - to_y.min(), to_x - to_x.min()] = PICTURE
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).mean() < 12


@pytest.mark.parametrize("name", ["clip.MTS", "a.m2ts", "a.3gp", "a.wmv", "a.flv", "a.ogv", "a.ts", "a.vob", "A.MOV"])
def test_videos_are_known_by_their_names(name: str) -> None:
    assert Source(name, Path(name)).is_video
    assert not Source("a.jpg", Path("a.jpg")).is_video


def test_what_is_no_video_or_names_other_files_is_refused(tmp_path: Path) -> None:
    clip = write_video(tmp_path / "clip.mp4", (0, 100))
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile {clip.name}\n")
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:500])
    for name, pixels in (("pipe", 10**6), ("list", 10**6), ("cut", 10**6), ("clip", 3071)):
        with pytest.raises(UnreadableImage):
            VideoReader(tmp_path / f"{name}.mp4", pixels)
