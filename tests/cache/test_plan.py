"""Splits are cut into shards by hand-checked rows, and a plan is refused where images are not distinct."""

from __future__ import annotations

from pathlib import Path

import pytest

from cache.plan import hash_of_ids, plan_split, splits_of
from hoi.errors import UserError
from tests.random_signals import photo_pipeline


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


def test_an_empty_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is empty .* expected: at least one image"):
        plan_split(photo_pipeline(tmp_path, num_pairs=()), "test")


def test_an_image_id_that_stands_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Twice:
        image_ids = ("a", "b", "a")

    monkeypatch.setattr("cache.plan.open_images", lambda *_: Twice())
    with pytest.raises(UserError, match=r"an image id stands twice .* got: a"):
        plan_split(photo_pipeline(tmp_path), "test")


def test_a_split_with_no_share_is_not_wanted(tmp_path: Path) -> None:
    config = photo_pipeline(tmp_path, dataset={"splits": {"train": 0.0, "test": 1.0}})
    assert splits_of(config) == ["test"]
