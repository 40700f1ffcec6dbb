"""Files are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hoi.cache.manifest import sole_builder
from hoi.errors import UserError
from hoi.files import read_json, write_atomically, write_json
from tests.fakes.pipelines import small_files


def test_a_full_disk_is_one_line_and_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "a" / "shard-00000.h5"
    write_atomically(path, b"old")
    message = r"the disk is full · where: .*shard-00000.h5 .* next: free space"
    with small_files(4096), pytest.raises(UserError, match=message):
        write_atomically(path, b"x" * 10_000)
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["shard-00000.h5"]


def test_a_killed_writer_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "train" / "shard-00000.h5"
    code = (
        "import os, signal, sys; from pathlib import Path; from hoi.files import write_atomically\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_atomically(Path(sys.argv[1]), b'half')"
    )
    done = subprocess.run([sys.executable, "-c", code, path], check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL
    assert not path.exists()
    assert len(list(path.parent.iterdir())) == 1
    with sole_builder(tmp_path):
        assert list(path.parent.iterdir()) == []


def test_a_second_builder_is_refused_while_the_first_one_runs(tmp_path: Path) -> None:
    with sole_builder(tmp_path), pytest.raises(UserError, match="another process is building this cache"):  # noqa: SIM117
        with sole_builder(tmp_path):
            pass
    with sole_builder(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(UserError, match=r"no file locks"), sole_builder(tmp_path):
        pass


def test_json_comes_back_and_equal_data_gives_equal_bytes(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1, None], "a": "ä"})
    write_json(tmp_path / "b.json", {"a": "ä", "b": [1, None]})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert read_json(tmp_path / "a.json") == {"a": "ä", "b": [1, None]}
    assert read_json(tmp_path / "none.json") is None
