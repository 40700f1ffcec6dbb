"""Versions of the libraries and the commit that an output was made with, without importing them."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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
        head = _git(root, "rev-parse", "HEAD")
        return head + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()
