"""YAML files to plain data, strictly: a duplicate key or a syntax error is named with its line, 1e-4 is a number."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from hoi.errors import UserError


class _UniqueKeyLoader(yaml.SafeLoader):
    """Safe YAML that refuses duplicate keys and reads 1e-4 as a number, as YAML 1.2 does."""


def _construct_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=deep)
        line = key_node.start_mark.line + 1
        if not isinstance(key, str | int | float | bool | None):
            raise UserError(
                "a key is no name", where=f"{key_node.start_mark.name}, line {line}", expected="key: value", got=key
            )
        if key in seen:
            raise UserError(
                f"duplicate key '{key}'",
                where=f"{key_node.start_mark.name}, lines {seen[key]} and {line}",
                fix="keep one of the two",
            )
        seen[key] = line
    return yaml.SafeLoader.construct_mapping(loader, node, deep=deep)


def _number_resolver() -> None:
    _UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)
    _UniqueKeyLoader.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
        list("-+0123456789."),
    )


_number_resolver()


def parse_yaml(text: str, name: str) -> Any:
    """Strict YAML text to plain data; a syntax error or duplicate key is a UserError that gives the line."""
    try:
        loader = _UniqueKeyLoader(text)
        loader.name = name
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise UserError(
            "this is not valid YAML", where=name, got=str(error).replace("\n", " "), fix="mend the line"
        ) from None


def read_yaml(path: str | Path) -> Any:
    """Reads a YAML file, strictly."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            "there is no such file", where=path, fix="check the path (CONFIG=… for a pipeline file)"
        ) from None
    except UnicodeDecodeError:
        raise UserError("this is not a text file", where=path, expected="YAML in UTF-8") from None
    except IsADirectoryError:
        raise UserError("this is a folder", where=path, expected="a YAML file") from None
    return parse_yaml(text, str(path))
