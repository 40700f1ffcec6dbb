"""A user's mistake is one line and a non-zero exit code, on workers too."""

from __future__ import annotations

import pickle

import pytest

from hoi.errors import UserError, run_program


def test_the_message_holds_every_part_on_one_line() -> None:
    error = UserError("bad\nthing", where="a.yaml", expected=1, got=None, fix="mend it")
    assert str(error) == "bad thing · where: a.yaml · expected: 1 · next: mend it"


def test_it_survives_the_trip_from_a_worker() -> None:
    error = pickle.loads(pickle.dumps(UserError("bad", where="x", got=2)))
    assert (str(error), error.got) == ("bad · where: x · got: 2", 2)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("no cache", fix="hoi teacher-cache"), "error: no cache · next: hoi teacher-cache\n"),
        (
            OSError(28, "No space left on device", "/data/shard"),
            "error: No space left on device · where: /data/shard · next: free space",
        ),
    ],
)
def test_a_program_ends_with_one_line_and_code_2(
    error: Exception, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        run_program(main)
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert (err.startswith(said), err.count("\n")) == (True, 1)
