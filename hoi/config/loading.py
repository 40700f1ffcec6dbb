"""A pipeline file and what the command line replaces in it, to a checked config."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from hoi.config.pipeline import PipelineConfig, StudentConfig, method_of
from hoi.config.section import Section
from hoi.config.yaml import parse_yaml, read_yaml
from hoi.errors import UserError

AnySection = TypeVar("AnySection", bound=Section)


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> PipelineConfig:
    """Pipeline file plus `section.key=value` overrides to a checked config.

    Raises:
        UserError: the file is missing or no YAML, or a key is unknown, missing, duplicate or mistyped.
    """
    plain = read_yaml(path)
    if not isinstance(plain, dict):
        raise UserError("this is no pipeline file", where=path, expected="keys and values", got=type(plain).__name__)
    for override in overrides:
        _apply_override(plain, override)
    return parse_config(_expand_environment(plain, str(path), ()), str(path))


def _expand_environment(value: Any, where: str, key: tuple[str, ...]) -> Any:
    """Replaces `${NAME}` in every text by the environment's value, which must exist."""
    if isinstance(value, dict):
        return {name: _expand_environment(inner, where, (*key, str(name))) for name, inner in value.items()}
    if not isinstance(value, str):
        return value

    def expand(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise UserError(
                f"the environment variable {name} is not set",
                where=f"{where}, key '{'.'.join(key)}'",
                fix=f"run with {name}=... (make {name}=... TARGET)",
            )
        return os.environ[name]

    return re.sub(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}", expand, value)


def parse_config(plain: dict[str, Any], where: str) -> PipelineConfig:
    """Plain data to a checked config; every wrong key is named in one line."""
    return parse_section(PipelineConfig, plain, where)


def parse_section(kind: type[AnySection], plain: dict[str, Any], where: str, under: str = "") -> AnySection:
    """Plain data to a checked section; every wrong key is named in one line.

    Args:
        kind: Which section.
        plain: Its keys.
        where: The file.
        under: Key in it at which the section stands; empty for the whole file.

    Raises:
        UserError: a key is unknown, missing or mistyped.
    """
    try:
        return TypeAdapter(kind).validate_python(plain)
    except ValidationError as error:
        first, *more = error.errors()
        raise UserError(
            _explain(first),
            where=f"{where}, key '{'.'.join(filter(None, (under, _key_path(first, plain))))}'",
            got=None if first["type"] == "missing" else repr(first.get("input"))[:120],
            fix="mend this key"
            + (f" ({len(more)} more: {', '.join(_key_path(m, plain) for m in more[:5])})" if more else ""),
        ) from None


def parse_student(plain: dict[str, Any], where: str, under: str = "") -> StudentConfig:
    """Plain data to a checked student of whichever method it names; arguments and errors as in `parse_section`."""
    return cast(StudentConfig, parse_section(cast(type[Section], StudentConfig), plain, where, under))


def _explain(error: Any) -> str:
    kinds = {"extra_forbidden": "unknown key", "missing": "missing key"}
    return kinds.get(error["type"], "wrong value: " + error["msg"].removeprefix("Value error, "))


def _key_path(error: Any, plain: dict[str, Any]) -> str:
    """The dotted key as written in the file; pydantic adds the tag of a union and `[key]`, which are none."""
    parts: list[str] = []
    here: Any = plain
    for part in error["loc"]:
        is_tag = isinstance(here, dict) and part not in here and part in (here.get("name"), method_of(here))
        if is_tag or part == "[key]":
            continue
        parts.append(str(part))
        here = here.get(part) if isinstance(here, dict) else None
    return ".".join(parts)


def _apply_override(plain: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError("an override is not understood", got=override, expected="section.key=value")
    *parents, last = key.split(".")
    here = plain
    for parent in parents:
        here = here.setdefault(parent, {})
        if not isinstance(here, dict):
            raise UserError("an override goes below a key that holds no section", where=key, got=repr(here))
    here[last] = parse_yaml(text, f"override {key}")
