"""Pipeline files, with what the command line replaces in them, as checked settings.

YAML is read strictly: a duplicate key or a syntax error is named with its line, and 1e-4 is a number.
"""

from __future__ import annotations

import os
import re
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from hoi.config.pipeline import PipelineConfig, StudentConfig
from hoi.config.section import Section, StudentSettings
from hoi.errors import UserError
from hoi.files import at_home, read_text


class _UniqueKeyLoader(yaml.SafeLoader):
    """Safe YAML that refuses duplicate keys and reads 1e-4 as a number, as YAML 1.2 does."""


def _construct_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        key, line = loader.construct_object(key_node, deep=deep), key_node.start_mark.line + 1
        file = key_node.start_mark.name
        if not isinstance(key, str | int | float | bool | None):
            raise UserError("a key is not a name", where=f"{file}, line {line}", expected="key: value", got=key)
        if key in seen:
            where = f"{file}, lines {seen[key]} and {line}"
            raise UserError(f"duplicate key '{key}'", where=where, fix="keep one of the two")
        seen[key] = line
    return yaml.SafeLoader.construct_mapping(loader, node, deep=deep)


MAX_DEPTH, MAX_BRACKETS = 20, 200
_EXPONENT = re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$")
_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)
_UniqueKeyLoader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789."))


def parse_yaml(text: str, name: str) -> Any:
    """Parse strict YAML; a syntax error or duplicate key is a UserError that gives the line."""
    try:
        # The parser itself takes seconds for thousands of brackets.
        if max(accumulate({"[": 1, "{": 1, "]": -1, "}": -1}.get(c, 0) for c in text), default=0) > MAX_BRACKETS:
            raise ValueError(f"it opens more than {MAX_BRACKETS} brackets")
        loader = _UniqueKeyLoader(text)
        loader.name = name
        return _shallow(loader.get_single_data())
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        got = str(error).replace("\n", " ")
        raise UserError("this is not valid YAML", where=name, got=got, fix="mend the line") from None


def _shallow(plain: Any, depth: int = 0) -> Any:
    """Return the data; a ValueError where it is nested deeply, or in itself by an alias."""
    if depth > MAX_DEPTH:
        raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
    children = plain.values() if isinstance(plain, dict) else plain if isinstance(plain, list | set) else ()
    for child in children:
        _shallow(child, depth + 1)
    return plain


def read_yaml(path: str | Path) -> Any:
    """Read a strict YAML file."""
    return parse_yaml(read_text(path, "YAML", "check the path (--config FILE for a pipeline file)"), str(path))


AnySection = TypeVar("AnySection", bound=Section)


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> PipelineConfig:
    """Read a pipeline file, with `section.key=value` overrides.

    Raises UserError: the file is missing or no YAML, or a key is unknown, missing, duplicate or mistyped.
    """
    path = at_home(str(path))
    plain = read_yaml(path)
    if not isinstance(plain, dict):
        raise UserError("this is no pipeline file", where=path, expected="keys and values", got=type(plain).__name__)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError("an override is not understood", got=override, expected="section.key=value")
        set_key(plain, key, parse_yaml(text, f"override {key}"))
    return parse_config(_expand_environment(plain, str(path), ()), str(path))


def _expand_environment(value: Any, where: str, key: tuple[str, ...]) -> Any:
    """Replace `${NAME}` in every text by the environment's value, which must exist, and a tilde by the home folder."""
    if isinstance(value, dict):
        return {name: _expand_environment(inner, where, (*key, str(name))) for name, inner in value.items()}
    if isinstance(value, list):
        return [_expand_environment(inner, where, key) for inner in value]
    if not isinstance(value, str):
        return value

    def expand(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            fix = f"export {name}=..., then run the same command again"
            place = f"{where}, key '{'.'.join(key)}'"
            raise UserError(f"the environment variable {name} is not set", where=place, fix=fix)
        return os.environ[name]

    return at_home(re.sub(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}", expand, value))


def parse_config(plain: dict[str, Any], where: str) -> PipelineConfig:
    """Check plain data as a pipeline file; see `parse_section`."""
    return parse_section(PipelineConfig, plain, where)


def parse_section(kind: type[AnySection], plain: dict[str, Any], where: str, under: str = "") -> AnySection:
    """Check plain data of a file, at a key or of all of it, as a section.

    Raises UserError: a key is unknown, missing or mistyped; every such key is named in one line.
    """
    try:
        return TypeAdapter(kind).validate_python(plain)
    except ValidationError as error:
        first, *more = error.errors()
        key = ".".join(filter(None, (under, _key_path(first))))
        fix = f"mend this key ({len(more)} more: {', '.join(map(_key_path, more[:5]))})" if more else "mend this key"
        place = f"{where}, key '{key}'" if key else where
        if first["type"] == "missing":
            raise UserError("missing key", where=place, fix=fix) from None
        is_unknown, got = first["type"].startswith("unknown_"), repr(first.get("input"))[:120]
        said = first["ctx"]["error"] if first["type"] == "value_error" else first["msg"]
        what = said if is_unknown else f"wrong value: {said}"
        expected = first["ctx"]["expected"] if is_unknown else None
        raise UserError(what, where=place, expected=expected, got=got, fix=fix) from None


def parse_student(plain: dict[str, Any], where: str, under: str = "") -> StudentSettings:
    """Return a checked student of whichever method it names; see `parse_section`."""
    return parse_section(StudentConfig, plain, where, under)


def _key_path(error: ErrorDetails) -> str:
    # pydantic adds `[key]` where the key of a mapping is wrong itself.
    return ".".join(str(part) for part in error["loc"] if part != "[key]")


def set_key(plain: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in place, making the sections on the way, or raise a UserError if one holds no section."""
    *parents, last = key.split(".")
    here = plain
    for parent in parents:
        here = here.setdefault(parent, {})
        if not isinstance(here, dict):
            raise UserError("a key goes below one that holds no section", where=key, got=repr(here))
    here[last] = value
