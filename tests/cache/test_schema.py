"""The field tables are what FORMAT.md says, and tables that break a rule are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hoi.cache import vlm_pass
from hoi.cache.base_pass import FIELDS, check_base_tables, check_detections, pack_tables
from hoi.cache.index import index_attributes
from hoi.cache.schema import INDEX_FIELDS, fields_of
from hoi.cache.shard import SHARD_ATTRIBUTES
from tests.fakes.extractors import AXES, MAP_AXES, random_signals

DOCUMENT = (Path(__file__).parents[2] / "cache" / "FORMAT.md").read_text()


def rows_of_table(first_heading: str) -> list[list[str]]:
    lines = DOCUMENT[DOCUMENT.index(f"| {first_heading} |") :].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.replace("\\|", "¦").strip("|").split("|")] for line in lines]
    return [[cell.replace("¦", "|") for cell in row] for row in cells]


def test_the_document_and_the_schema_hold_the_same_fields() -> None:
    for heading, table in (("field", FIELDS), ("field of an extra pass", vlm_pass.FIELDS)):
        assert rows_of_table(heading) == [
            [f.name, f.dtype, f.rows, ", ".join(map(str, f.axes)), "yes" if f.required else "no", f.meaning]
            for f in table
        ]
    assert rows_of_table("field of the index") == [
        [f.name, f.dtype, f.rows, ", ".join(map(str, f.axes)), f.meaning] for f in INDEX_FIELDS
    ]


def test_the_document_and_the_code_hold_the_same_attributes() -> None:
    assert [row[0] for row in rows_of_table("attribute")] == list(SHARD_ATTRIBUTES)
    assert [row[0] for row in rows_of_table("attribute of the index")] == list(index_attributes("", "", [], {}))


def test_an_optional_field_needs_all_its_letters() -> None:
    assert "spatial_map" not in {f.name for f in fields_of(AXES, FIELDS)}
    assert "spatial_map" not in {f.name for f in fields_of({**AXES, "C": 2}, FIELDS)}
    assert "spatial_map" in {f.name for f in fields_of({**AXES, **MAP_AXES}, FIELDS)}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("scores", None, "fields differ from the schema: scores"),
        ("mystery", np.zeros(2), "fields differ from the schema: mystery"),
        ("scores", np.zeros(5, "<f8"), "scores has dtype float64, expected <f4"),
        ("union_feature", np.zeros((3, 2, 5), "<f2"), r"union_feature has shape \(3, 2, 5\), expected \(3, 2, 4\)"),
        ("pair_offsets", np.array([0, 4, 3]), "pair_offsets must hold 3 numbers that start at 0 and never fall"),
        ("detection_offsets", np.array([1, 3, 5]), "detection_offsets must hold 3 numbers"),
        ("pairs_ho", np.array([[0, 1], [0, 2], [0, 1]], "<i4"), "pairs_ho names a detection outside its image"),
        ("image_id", np.array([b"a", b"a"]), "image_id holds duplicates"),
    ],
)
def test_a_table_that_breaks_a_rule_is_named(field: str, value: np.ndarray | None, message: str) -> None:
    tables = pack_tables(["a", "b"], [random_signals("a", 2, 2), random_signals("b", 3, 1)], AXES)
    check_base_tables(tables, AXES)
    changed = {name: table for name, table in {**tables, field: value}.items() if table is not None}
    with pytest.raises(ValueError, match=message):
        check_base_tables(changed, AXES)


def test_rising_scores_and_unknown_labels_are_named() -> None:
    tables = pack_tables(["a", "b"], [random_signals("a", 2, 2), random_signals("b", 3, 1)], AXES)
    tables |= {"scores": np.array([0.4, 0.3, 0.9, 0.9, 0.1], "<f4"), "labels": np.array([0, 2, 1, 0, 2], "<i4")}
    check_detections(tables, 3)
    with pytest.raises(ValueError, match="labels go from 0 to 2, the vocabulary has 2 objects"):
        check_detections(tables, 2)
    tables["scores"] = np.array([0.4, 0.3, 0.2, 0.9, 0.1], "<f4")
    with pytest.raises(ValueError, match="scores rise within image b"):
        check_detections(tables, 3)
    # An image without a detection between two others, and one at the end.
    empty = pack_tables(
        ["a", "b", "c", "d"], [random_signals("a", 1, 0), "gone", random_signals("c", 1, 0), "gone"], AXES
    )
    check_detections(empty | {"scores": np.array([0.1, 0.9], "<f4")}, 3)
