"""Repair makes what is bad again, and only that; the cache is then the undisturbed one, and nothing was thrown away."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hoi.cache.build.run import build_cache
from hoi.cache.tools.repair import repair
from hoi.cache.tools.verify import verify_split
from tests.fakes.extractors import PASS, RandomSignals, VlmSignalsOf
from tests.fakes.pipelines import built_photos, cut, flip, photo_pipeline, refused, split_files, swap


def times(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in folder.glob("*shard-*.h5")}


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("shard-00001.h5", Path.unlink),
        ("shard-00001.h5", cut),
        ("shard-00001.h5", flip),
        ("shard-00001.h5", swap),
        ("shard-00001.json", Path.unlink),
        ("shard-00001.json", cut),
        ("bank.h5", flip),
        ("bank.json", cut),
        ("index.h5", flip),
        ("manifest.json", cut),
        ("manifest.json", Path.unlink),
        ("coca-shard-00001.h5", Path.unlink),
        ("coca-shard-00001.h5", flip),
        ("coca-shard-00001.h5", swap),
        ("coca-bank.h5", flip),
        ("coca-index.h5", flip),
        ("coca-manifest.json", cut),
        ("coca-manifest.json", Path.unlink),
    ],
)
def test_after_repair_the_cache_is_the_undisturbed_one(tmp_path: Path, name: str, damage: object) -> None:
    factories = (RandomSignals, VlmSignalsOf("coca"))
    config, folder = built_photos(tmp_path, vlms={"coca": PASS})
    before, written = split_files(folder), times(folder)
    assert repair(config, *factories).lines == ()
    damage(folder / name)
    bad = (folder / name).read_bytes() if (folder / name).exists() else None
    if name == "shard-00001.json" and bad is None:
        # A receipt may be missing, so nothing is wrong, and the next repair that finds something brings it back.
        (folder / "index.h5").unlink()
    done = repair(config, *factories).lines
    assert split_files(folder) == before
    assert verify_split(folder) == []
    rebuilt = {other for other, time in times(folder).items() if time != written[other]}
    assert rebuilt == ({name} if "shard-00001.h5" in name else set())
    assert any(f": {len(rebuilt)} shards built" in line for line in done)
    if bad is not None:
        assert (folder / "quarantine" / f"{name}.1").read_bytes() == bad
        lines = [json.loads(line) for line in (folder / "quarantine" / "reasons.jsonl").read_text().splitlines()]
        assert f"{name}.1" in {line["file"] for line in lines}


def test_a_shard_beyond_the_last_and_leftovers_go(tmp_path: Path) -> None:
    config, folder = built_photos(tmp_path)
    before = split_files(folder)
    shutil.copy(folder / "shard-00001.h5", folder / "shard-00009.h5")
    (folder / ".x.part").write_bytes(b"half")
    repair(config, RandomSignals)
    assert split_files(folder) == before
    assert (folder / "quarantine" / "shard-00009.h5.1").exists()


def test_images_that_can_be_read_by_now_are_taken_in(tmp_path: Path) -> None:
    images = tmp_path / "images"
    config, folder = built_photos(tmp_path, cache={"max_failed_share": 0.5})
    undisturbed = split_files(folder)
    shutil.rmtree(tmp_path / "cache")
    kept = (images / "02.png").read_bytes()
    for name in ("02.png", "04.png"):
        (images / name).write_bytes(b"no image")
    build_cache(config, RandomSignals)
    assert repair(config, RandomSignals).lines == ()
    (images / "02.png").write_bytes(kept)
    written = times(folder)
    done = repair(config, RandomSignals).lines
    assert done[0].startswith("test/shard-00001.h5: failed: unreadable when it was built, and readable now: 02.png")
    assert [n for n, t in times(folder).items() if t != written[n]] == ["shard-00001.h5"]
    assert split_files(folder)["shard-00001.h5"] == undisturbed["shard-00001.h5"]


def test_a_config_of_other_settings_moves_nothing(tmp_path: Path) -> None:
    _, folder = built_photos(tmp_path)
    whole = split_files(folder)
    flip(folder / "shard-00001.h5")
    before = split_files(folder)
    other = photo_pipeline(tmp_path, pairs={"max_humans": 2})
    assert "pairs.max_humans" in str(refused(repair, other, RandomSignals).got)
    assert split_files(folder) == before
    assert not (folder / "quarantine").exists()
    # Another shard size is no other setting.
    repair(photo_pipeline(tmp_path, cache={"images_per_shard": 5}), RandomSignals)
    assert split_files(folder) == whole
