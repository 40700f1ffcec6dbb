"""Imports point one way: stages → cache → hoi; h5py and dask are each imported by one module."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
FORBIDDEN = {"hoi": {"cache", "stages"}, "cache": {"stages"}}
ONLY_IN = {"h5py": {"cache/shard.py"}, "dask": {"cache/schedule.py"}, "distributed": {"cache/schedule.py"}}


def imported_packages(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_imports_point_one_way_and_h5py_and_dask_have_one_home() -> None:
    wrong = []
    modules = [path for package in ("hoi", "cache", "stages") for path in (ROOT / package).rglob("*.py")]
    assert len(modules) > 20
    for path in modules:
        name = path.relative_to(ROOT).as_posix()
        names = imported_packages(path)
        wrong += [f"{name} imports {other}" for other in names & FORBIDDEN.get(name.split("/")[0], set())]
        wrong += [
            f"{name} imports {library}"
            for library, homes in ONLY_IN.items()
            if library in names - {""} and name not in homes
        ]
    assert wrong == []


READS_LABELS = re.compile(r"(.+_)?(labels|doctor)|.+_(files|json|mat|parsed)")
LABELS = {
    f"hoi.datasets.{path.stem}"
    for path in (ROOT / "hoi" / "datasets").glob("*.py")
    if READS_LABELS.fullmatch(path.stem)
}
"""Modules that read annotated pairs."""


@cache
def imported_modules(path: Path, *, lazy: bool) -> frozenset[str]:
    """Full names of the project's modules that a file imports; those inside functions only if `lazy`."""
    tree = ast.parse(path.read_text())
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    names: set[str] = set()
    for node in ast.walk(tree):
        if not lazy and id(node) in inside:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(name for name in names if file_of(name) is not None)


def file_of(module: str) -> Path | None:
    path = ROOT / module.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def reached_from(module: str, *, lazy: bool) -> set[str]:
    """All modules of the project that running a module may import; its own imports inside functions only if `lazy`."""
    reached, ahead = {module}, [(module, lazy)]
    while ahead:
        name, with_lazy = ahead.pop()
        path = file_of(name)
        assert path is not None
        new = imported_modules(path, lazy=with_lazy) - reached
        reached |= new
        ahead += [(other, True) for other in new]
    return reached


def test_stages_one_and_two_cannot_reach_a_reader_of_labels() -> None:
    assert reached_from("hoi.cache.build.run", lazy=True) & LABELS == set()
    # Stage two imports them inside the functions that `supervision: labels` calls, and nowhere else.
    assert reached_from("hoi.training.train", lazy=False) & LABELS == set()
    assert "hoi.labels" in reached_from("hoi.training.train", lazy=True)
    assert {"hoi.labels", "hoi.labels.hicodet", "hoi.labels.hicodet_mat"} < LABELS


def test_only_evaluation_and_named_supervision_can_import_labels() -> None:
    allowed = {
        "hoi/datasets/labels.py",
        "hoi/datasets/doctor.py",
        "stages/evaluate.py",
        "stages/progress.py",
        "stages/sanity.py",
        "stages/grading.py",
        "stages/score.py",
        "stages/train.py",
    }
    users = {
        path.relative_to(ROOT).as_posix()
        for package in ("hoi", "cache", "stages")
        for path in (ROOT / package).rglob("*.py")
        if "hoi.labels" in path.read_text() or "import labels" in path.read_text()
    }
    assert users - allowed - {"hoi/datasets/__init__.py"} == set()
