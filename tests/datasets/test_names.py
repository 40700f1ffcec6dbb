"""Joining names of files: what is made equal, and what is never guessed."""

from __future__ import annotations

import unicodedata

import pytest

from hoi.datasets.names import join_names


@pytest.mark.parametrize(
    ("name", "known", "row"),
    [
        ("sub\\a.jpg", ["a.jpg", "sub/a.jpg"], 1),
        (unicodedata.normalize("NFD", "café.jpg"), ["b.jpg", "café.jpg"], 1),
        ("/data/photos/a.jpg", ["b.jpg", "a.jpg"], 1),
        ("a.jpg", ["x/a.jpg", "y/b.jpg"], 0),
        ("a.jpg", ["x/a.jpg", "y/a.jpg"], None),
        ("A.jpg", ["a.jpg"], None),
        ("a b.jpg", ["a_b.jpg"], None),
        ("a.png", ["a.jpg"], None),
    ],
)
def test_separators_and_nfc_are_equal_and_nothing_else(name: str, known: list[str], row: int | None) -> None:
    assert join_names([name], known).rows.get(name) == row


def test_a_bare_name_that_two_names_have_joins_nothing() -> None:
    joined = join_names(["x/a.jpg", "y/a.jpg", "z/b.jpg", "z\\b.jpg"], ["a.jpg", "b.jpg"])
    assert joined.rows == {"z/b.jpg": 1, "z\\b.jpg": 1}
    (notice,) = joined.notices("images")
    assert notice.startswith("2 images were joined by their bare names, as 'z/b.jpg'")


def test_a_whole_path_is_never_a_bare_name() -> None:
    joined = join_names(["0036.jpg", "sub dir/0036.jpg"], ["0036.jpg"])
    assert (joined.rows, joined.by_bare_name) == ({"0036.jpg": 0}, [])
