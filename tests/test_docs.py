"""Every command block of README and docs runs, is part of CI, or says what it needs; its options exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from hoi.cli import load_verbs

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SMALL = ("dataset.splits={train: 32, validation: 16, test: 16}", "train.seeds=[0]", "train.epochs=1")
INDENTED = re.compile(r"^    (hoi|make|python|pip|dask|sbatch|torchrun|export) ", re.MULTILINE)


class Block(NamedTuple):
    page: str
    line: int
    mark: str
    commands: list[str]


def blocks() -> Iterator[Block]:
    """Yield the bash blocks of all pages with the comment in front of each."""
    for page in PAGES:
        text = page.read_text()
        for found in re.finditer(r"(?:<!-- (.*?) -->\n)?```bash\n(.*?)```", text, re.DOTALL):
            lines = found[2].replace("\\\n", " ").splitlines()
            commands = [re.sub(r"(^|\s+)#.*", "", line).strip() for line in lines]
            number = text[: found.start()].count("\n") + 1
            yield Block(page.relative_to(ROOT).as_posix(), number, found[1] or "", [c for c in commands if c])


BLOCKS = list(blocks())


def test_every_block_says_whether_it_runs() -> None:
    assert len(BLOCKS) > 10
    unmarked = [f"{b.page}:{b.line}" for b in BLOCKS if not re.match(r"run$|ci$|needs ", b.mark)]
    assert unmarked == []
    unfenced = {page.name: re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL) for page in PAGES}
    assert [name for name, text in unfenced.items() if INDENTED.search(text)] == []


def test_files_that_pages_name_exist() -> None:
    named = re.compile(r"`((?:hoi|tests|examples|benchmarks|stages|docs|cache)/[\w./-]+\.\w+)`")
    pages = [
        *PAGES,
        *(ROOT / folder for folder in ("CHANGELOG.md", "cache/FORMAT.md", "cache/SCALE.md", "hoi/world/WORLD.md")),
    ]
    found = [(page.name, path) for page in pages for path in named.findall(page.read_text())]
    assert len(found) > 20
    assert [each for each in found if "METHOD" not in each[1] and not (ROOT / each[1]).is_file()] == []


def test_blocks_of_ci_are_part_of_ci() -> None:
    ci = (ROOT / ".ci/run").read_text()
    wanted = {c for b in BLOCKS if b.mark == "ci" for c in b.commands if c != "make setup"}
    assert {command for command in wanted if command not in ci} == set()


def test_commands_and_options_exist() -> None:

    root: Any = load_verbs()
    for block in BLOCKS:
        for line in block.commands:
            words = [word for word in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=\S+", word)]
            if words[0] != "hoi":
                continue
            command, rest, where = root, words[1:], f"{block.page}:{block.line}: {line}"
            while hasattr(command, "commands") and rest:
                assert rest[0] in command.commands, where
                command, rest = command.commands[rest[0]], rest[1:]
            options = {option for parameter in command.params for option in parameter.opts}
            assert {word for word in rest if word.startswith("--")} - options - {"--help"} == set(), where


@pytest.mark.slow
def test_blocks_marked_run_do_run(tmp_path: Path) -> None:
    """Run them one after the other on a small world in an empty folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    runs = [(b, c) for b in BLOCKS if b.mark == "run" for c in b.commands]
    assert runs
    for block, line in runs:
        words = shlex.split(line)
        assert words[0] == "hoi", "only hoi commands run here"
        small = [v for v in SMALL if v.split("=")[0] not in {w.split("=")[0] for w in words}]
        done = subprocess.run(
            [sys.executable, "-m", *words, *small], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{block.page}:{block.line}: {line}\n{done.stderr}"
