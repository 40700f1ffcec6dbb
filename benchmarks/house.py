"""Print the size of the package, its prose, its import cycles, and what one more student, dataset, … touches.

    python -m benchmarks.house [--list]

Counts are of tracked Python files outside tests, benchmarks, docs and examples. `--list` names every finding.
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = ("tests/", "benchmarks/", "docs/", "examples/")
MAX_NAME = 60
"""Characters of a test's name."""
A_TO_B = re.compile(r"[^.,:]{3,60}? to (a|an|the|its|their|what|one|how|those|all|that) [^.]*\.?")
IMPERATIVE = re.compile(r"[A-Z][a-z]+ (the|a|an|one|every|all|each|its)\b|(Distance|Paths?|Time|Ratio) ")
"""Docstrings such as "Add the losses to a total" are no "A to B"."""

Graph = dict[str, set[str]]
"""Name → names it imports."""


@cache
def tracked(pattern: str = "*.py") -> tuple[str, ...]:
    """Return the tracked files that exist, relative to the repository."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", pattern], capture_output=True, text=True, check=True)
    return tuple(name for name in listed.stdout.splitlines() if (ROOT / name).is_file())


def product_files() -> list[str]:
    return [name for name in tracked() if not name.startswith(OUTSIDE)]


@cache
def parsed(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text())


@dataclass(frozen=True)
class Size:
    """Sizes of the product files; lines include blank ones."""

    files: int
    lines: int
    docstring_lines: int
    functions: int
    mean_function: float
    longest: tuple[int, str]


def size() -> Size:
    """Measure the product files."""
    lengths = {name: (ROOT / name).read_text().count("\n") for name in product_files()}
    functions, docstrings = [], 0
    for name in lengths:
        for node in ast.walk(parsed(name)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                functions.append((node.end_lineno or 0) - node.lineno + 1)
        docstrings += sum((node.end_lineno or 0) - node.lineno + 1 for node, _ in docstrings_of(name))
    longest = max((length, name) for name, length in lengths.items())
    mean = sum(functions) / len(functions)
    return Size(len(lengths), sum(lengths.values()), docstrings, len(functions), mean, longest)


def docstrings_of(name: str) -> Iterator[tuple[ast.stmt, str]]:
    """Yield the docstrings of a file: the statement and its text."""
    for node in ast.walk(parsed(name)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text is not None:
                yield node.body[0], text


def a_to_b() -> list[str]:
    """Return the docstrings whose first line reads "A to B", with file and line."""
    found = []
    for name in product_files():
        for node, text in docstrings_of(name):
            first = (text.splitlines() or [""])[0]
            if A_TO_B.fullmatch(first) and not IMPERATIVE.match(first):
                found.append(f"{name}:{node.lineno}: {first}")
    return found


def long_test_names() -> list[str]:
    """Return the test functions with names of more than MAX_NAME characters."""
    return [
        f"{name}:{node.lineno}: {node.name}"
        for name in tracked("tests/*.py")
        for node in ast.walk(parsed(name))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and len(node.name) > MAX_NAME
    ]


def module_of(name: str) -> str:
    """Return the dotted name of a file of the package."""
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@cache
def modules() -> dict[str, str]:
    """Return the modules of the package and the stages, each with its file."""
    return {module_of(name): name for name in tracked() if name.startswith(("hoi/", "stages/"))}


@cache
def imports(module: str) -> tuple[tuple[str, str], ...]:
    """Return the project's modules that a module imports, and when: `eager`, `typing` or `lazy` (in a function)."""
    when: dict[int, str] = {}
    for node in ast.walk(parsed(modules()[module])):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            when |= {id(inner): "typing" for inner in ast.walk(node)}
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            when |= {id(inner): "lazy" for inner in ast.walk(node)}
    names = []
    for node in ast.walk(parsed(modules()[module])):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            targets = [target if target in modules() else node.module for target in inner]
        else:
            continue
        names += [(target, when.get(id(node), "eager")) for target in targets if target in modules()]
    return tuple(dict.fromkeys(names))


def import_graph(*kinds: str) -> Graph:
    """Return who imports whom by imports of these kinds (`eager`, `typing`, `lazy`)."""
    return {name: {other for other, kind in imports(name) if kind in kinds} - {name} for name in modules()}


def folder_of(module: str) -> str:
    """Return the folder a module lies in; modules directly in `hoi` are their own."""
    folder = module_of(str(Path(modules()[module]).parent))
    return module if folder in ("hoi", "stages") else folder


def folder_graph(graph: Mapping[str, set[str]]) -> Graph:
    """Return which folder imports from which."""
    folders: Graph = {}
    for name, others in graph.items():
        folders.setdefault(folder_of(name), set()).update(folder_of(other) for other in others)
    return {name: others - {name} for name, others in folders.items()}


def cycles(graph: Graph) -> list[list[str]]:
    """Return the strongly connected components of more than one node (Tarjan), sorted."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    components: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                components.append(sorted(component))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return sorted(components)


def touched() -> dict[str, str]:
    """Return what one more entry of each registry takes: a new file, and a line where."""
    from hoi import registry

    where = {}
    for node in parsed("hoi/registry.py").body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id.isupper():
            table = getattr(registry, node.target.id)
            if isinstance(table, registry.Registry):
                where[table.kind] = f"one new file, one line in hoi/registry.py ({node.target.id}, line {node.lineno})"
    return where


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--list", action="store_true", help="name every finding")
    listed = parser.parse_args().list
    measured = size()
    print(
        f"product       {measured.files} files, {measured.lines:,} lines, docstrings"
        f" {100 * measured.docstring_lines / measured.lines:.1f} %, longest {measured.longest[1]} {measured.longest[0]}"
    )
    print(f"functions     {measured.functions:,} of {measured.mean_function:.1f} lines")
    tests = tracked("tests/*.py")
    lines = sum((ROOT / name).read_text().count("\n") for name in tests)
    names = long_test_names()
    print(f"tests         {len(tests)} files, {lines:,} lines, {len(names)} names over {MAX_NAME} characters")
    prose = a_to_b()
    letters = sum("Letters:" in text for name in product_files() for _, text in docstrings_of(name))
    print(f"prose         {len(prose)} docstrings read 'A to B', {letters} say 'Letters:'")
    print(f"README.md     {len((ROOT / 'README.md').read_bytes()):,} bytes")
    eager = import_graph("eager")
    rings = {"modules": cycles(eager), "folders": cycles(folder_graph(eager))}
    wider = cycles(import_graph("eager", "typing", "lazy"))
    kinds = Counter(kind for module in modules() for _, kind in imports(module))
    print(f"import cycles {len(rings['modules'])} of modules, {len(rings['folders'])} of folders;", end=" ")
    print(f"{len(wider)} if the {kinds['lazy']} imports in functions and {kinds['typing']} for types count, too")
    for kind, where in touched().items():
        print(f"one more {kind}: {where}")
    if listed:
        for title, found in (("'A to B'", prose), ("long names", names)):
            print("\n".join(["", f"{title}:", *found]))
    for title, components in rings.items() if not listed else (*rings.items(), ("with imports in functions", wider)):
        for component in components:
            print(f"cycle of {title}: {', '.join(component)}")


if __name__ == "__main__":
    main()
