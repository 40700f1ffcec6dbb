"""Records go into flat tables, and every value is found again where the offsets say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hoi.cache.base_pass import pack_tables, unpack_tables
from hoi.cache.read.batches import JoinedTables, MappedTables, Runs, Tables
from hoi.records import ImageSignals
from tests.fakes.extractors import AXES, MAP_AXES, random_signals


@pytest.mark.parametrize("counts", [[], [(0, 0)], [(1, 0)], [(2, 1)], [(3, 5), (0, 0), None, (1, 1), (4, 2)]])
def test_every_field_of_every_record_is_found_again(counts: list[tuple[int, int] | None]) -> None:
    axes, ids = {**AXES, **MAP_AXES}, [f"img{i}" for i in range(len(counts))]
    records: list[ImageSignals | str] = [
        "the file is missing" if of_image is None else random_signals(name, *of_image, with_map=True)
        for name, of_image in zip(ids, counts, strict=True)
    ]
    tables = pack_tables(ids, records, axes)
    for record, found in zip(records, unpack_tables(tables, axes), strict=True):
        if isinstance(record, str) or isinstance(found, str):
            assert found == record
            continue
        for name, value in {**vars(record), **vars(record.detections)}.items():
            if name != "detections":
                again = getattr(found if hasattr(found, name) else found.detections, name)
                np.testing.assert_array_equal(again, value, err_msg=name)
    assert tables["boxes_xyxy"].shape == (sum(of_image[0] for of_image in counts if of_image), 4)


def test_an_unreadable_image_keeps_its_slot_with_its_reason() -> None:
    outcomes: list[ImageSignals | str] = [random_signals("a", 2, 1), "the file is missing", random_signals("c", 1, 0)]
    tables = pack_tables(["a", "b", "c"], outcomes, AXES)
    assert tables["status"].tolist() == [0, 1, 0]
    assert tables["status_reason"].tolist() == [b"", b"the file is missing", b""]
    assert tables["detection_offsets"].tolist() == [0, 2, 2, 3]
    assert tables["pair_offsets"].tolist() == [0, 1, 1, 1]
    assert not tables["image_embedding"][1].any()


def test_a_shard_of_unreadable_images_alone_has_the_right_shapes() -> None:
    tables = pack_tables(["ä"], ["x" * 1000], {**AXES, **MAP_AXES})
    assert tables["union_similarity"].shape == (0, 2, 3)
    assert tables["spatial_map"].shape == (1, 2, 3, 1)
    assert tables["image_id"][0].decode() == "ä"
    assert len(tables["status_reason"][0]) == 400


def test_signals_in_the_wrong_place_or_shape_are_refused() -> None:
    record = random_signals("a", 2, 1)
    with pytest.raises(ValueError, match="signals of image a came in the place of b"):
        pack_tables(["b"], [record], AXES)
    with pytest.raises(ValueError, match=r"image_similarity of image a has shape \(1,\), expected \(3,\)"):
        pack_tables(["a"], [replace(record, image_similarity=np.ones(1, np.float16))], AXES)
    with pytest.raises(ValueError, match="spatial_map of image a has shape None"):
        pack_tables(["a"], [record], {**AXES, **MAP_AXES})


OFFSETS = np.array([0, 2, 2, 5, 6, 6, 9])
"""Six images with 2, 0, 3, 1, 0 and 3 rows."""
TABLE = np.arange(18, dtype=np.float16).reshape(9, 2)


def stored(kind: str, images: list[int]) -> Tables:
    parts = np.split(TABLE, OFFSETS[images])

    def rows(shard: int, name: str) -> np.ndarray:
        assert name == "field"
        return parts[shard]

    if kind == "joined":
        return JoinedTables(rows, len(parts))
    starts = np.array([0, *images, 6])
    return MappedTables(rows, {"image": starts, "pair": OFFSETS[starts]}, lambda name: (TABLE.dtype, (2,)))


@pytest.mark.parametrize("kind", ["joined", "mapped"])
@pytest.mark.parametrize("images", [[], [3], [1, 2, 4], [1, 2, 3, 4, 5]])
def test_rows_are_found_in_any_shards(kind: str, images: list[int]) -> None:
    wanted = np.array([5, 1, 0, 4, 2, 3, 5])
    take = stored(kind, images).locate(Runs.between("pair", OFFSETS, wanted))
    expected = [TABLE[OFFSETS[row] : OFFSETS[row + 1]] for row in wanted]
    for begin, end in ((0, 7), (0, 1), (1, 2), (2, 6), (3, 3)):
        taken = take(begin, end, "field")
        assert taken.dtype == torch.float16
        np.testing.assert_array_equal(taken.numpy(), np.concatenate([TABLE[:0], *expected[begin:end]]))


def test_a_taken_row_is_a_copy() -> None:
    for kind in ("joined", "mapped"):
        take = stored(kind, [3]).locate(Runs.between("pair", OFFSETS, np.array([2])))
        take(0, 1, "field").zero_()
        np.testing.assert_array_equal(take(0, 1, "field").numpy(), TABLE[2:5])
