"""Versions of the libraries and the commit that an output was made with, without importing them."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import hoi


def library_versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of Python, this package and the named ones; those not installed are left out."""
    versions = {"python": platform.python_version(), "hoi-distill": hoi.__version__}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def commit() -> str | None:
    """Return the git commit of the running code, with `+` if tracked files differ; None outside a checkout."""
    root = Path(hoi.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        head, changes = (
            subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, check=True, timeout=20).stdout
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.strip() + ("+" if changes else "")


def flatten(parts: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one with dotted keys."""
    if not isinstance(parts, dict) or not parts:
        return {prefix: parts}
    flat: dict[str, Any] = {}
    for key, value in parts.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def differing_keys(cached: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Return in what two descriptions differ, as `teacher.crop.mode (cache: pad, now: square)`."""
    old, new = flatten(cached), flatten(wanted)

    def shown(parts: dict[str, Any], key: str) -> str:
        value = parts.get(key, "absent")
        text = value if isinstance(value, str) else json.dumps(value)
        return text if len(text) <= 40 else text[:37] + "..."

    return [
        f"{key} (cache: {shown(old, key)}, now: {shown(new, key)})"
        for key in sorted(old.keys() | new.keys())
        if key not in old or key not in new or old[key] != new[key]
    ]
