"""Imports point one way: stages → cache → hoi; h5py and dask are each imported by one module."""

from __future__ import annotations

import ast
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


def test_only_evaluation_and_named_supervision_can_import_labels() -> None:
    allowed = {"hoi/datasets/labels.py", "stages/evaluate.py", "stages/train.py"}
    users = {
        path.relative_to(ROOT).as_posix()
        for package in ("hoi", "cache", "stages")
        for path in (ROOT / package).rglob("*.py")
        if "hoi.datasets.labels" in path.read_text() or "import labels" in path.read_text()
    }
    assert users - allowed - {"hoi/datasets/__init__.py"} == set()
