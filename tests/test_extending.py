"""A dataset, detector, teacher, vlm backend, method or metric is one module and one line, from outside the package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hoi import registry
from hoi.cache.build.run import build_cache
from hoi.cache.tools.estimate import axes_of
from hoi.config import PipelineConfig, parse_config
from hoi.evaluation.evaluate import evaluate
from hoi.project import doctor
from hoi.registry import Registry
from hoi.training import train
from tests.fakes import plugin
from tests.fakes.pipelines import refused

TABLES = [table for table in vars(registry).values() if isinstance(table, Registry)]


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tables that are as they were afterwards."""
    for table in TABLES:
        monkeypatch.setattr(table, "_targets", dict(table._targets))
    registry.load_plugins.cache_clear()
    yield
    registry.load_plugins.cache_clear()


def pipeline(folder: Path, **sections: Any) -> PipelineConfig:
    plain = {
        "name": "extended",
        "output": str(folder / "out"),
        "dataset": {"name": "noise", "splits": {"train": 6, "validation": 2, "test": 3}},
        "detector": {"name": "halves"},
        "teacher": {"kind": "colour"},
        "vlms": {"said": {"backend": "parrot", "model": "none"}},
        "cache": {"folder": str(folder / "cache"), "scheduler": "synchronous", "device": "cpu"},
        "students": {"student": {"method": "linear"}},
        "train": {"seeds": [0], "epochs": 2, "device": "cpu"},
        "evaluation": {"bootstrap": 5},
    }
    return parse_config({**plain, **sections}, "extended")


def test_one_of_each_from_outside_runs_all_stages(tables: None, tmp_path: Path) -> None:
    plugin.register()
    config = pipeline(tmp_path)
    assert isinstance(config.dataset, plugin.NoiseDataset)
    assert isinstance(config.students["student"], plugin.LinearConfig)
    assert PipelineConfig.model_validate_json(config.model_dump_json()) == config
    assert doctor.examine(config).num_errors == 0
    build_cache(config)
    assert axes_of(config) == {"K": 2, "M": 1, "L": 1, "D": 3}
    train.train_students(config)
    report = evaluate(config)
    rows = {row.name: row for row in report.rows}
    assert rows.keys() >= {"student", "direct_clip", "vlm_image"}
    assert (rows["student"].means["full"] or 0) > 0
    assert rows["student"].extra == {"count": {"triplets": 6}}
    assert "student: 6 triplets" in str(report)


def test_a_plugin_is_loaded_at_the_first_unknown_name(
    tables: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "dataset.name" in str(refused(pipeline, tmp_path).where)
    (tmp_path / "somebody.py").write_text("from tests.fakes import plugin\n\nplugin.register()\n")
    about = tmp_path / "somebody-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: somebody\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[hoi.plugins]\nsomebody = somebody\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.load_plugins.cache_clear()
    assert pipeline(tmp_path).detector.name == "halves"


@pytest.mark.parametrize(
    ("section", "key", "nearest"),
    [
        ({"dataset": {"name": "hicodett"}}, "dataset.name", "hicodet"),
        ({"detector": {"name": "torch_vision"}}, "detector.name", "torchvision"),
        ({"teacher": {"kind": "openclip"}}, "teacher.kind", "open_clip"),
        ({"students": {"a": {"method": "hoi_clip"}}}, "students.a.method", "hoiclip"),
        ({"vlms": {"a": {"backend": "cocoa", "model": "m"}}}, "vlms.a.backend", "coca"),
    ],
)
def test_an_unknown_name_gets_the_nearest(
    tables: None, tmp_path: Path, section: dict[str, Any], key: str, nearest: str
) -> None:
    plugin.register()
    error = refused(pipeline, tmp_path, **section)
    assert f"key '{key}'" in str(error.where)
    assert nearest in str(error)


def test_two_of_a_name_are_refused(tables: None) -> None:
    plugin.register()
    plugin.register()
    error = refused(registry.DETECTORS.register, "world", "elsewhere:Detector")
    assert error.what == "two detectors are called 'world'"


def test_every_line_of_the_tables_can_be_imported() -> None:
    for table in TABLES:
        for name in table.names:
            assert table[name] is not None, f"{table.kind} {name}"


def test_nothing_asks_a_section_what_it_is_called() -> None:
    """A name stands in its one line of the tables; what depends on it is an attribute of the class."""
    names = {name for table in TABLES for name in table.names}
    asked = []
    for path in sorted(Path(registry.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare) and isinstance(node.left, ast.Attribute):
                texts = {c.value for part in node.comparators for c in ast.walk(part) if isinstance(c, ast.Constant)}
                if node.left.attr in ("name", "method", "kind", "backend") and texts & names:
                    asked.append(f"{path.name}:{node.lineno} {ast.unparse(node)}")
    assert asked == []


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.kind)
def test_each_name_is_one_line(table: Registry[Any]) -> None:
    lines = Path(registry.__file__).read_text(encoding="utf-8").splitlines()
    for name in table.names:
        assert sum(f'"{name}": "{table._targets[name]}"' in line for line in lines) == 1
