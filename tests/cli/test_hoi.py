"""The command `hoi`: its imports, its help, how it tells mistakes and what comes next, and what make hands it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hoi.cli import load_verbs, run_verb
from hoi.cli.program import DEFAULTS
from hoi.errors import CALLED_BY, called_with, command
from tests.fakes.pipelines import refused

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "h5py", "dask", "matplotlib", "scipy", "open_clip")


def verbs(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[list[str]]:
    """Yield every verb as its words."""
    for name, each in (group or load_verbs()).commands.items():
        if hasattr(each, "commands"):
            yield from verbs(each, (*path, name))
        else:
            yield [*path, name]


VERBS = list(verbs())


def python(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from hoi.cli import main; sys.argv = ['hoi', '--help']\n"
        "try: main()\n"
        f"except SystemExit as end: print(end.code, [name for name in {HEAVY} if name in sys.modules])\n"
    )
    done = python("-c", code, cwd=tmp_path)
    assert done.stdout.splitlines()[-1:] == ["0 []"], done.stderr


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_the_help_of_a_verb_ends_with_an_example(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_verb([*words, "--help"]) == 0
    *_, head, example = capsys.readouterr().out.rstrip().partition("Example:")
    assert head == "Example:"
    assert f"hoi {' '.join(words)}" in example


def test_all_verbs_are_there() -> None:
    assert {" ".join(words) for words in VERBS} >= {
        *("demo", "new", "teacher-cache", "train", "eval", "sweep", "bench", "report", "predict", "checkpoint", "app"),
        *("check-page", "quality", "hicodet", "vcoco", "doctor", "audit", "score", "diagnose"),
        *("world train", "world sheet"),
        *(f"cache {verb}" for verb in ("plan", "info", "verify", "repair", "rescore", "export", "pull")),
    }


@pytest.mark.parametrize(
    ("words", "what", "expected"),
    [
        (["trian"], "there is no such verb", "train"),
        (["cache", "verfy"], "there is no such verb", "verify"),
        (["train", "--confg", "x"], "there is no option --confg", "--config"),
        (["predict", "--treshold", "0.1", "--images", "x"], "there is no option --treshold", "--threshold"),
        (["train", "mine.yaml"], "there is a word too many", "section.key=value"),
        (["train", "--config"], "Option '--config' requires an argument", ""),
        (["predict"], "Missing option '--images'", ""),
        (["cache", "plan", "--sample", "0"], "Invalid value for '--sample'", ""),
        (["score", "--dataset", "hico"], "Invalid value for '--dataset'", ""),
        (["train", "--config", "nowhere.yaml"], "there is no such file", ""),
        (["new", "mine"], "a new project needs images and phrases", ""),
        (["make", "train", "THRESHOLD=0.5"], "there is no variable THRESHOLD", "CONFIG"),
        (["make", "predict", "Images=x"], "there is no variable Images", "IMAGES"),
        (["make", "hicodet", "DATEN=x"], "there is no variable DATEN", "DATA"),
        (["make", "predict", "IMAGES=nowhere.jpg", "TOP=0"], "Invalid value for '--top'", ""),
        (["make", "cache", "export", "IMAGE=7", "TOP=5", "cache.folder=nowhere"], "there is no ", ""),
        (["make", "doctor", "ALL=1", "CONFIG=nowhere.yaml"], "there is no such file", ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_names_the_nearest(
    words: list[str], what: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    if words[0] == "make":
        monkeypatch.setenv(CALLED_BY, "make")
    error = refused(run_verb, words[words[0] == "make" :])
    assert error.what.startswith(what)
    assert expected in str(error.expected or "")
    assert error.fix


def test_a_mistake_is_one_line_and_the_exit_code_2(tmp_path: Path) -> None:
    done = python("-m", "hoi", "train", "--epochs", "3", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: there is no option --epochs")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_one_of_several_processes_says_a_mistake(tmp_path: Path, rank: str, lines: int) -> None:
    done = python("-m", "hoi", "cache", "plan", "--epochs", cwd=tmp_path, RANK=rank, WORLD_SIZE="2")
    assert (done.returncode, done.stderr.count("\n")) == (2, lines), done.stderr


def test_it_runs_beside_modules_of_the_users_own(tmp_path: Path) -> None:
    for name in ("cache", "stages", "tests"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not mine')\n")
    done = python("-m", "hoi", "cache", "plan", "dataset.splits={train: 8, validation: 4, test: 4}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "train: 8 images" in done.stdout
    assert done.stderr == f"no pipeline.yaml in this folder: {DEFAULTS / 'pipeline.yaml'} is used\n"
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"cache.py", "stages.py", "tests.py"}


@pytest.mark.slow
def test_the_demo_runs_in_an_empty_folder(tmp_path: Path) -> None:
    small = ["dataset.splits={train: 16, validation: 8, test: 8}", "train.seeds=[0]", "train.epochs=1"]
    done = python("-m", "hoi", "demo", *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "outputs"]
    assert (tmp_path / "outputs/world/report.html").is_file()
    assert "next: hoi " in done.stdout


@pytest.mark.parametrize("name", [path.name for path in DEFAULTS.iterdir()])
def test_packaged_pipeline_files_are_the_repositorys(name: str) -> None:
    folder = ROOT if name == "pipeline.yaml" else ROOT / "examples"
    assert (DEFAULTS / name).read_bytes() == (folder / name).read_bytes()


def test_commands_repeat_the_file_and_the_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("train") == "hoi train"
    with called_with("my own.yaml", ["train.epochs=2", "train.seeds=[0, 1]"]):
        assert command("cache verify", recompute=8) == (
            "hoi cache verify --config 'my own.yaml' --recompute 8 train.epochs=2 'train.seeds=[0, 1]'"
        )
        assert (
            command("train", "train.epochs=9") == "hoi train --config 'my own.yaml' 'train.seeds=[0, 1]' train.epochs=9"
        )
        assert command("doctor", config="b.yaml", all=True, json=None) == "hoi doctor --config b.yaml --all"
        monkeypatch.setenv(CALLED_BY, "make")
        assert command("doctor", config="b.yaml", all=True) == "make doctor CONFIG=b.yaml ALL=1"
        assert command("cache verify", recompute=8) == (
            "make cache-verify 'CONFIG=my own.yaml' RECOMPUTE=8 train.epochs=2 'train.seeds=[0, 1]'"
        )
    assert command("train") == "make train"


@pytest.fixture
def made(tmp_path: Path) -> Any:
    """Run make with a Python that prints the words it is given in place of running them."""
    environment = tmp_path / "environment"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").write_text(
        f"#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([os.environ['{CALLED_BY}'], *sys.argv[1:]]))\n"
    )
    (environment / "bin" / "python").chmod(0o755)
    (environment / ".ready").touch()

    def make(*words: str) -> list[str]:
        line = ["make", "--no-print-directory", f"VENV={environment}", *words]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return make


def test_make_hands_over_its_words_as_they_are(made: Any) -> None:
    odd = 'it\'s $HOME; a "folder" (1)'
    assert made("predict", f"IMAGES={odd}", "THRESHOLD=0.5", "train.seeds=[0, 1]", "ARGS=--top 3") == (
        ["make", "-m", "hoi", "predict", f"IMAGES={odd}", "THRESHOLD=0.5", "train.seeds=[0, 1]", "--top", "3"]
    )
    assert made("teacher-cache", "CONFIG=a b.yaml") == ["make", "-m", "stages.teacher_cache", "CONFIG=a b.yaml"]


def test_make_refuses_a_variable_that_it_does_not_know() -> None:
    done = subprocess.run(["make", "test", "Slow=1"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "there is no variable Slow · expected: ARGS, SLOW" in done.stderr


def test_several_images_follow_one_option(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from hoi.cli.program import _repeated

    monkeypatch.chdir(tmp_path)
    words = ["--images", "a", "b", "train.epochs=2", "--out", "c"]
    assert list(_repeated(words, {"--images"})) == ["--images", "a", "--images", "b", *words[3:]]
    (tmp_path / "odd=name.jpg").touch()
    assert list(_repeated(["--images", "a", "odd=name.jpg"], {"--images"}))[2:] == ["--images", "odd=name.jpg"]


def test_only_one_package_is_installed() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert re.search(r'include = \["hoi\*"\]', text)
    assert 'hoi = "hoi.cli:main"' in text


@pytest.mark.parametrize("stage", ["teacher_cache", "train", "evaluate"])
def test_a_stage_is_a_page_whose_functions_exist(stage: str) -> None:
    text = (ROOT / "stages" / f"{stage}.py").read_text()
    assert len(text.splitlines()) < 40
    sources = "".join(path.read_text() for path in (ROOT / "hoi").rglob("*.py"))
    for name in re.findall(r"`(?:[\w.]+\.)?(\w+)`", text):
        assert re.search(rf"(def|class) {name}\b", sources) or name == "vlms", name
