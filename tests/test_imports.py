"""Imports point one way, without a cycle; labels, h5py and dask are each imported where they belong."""

from __future__ import annotations

import ast
from pathlib import Path

from benchmarks.house import ROOT, cycles, folder_graph, folder_of, import_graph, imports, modules, parsed

LAYERS = [
    "hoi",
    "errors records boxes drawing provenance",
    "files",
    "json_lines matlab machine vocabulary weights crops registry",
    "prompts config",
    "world",
    "datasets",
    "labels",
    "teachers",
    "detectors vlm",
    "extraction world.models",
    "cache",
    "cache.build cache.read",
    "cache.tools",
    "scoring matching",
    "students",
    "students.multilevel students.hoiclip students.clhoi",
    "training",
    "evaluation",
    "prediction checking sweeps",
    "quality report",
    "project web",
    "cli",
    "__main__",
]
"""Folders of `hoi` and the modules beside them, from below; a module imports from its own folder and lower layers."""
RANK = {f"hoi.{name}".replace("hoi.hoi", "hoi"): rank for rank, names in enumerate(LAYERS) for name in names.split()}
READ_LABELS = {"hoi.evaluation", "hoi.project", "hoi.sweeps", "hoi.labels"}
BY_NAME = {
    ("hoi.training.train", "hoi.evaluation.hico", "lazy"),
}
"""`supervision: labels` evaluates while it trains."""
HOMES = {"h5py": "hoi/cache/shard.py", "dask": "hoi/cache/build/pool.py", "distributed": "hoi/cache/build/pool.py"}


def reached_from(module: str, *kinds: str, then: tuple[str, ...] = ("eager", "typing", "lazy")) -> set[str]:
    """Return what running a module may import: by imports of these kinds, and by others from there on."""
    first, later = import_graph(*kinds), import_graph(*then)
    reached, ahead = {module}, list(first[module])
    while ahead:
        name = ahead.pop()
        if name not in reached:
            reached.add(name)
            ahead += later[name]
    return reached


def imported_packages(file: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_every_folder_has_a_layer() -> None:
    folders = {folder_of(module) for module in modules() if not module.startswith("stages")}
    assert folders - set(RANK) == set()


def test_imports_point_down_also_inside_functions() -> None:
    upward = {
        (module, other, kind)
        for module in modules()
        for other, kind in imports(module)
        if not module.startswith("stages")
        and folder_of(module) != folder_of(other)
        and RANK[folder_of(other)] >= RANK[folder_of(module)]
    }
    assert {pair for pair in upward if pair not in BY_NAME} == set()


def test_there_is_no_import_cycle() -> None:
    assert cycles(import_graph("eager")) == []
    folders = folder_graph(import_graph("eager"))
    for folder in ("hoi.cache.build", "hoi.cache.read"):
        folders[folder] -= {"hoi.cache.tools", "hoi.training"}
    assert cycles(folders) == []


def test_cycles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"e"}}
    assert cycles(graph) == [["a", "b", "c"]]


def test_a_library_has_one_home_and_the_package_needs_no_test() -> None:
    for file in modules().values():
        names = imported_packages(file)
        assert not names & {"tests", "benchmarks"}, file
        assert {library for library in names & set(HOMES) if HOMES[library] != file} == set(), file
    assert all("h5py" in HOMES and Path(ROOT, home).is_file() for home in HOMES.values())


def test_stage_one_cannot_reach_labels() -> None:
    builders = [name for name in modules() if name.startswith(("hoi.cache.", "hoi.extraction"))]
    assert builders
    for builder in builders:
        assert {name for name in reached_from(builder, "eager", "lazy") if name.startswith("hoi.labels")} == set()


def test_stage_two_reaches_labels_by_name_alone() -> None:
    trainers = [name for name in modules() if name.startswith(("hoi.training", "hoi.students"))]
    lazy = {name for name in trainers for other, kind in imports(name) if other.startswith("hoi.labels")}
    for trainer in trainers:
        reached = reached_from(trainer, "eager", then=("eager",))
        assert {name for name in reached if name.startswith("hoi.labels")} == set(), trainer
    # `supervision: labels` imports them in a function.
    assert lazy == {"hoi.training.train"}


def test_only_evaluation_and_named_supervision_import_labels() -> None:
    users = {module for module in modules() for other, _ in imports(module) if other.startswith("hoi.labels")}
    assert {user for user in users if folder_of(user) not in READ_LABELS} == {"hoi.training.train"}
