"""A user's mistake is one line and a non-zero exit code, on workers too."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys

import pytest

from hoi.errors import INTERRUPTED, UserError, run_program


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


def started(code: str, **options: object) -> subprocess.Popen[bytes]:
    program = f"import os, signal, sys, time\nfrom hoi.errors import *\n{code}\nrun_program(main)"
    return subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, **options)  # type: ignore[call-overload]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_an_encoding_lacks_is_replaced(encoding: str) -> None:
    code = "def main():\n print('⟨a⟩ · \\udcff')\n raise UserError('ein Ähnliches ⟨b⟩', got=1)"
    process = started(code, stdout=subprocess.PIPE, env={**os.environ, "PYTHONIOENCODING": encoding})
    said, error = process.communicate()
    middle = "·" if encoding != "ascii" else "?"
    assert (process.returncode, said.decode(encoding).split()[1]) == (2, middle)
    assert (error.count(b"\n"), error.startswith(b"error: ein ")) == (1, True)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("times", [1, 100_000])
def test_a_closed_pipe_ends_it_quietly(unbuffered: str, times: int) -> None:
    code = f"def main():\n sys.stdin.readline()\n for _ in range({times}): print('·')"
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    process = started(code, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    process.stdout.close()
    _, error = process.communicate(b"\n")
    assert (process.returncode, error) == (141, b"")


def test_a_full_disk_behind_the_output_is_one_line() -> None:
    with open("/dev/full", "wb") as full:
        process = started("def main(): print('x')", stdout=full)
        _, error = process.communicate()
    assert (process.returncode, error.count(b"\n")) == (2, 1)
    assert error.startswith(b"error: No space left on device")


# A scheduler sends it to the process and to its group, so it may come twice.
@pytest.mark.parametrize("times", [1, 2])
def test_sigterm_ends_it_as_an_interruption(times: int) -> None:
    code = "def main():\n try: print('ready', flush=True); time.sleep(60)\n finally: time.sleep(0.2); print('kept')"
    process = started(code, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    for _ in range(times):
        process.send_signal(signal.SIGTERM)
    said, error = process.communicate(timeout=30)
    assert (process.returncode, said, error.decode()) == (143, b"kept\n", f"{INTERRUPTED}\n")


def test_a_sigterm_that_a_finalizer_loses_comes_again() -> None:
    sleeper = "class Sleeper:\n def __del__(self): print('ready', flush=True); time.sleep(60)"
    process = started(f"{sleeper}\ndef main():\n Sleeper()\n time.sleep(60)", stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error.decode()) == (143, f"{INTERRUPTED}\n")
