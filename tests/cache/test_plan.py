"""Splits are cut into shards by hand-checked rows, and a plan is refused where images are not distinct."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

import hoi.cache.plan
from hoi.cache.build.run import build_cache
from hoi.cache.plan import doubled_id, hash_of_ids, plan_split, splits_of
from hoi.errors import UserError
from tests.fakes.extractors import RandomSignals
from tests.fakes.pipelines import photo_pipeline


def test_five_images_at_two_a_shard_are_three_shards(tmp_path: Path) -> None:
    plan = plan_split(photo_pipeline(tmp_path), "test")
    assert [(s.name, s.start, s.stop) for s in plan.shards] == [
        ("shard-00000.h5", 0, 2),
        ("shard-00001.h5", 2, 4),
        ("shard-00002.h5", 4, 5),
    ]
    assert plan.num_images == 5
    assert plan.shards[1].image_ids_sha256 == hash_of_ids(["02.png", "03.png"])
    assert plan.folder == tmp_path / "cache" / "test"


def test_ids_are_hashed_apart() -> None:
    assert len({hash_of_ids(ids) for ids in (["ab", "c"], ["a", "bc"], ["abc"], ["c", "ab"], [])}) == 5


def test_ids_are_hashed_in_chunks_as_if_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [f"bär-{row}" for row in range(7)]
    expected = hashlib.sha256("".join(image_id + "\0" for image_id in ids).encode()).hexdigest()
    for at_once in (1, 3, 7, 100):
        monkeypatch.setattr(hoi.cache.plan, "IDS_AT_ONCE", at_once)
        assert hash_of_ids(ids) == expected


class Colliding(str):
    """An id whose hash says nothing."""

    __slots__ = ()

    def __hash__(self) -> int:
        return 7


def test_equal_hashes_alone_make_no_doubled_id() -> None:
    assert doubled_id([Colliding("a"), Colliding("b"), "c"]) is None
    assert doubled_id([Colliding("a"), Colliding("b"), Colliding("b"), "c"]) == "b"
    assert doubled_id(["a"]) is None
    assert doubled_id(["a", "b", "b", "c", "c", "c", "d"]) == "c"


def test_an_empty_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is empty .* expected: at least one image"):
        build_cache(photo_pipeline(tmp_path, num_pairs=()), RandomSignals)
    assert not (tmp_path / "cache").exists()


def test_an_image_id_that_stands_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Twice:
        image_ids = ("a", "b", "a")

    monkeypatch.setattr("hoi.cache.plan.open_images", lambda *_: Twice())
    with pytest.raises(UserError, match=r"an image id stands twice .* got: a"):
        plan_split(photo_pipeline(tmp_path), "test")


def test_a_split_with_no_share_is_not_wanted(tmp_path: Path) -> None:
    config = photo_pipeline(tmp_path, dataset={"splits": {"train": 0.0, "test": 1.0}})
    assert splits_of(config) == ["test"]
