"""Nothing from outside is unpickled: weights, arrays and caches are data, never code."""

from __future__ import annotations

import ast
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hoi.config import Detectron2DetectorConfig
from hoi.errors import UserError
from hoi.evaluation.predictions import read_vsrl
from hoi.weights import read_weights

ROOT = Path(__file__).parents[1]
FORBIDDEN = {"_pickle", "cloudpickle", "joblib", "dill", "shelve", "marshal"}
ERRORS = {"PickleError", "UnpicklingError"}
"""What may be used of `pickle`; and an unpickler that chooses the classes."""
TRUSTED = ["hoi/detectors/detectron2.py uses pickle.load"]
"""Files of detectron2's zoo exist as pickles only; `detector.trust_pickle` has to be set for them."""


def offences(source: str) -> Iterator[str]:
    """Yield the ways in which a module could run code from a file."""
    nodes = list(ast.walk(ast.parse(source)))
    bases = [base for node in nodes if isinstance(node, ast.ClassDef) and _chooses_classes(node) for base in node.bases]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (f"imports {a.name}" for a in node.names if a.name.split(".")[0] in FORBIDDEN)
            yield from (f"renames {a.name}" for a in node.names if a.name == "pickle" and a.asname)
        elif isinstance(node, ast.ImportFrom) and node.module == "pickle":
            yield from (f"imports pickle.{alias.name}" for alias in node.names if alias.name not in ERRORS)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN:
            yield f"imports {node.module}"
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle":
            if node.attr not in ERRORS and node not in bases:
                yield f"uses pickle.{node.attr}"
        elif isinstance(node, ast.Call):
            name, keys = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            if name == "torch.load" and keys.get("weights_only") != "True":
                yield "torch.load without weights_only=True"
            if keys.get("allow_pickle", "False") != "False":
                yield f"{name} with allow_pickle"
            if name.endswith("read_pickle") or name in ("eval", "exec"):
                yield name


def _chooses_classes(node: ast.ClassDef) -> bool:
    return any(isinstance(inner, ast.FunctionDef) and inner.name == "find_class" for inner in node.body)


STRICT = "class Plain(pickle.Unpickler):\n def find_class(self, module, name): raise pickle.UnpicklingError(name)"


@pytest.mark.parametrize(
    ("source", "offence"),
    [
        ("from pickle import PickleError; torch.load(p, weights_only=True); np.load(p)", None),
        (STRICT, None),
        ("import joblib", "imports joblib"),
        ("from pickle import PickleError, loads", "imports pickle.loads"),
        ("import pickle; pickle.load(file)", "uses pickle.load"),
        ("import pickle as p", "renames pickle"),
        ("class Loose(pickle.Unpickler): pass", "uses pickle.Unpickler"),
        ("torch.load(path)", "torch.load without weights_only=True"),
        ("torch.load(path, weights_only=False)", "torch.load without weights_only=True"),
        ("np.load(path, allow_pickle=True)", "np.load with allow_pickle"),
        ("pandas.read_pickle(path)", "pandas.read_pickle"),
    ],
)
def test_an_offence_is_seen(source: str, offence: str | None) -> None:
    assert list(offences(source)) == ([] if offence is None else [offence])


def test_no_module_unpickles() -> None:
    modules = [path for package in ("hoi", "stages") for path in (ROOT / package).rglob("*.py")]
    assert len(modules) > 20
    offenders = [f"{path.relative_to(ROOT)} {offence}" for path in modules for offence in offences(path.read_text())]
    assert offenders == TRUSTED
    assert Detectron2DetectorConfig.model_fields["trust_pickle"].default is False


class Bomb:
    """A pickle that makes a folder when loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    bomb, mark = tmp_path / "bomb.pth", tmp_path / "mark"
    torch.save(Bomb(mark), bomb)
    with pytest.raises(UserError, match="no plain state dict"):
        read_weights(bomb)
    (tmp_path / "bomb.pkl").write_bytes(pickle.dumps([Bomb(mark)]))
    with pytest.raises(UserError, match="this pickle is refused"):
        read_vsrl(tmp_path / "bomb.pkl")
    assert not mark.exists()
    torch.load(bomb, weights_only=False)
    assert mark.exists()
