"""What is pulled is whole or absent, every byte is checked, and no manifest reaches out of its folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from hoi.cache.read.split import open_split
from hoi.cache.schema import Pass
from hoi.cache.tools.pull import pull_split
from hoi.cache.tools.verify import verify_split
from tests.fakes.extractors import PASS
from tests.fakes.pipelines import built_photos, photo_pipeline, refused, split_files

URL = "memory://caches/photos"


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[fsspec.AbstractFileSystem]:
    """A finished cache of three shards, and as many of a pass, in a file system that is none."""
    _, folder = built_photos(tmp_path, vlms={"coca": PASS})
    store = fsspec.filesystem("memory")
    for name, data in split_files(folder).items():
        store.pipe(f"/caches/photos/test/{name}", data)
    yield store
    store.rm("/caches", recursive=True)


def base_files(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in split_files(folder).items() if not name.startswith(("coca", ".lock"))}


def change(store: fsspec.AbstractFileSystem, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edits the manifest that is pulled."""
    plain = json.loads(store.cat("/caches/photos/test/manifest.json"))
    edit(plain)
    store.pipe("/caches/photos/test/manifest.json", json.dumps(plain).encode())


def test_a_pulled_split_is_the_one_that_was_made(tmp_path: Path, remote: Any) -> None:
    seen: list[int] = []
    report = pull_split(URL, "test", tmp_path / "to", seen.append)
    assert split_files(tmp_path / "to" / "test") == base_files(tmp_path / "cache" / "test")
    assert (report.num_files, report.num_kept, sum(seen)) == (5, 0, report.num_bytes)
    config = photo_pipeline(tmp_path, cache={"folder": str(tmp_path / "to")})
    assert open_split(config, "test").num_images == 5
    again = pull_split(URL, "test", tmp_path / "to", seen.append)
    assert (again.num_kept, again.num_bytes) == (5, 0)
    pull_split(URL, "test", tmp_path / "to", seen.append, Pass("coca"))
    assert split_files(tmp_path / "to" / "test") == split_files(tmp_path / "cache" / "test")
    assert verify_split(tmp_path / "to" / "test") == []
    assert "clip-manifest.json" in str(refused(pull_split, URL, "test", tmp_path / "to", id, Pass("clip")).where)


def test_a_plain_folder_is_a_location_too(tmp_path: Path, remote: Any) -> None:
    pull_split(f"file://{tmp_path / 'cache'}/", "test", tmp_path / "to", id)
    assert split_files(tmp_path / "to" / "test") == base_files(tmp_path / "cache" / "test")


def test_an_interrupted_pull_goes_on_with_what_is_missing(tmp_path: Path, remote: Any) -> None:
    whole = remote.cat("/caches/photos/test/shard-00001.h5")
    remote.rm("/caches/photos/test/shard-00001.h5")
    error = refused(pull_split, URL, "test", tmp_path / "to", id)
    assert (error.what, error.where) == ("there is no such file", f"{URL}/test/shard-00001.h5")
    assert not (tmp_path / "to" / "test" / "manifest.json").exists()
    here = {path.name for path in (tmp_path / "to" / "test").glob("*.h5")}
    remote.pipe("/caches/photos/test/shard-00001.h5", whole)
    report = pull_split(URL, "test", tmp_path / "to", id)
    assert report.num_kept == len(here)
    assert verify_split(tmp_path / "to" / "test") == []


@pytest.mark.parametrize(
    "damage", [lambda d: d[:-1], lambda d: d + b"x", lambda d: d[:-5] + bytes([d[-5] ^ 1]) + d[-4:]]
)
def test_a_file_that_differs_from_its_manifest_is_not_written(
    tmp_path: Path, remote: Any, damage: Callable[[bytes], bytes]
) -> None:
    path = "/caches/photos/test/shard-00002.h5"
    remote.pipe(path, damage(remote.cat(path)))
    error = refused(pull_split, URL, "test", tmp_path / "to", id)
    assert (error.what, error.where) == ("a file differs from what its manifest says", f"{URL}/test/shard-00002.h5")
    assert not (tmp_path / "to" / "test" / "shard-00002.h5").exists()
    assert not (tmp_path / "to" / "test" / "manifest.json").exists()


def naming(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: manifest["shards"][1].update(name=name)


OUTSIDE = ("../../outside.h5", "/tmp/outside.h5", "shard-00001.h5/../../x", "shard-00001.h5\n", "shard-٠٠٠٠١.h5", "")


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        *((naming(name), "shard") for name in OUTSIDE),
        (lambda m: m["shards"].reverse(), "not numbered from 0 on"),
        (lambda m: m["shards"][0].update(num_bytes=-1), "num_bytes"),
        (lambda m: m["shards"][0].update(sha256="00"), "malformed"),
        (lambda m: m["index"].update(num_bytes="9"), "index.num_bytes"),
        (lambda m: m.update(index=None), "$.index"),
        (lambda m: m.update(split="../up"), "$.split"),
        (lambda m: m["bank"].update(fingerprint="f" * 64), "not the hash of its parts"),
        (lambda m: m.pop("shards"), "shards"),
    ],
)
def test_a_malformed_manifest_is_refused_before_any_write(
    tmp_path: Path, remote: Any, edit: Callable[[dict[str, Any]], object], text: str
) -> None:
    change(remote, edit)
    error = refused(pull_split, URL, "test", tmp_path / "to", id)
    assert (error.what, error.where) == ("this manifest is damaged", f"{URL}/test/manifest.json")
    assert text in str(error.got)
    assert not (tmp_path / "to").exists()


def test_a_link_in_the_way_is_replaced_not_followed(tmp_path: Path, remote: Any) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    (tmp_path / "to" / "test").mkdir(parents=True)
    for name in ("shard-00000.h5", "shard-00001.json", "manifest.json"):
        os.symlink(outside, tmp_path / "to" / "test" / name)
    (tmp_path / "to" / "test" / "manifest.json").unlink()
    pull_split(URL, "test", tmp_path / "to", id)
    assert outside.read_bytes() == b"precious"
    assert split_files(tmp_path / "to" / "test") == base_files(tmp_path / "cache" / "test")


def test_another_cache_in_the_way_is_left_alone(tmp_path: Path, remote: Any) -> None:
    _, other = built_photos(tmp_path, teacher={"precision": "bf16"}, cache={"folder": str(tmp_path / "to")})
    before = split_files(other)
    for name in ("nothing", "manifest.json"):
        (other / name).unlink(missing_ok=True)
        before.pop(name, None)
        error = refused(pull_split, URL, "test", tmp_path / "to", id)
        assert error.what == "another teacher cache is in this folder"
        assert str(error.got).startswith("fingerprint")
        assert split_files(other) == before


@pytest.mark.parametrize(
    ("url", "what", "got"),
    [
        ("memory://nowhere", "there is no such file", None),
        ("gopher://host/cache", "the location cannot be read", "ValueError: Protocol not known: gopher"),
    ],
)
def test_an_unreachable_location_is_one_line(tmp_path: Path, url: str, what: str, got: str | None) -> None:
    error = refused(pull_split, url, "test", tmp_path / "to", id)
    assert (error.what, error.where, error.got) == (what, f"{url}/test/manifest.json", got)
