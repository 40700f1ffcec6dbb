"""Stage one finishes what is missing and nothing else, says mistakes in one line, and gives the same bytes again."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hoi.cache.base_pass import FIELDS
from hoi.cache.build.run import CacheReport, build_cache
from hoi.cache.read.split import CacheSplit, open_split
from hoi.cache.shard import inspect_shard, read_text
from hoi.config import load_config
from tests.fakes.extractors import FailingSignals, RandomSignals
from tests.fakes.pipelines import built_photos, cut, photo_pipeline, refused, small_files

ROOT = Path(__file__).parents[2]


def built(report: CacheReport) -> list[int]:
    return [split.num_built for split in report.splits]


def hashes(folder: Path) -> dict[str, str]:
    """All that is content: shards, receipts, text bank, index."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.suffix == ".h5" or path.name.startswith("shard-")
    }


def test_a_second_run_builds_nothing_and_bytes_repeat(tmp_path: Path) -> None:
    first = build_cache(photo_pipeline(tmp_path), RandomSignals)
    before = hashes(tmp_path / "cache")
    assert built(first) == [3]
    assert len(before) == 3 + 3 + 2
    assert built(build_cache(photo_pipeline(tmp_path), RandomSignals)) == [0]
    built_photos(tmp_path, cache={"folder": str(tmp_path / "fresh")})
    assert hashes(tmp_path / "fresh") == before == hashes(tmp_path / "cache")
    assert "5 images (0 unreadable), 11 pairs" in str(first)


@pytest.mark.parametrize(
    ("name", "damage", "num_built"),
    [
        ("shard-00001.h5", Path.unlink, 1),
        ("shard-00002.h5", cut, 1),
        *((name, Path.unlink, 0) for name in ("bank.json", "bank.h5", "shard-00001.json", "index.h5", "manifest.json")),
    ],
)
def test_what_is_lost_or_cut_is_alone_made_again(tmp_path: Path, name: str, damage: Any, num_built: int) -> None:
    config, folder = built_photos(tmp_path)
    before = hashes(folder)
    damage(folder / name)
    assert built(build_cache(config, RandomSignals)) == [num_built]
    if name != "shard-00001.json":
        assert hashes(folder) == before
    assert open_split(config, "test", same_images=False).num_images == 5


def test_unreadable_images_are_recorded_with_their_reasons(tmp_path: Path) -> None:
    config = photo_pipeline(tmp_path, cache={"max_failed_share": 0.6})
    images = tmp_path / "images"
    (images / "00.png").write_bytes(b"")
    (images / "02.png").write_bytes(b"no image")
    (images / "03.png").write_bytes((images / "03.png").read_bytes()[:45])
    assert build_cache(config, RandomSignals).splits[0].num_failed == 3
    split = CacheSplit.open(config.cache.folder, "test")
    assert split.is_readable.tolist() == [False, True, False, False, True]
    tables = [inspect_shard(split.folder / f"shard-0000{i}.h5", FIELDS).table("status_reason") for i in range(3)]
    reasons = read_text(np.concatenate(tables))
    assert reasons[:3] == ["the file is empty", "", "the file is no image, or of a format that is not read"]
    assert reasons[3].startswith("the file is corrupt")
    failed = json.loads((split.folder / "shard-00001.json").read_text())["failed"]
    assert failed == [["02.png", reasons[2]], ["03.png", reasons[3]]]


def test_too_many_unreadable_images_leave_no_manifest(tmp_path: Path) -> None:
    config, folder = photo_pipeline(tmp_path), tmp_path / "cache" / "test"
    images = [tmp_path / "images" / name for name in ("01.png", "04.png")]
    kept = [image.read_bytes() for image in images]
    for image in images:
        image.write_bytes(b"no image")
    error = refused(build_cache, config, RandomSignals)
    assert error.what == "too many images of split 'test' are unreadable"
    assert error.expected == "at most 25.0% of 5 (cache.max_failed_share)"
    assert re.match("2 so far: 01.png: the file is no image, .*; 04.png: the file is no image, ", str(error.got))
    assert not (folder / "manifest.json").exists()
    assert (folder / "shard-00001.h5").exists()
    for image, data in zip(images, kept, strict=True):
        image.write_bytes(data)
    report = build_cache(config, RandomSignals)
    assert (built(report), report.splits[0].num_failed) == ([2], 0)


def test_other_settings_are_refused_by_key(tmp_path: Path) -> None:
    _, folder = built_photos(tmp_path)
    other, before = photo_pipeline(tmp_path, pairs={"max_humans": 3}), hashes(folder)
    for name in ("nothing", "shard-00000.h5", "manifest.json"):
        (folder / name).unlink(missing_ok=True)
        before.pop(name, None)
        error = refused(build_cache, other, RandomSignals)
        assert (error.what, error.where) == ("this cache was made with other settings", folder)
        assert error.got == "pairs.max_humans (cache: 15, now: 3)"
        assert hashes(folder) == before


def test_another_shard_size_is_refused_for_a_begun_cache(tmp_path: Path) -> None:
    _, folder = built_photos(tmp_path)
    other = photo_pipeline(tmp_path, cache={"images_per_shard": 3})
    assert built(build_cache(other, RandomSignals)) == [0]
    (folder / "shard-00000.h5").unlink()
    error = refused(build_cache, other, RandomSignals)
    assert (error.expected, error.got) == ("cache.images_per_shard=2", 3)
    # Nor may the list of images change.
    six = photo_pipeline(tmp_path / "more", (2, 0, 1, 5, 3, 1), cache={"folder": str(tmp_path / "cache")})
    assert "images.number (cache: 5, now: 6)" in str(refused(build_cache, six, RandomSignals).got)


def test_a_failing_shard_is_named_and_the_others_are_finished(tmp_path: Path) -> None:
    config, folder = photo_pipeline(tmp_path, num_pairs=(2, 0, 13, 1, 3)), tmp_path / "cache" / "test"
    (tmp_path / "images" / "01.png").write_bytes(b"no image")
    error = refused(build_cache, config, FailingSignals)
    assert (error.what, error.got) == ("1 of 4 tasks failed", "test/shard-00001.h5: RuntimeError: thirteen")
    assert sorted(p.name for p in folder.glob("*.h5")) == ["bank.h5", "shard-00000.h5", "shard-00002.h5"]
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    [trace] = [line["error"] for line in lines if line["error"]]
    assert "Traceback" in trace
    # The unreadable image of a finished shard is counted, too.
    report = build_cache(config, RandomSignals)
    assert (built(report), report.splits[0].num_failed) == ([1], 1)


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    config = photo_pipeline(tmp_path, num_pairs=(1, 0, 250), cache={"images_per_shard": 1})
    folder = tmp_path / "cache" / "test"
    # The text bank fits, the last shard does not.
    with small_files(24_000):
        error = refused(build_cache, config, RandomSignals)
    assert (error.what, error.where) == ("the disk is full", folder / "shard-00002.h5")
    assert "what is finished is kept" in str(error.fix)
    names = sorted(p.name for p in folder.iterdir() if p.suffix != ".jsonl")
    assert names == ["bank.h5", "bank.json", *(f"shard-0000{i}.{end}" for i in (0, 1) for end in ("h5", "json"))]


SMALL_WORLD = [
    "dataset.splits={train: 5, test: 2}",
    "cache.images_per_shard=3",
    "cache.device=cpu",
    "teacher.batch_size=16",
    "teacher.crop.margins=[1.15]",
]


@pytest.mark.slow
def test_real_models_give_the_same_bytes_on_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for scheduler in ("synchronous", "local"):
        overrides = [*SMALL_WORLD, f"cache.folder={tmp_path / scheduler}", f"cache.scheduler={scheduler}"]
        assert built(build_cache(load_config("pipeline.yaml", [*overrides, "cache.workers=2"]))) == [2, 1]
    assert hashes(tmp_path / "synchronous") == hashes(tmp_path / "local")
    assert len(hashes(tmp_path / "local")) == 2 * 3 + 2 * 2
    split = CacheSplit.open(tmp_path / "local", "train")
    assert (split.num_images, len(split.axes)) == (5, 4)
    assert split.num_pairs > 0
    norms = split.batch(split.is_readable.nonzero()[0]).union_feature.norm(dim=-1)
    assert abs(norms - 1).max() < 1e-3

    command = [*SMALL_WORLD, f"cache.folder={tmp_path / 'local'}"]
    code = (
        "import sys; from hoi.cache.build.run import build_cache; from hoi.config import load_config\n"
        "print(build_cache(load_config('pipeline.yaml', sys.argv[1:])))\n"
        "print([name for name in ('torch', 'open_clip', 'dask', 'distributed') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=True)
    assert "nothing to do" in done.stdout
    assert done.stdout.endswith("[]\n")
