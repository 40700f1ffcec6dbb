"""The passes over a split's images, and what their files are called.

The base pass holds what detector and teacher say; a further pass holds what one more teacher says of the same images
and pairs, in shards of its own beside the base pass's. Both are planned, built, sealed, read, verified and mended by
the same code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from cache.schema import FIELDS, PASS_FIELDS, Field

_FILE = re.compile(
    r"(?:(?P<name>[A-Za-z0-9][A-Za-z0-9_.-]*)-)?(?:(?:bank|shard-\d{5,})\.(?:h5|json)|manifest\.json|index\.h5)"
)


@dataclass(frozen=True)
class Pass:
    """One pass.

    Args:
        name: Empty for the base pass.
    """

    name: str = ""

    @property
    def is_base(self) -> bool:
        return not self.name

    @property
    def prefix(self) -> str:
        """What the names of its files begin with."""
        return f"{self.name}-" if self.name else ""

    @property
    def title(self) -> str:
        """How messages call it."""
        return f"pass '{self.name}'" if self.name else "teacher cache"

    @property
    def fields(self) -> tuple[Field, ...]:
        """The table of its shards."""
        return PASS_FIELDS if self.name else FIELDS

    @property
    def bank_name(self) -> str:
        return f"{self.prefix}bank.h5"

    @property
    def bank_receipt_name(self) -> str:
        return f"{self.prefix}bank.json"

    @property
    def index_name(self) -> str:
        return f"{self.prefix}index.h5"

    @property
    def manifest_name(self) -> str:
        return f"{self.prefix}manifest.json"

    @property
    def journal_name(self) -> str:
        return f"{self.prefix}journal.jsonl"

    @property
    def shard_pattern(self) -> str:
        """Which files look like shards of it."""
        return f"{self.prefix}shard-*.h5"

    def shard_name(self, index: int) -> str:
        """File name of a shard."""
        return f"{self.prefix}shard-{index:05d}.h5"

    def shard_index(self, name: str) -> int:
        """File name of a shard back to its number."""
        return int(name.removeprefix(f"{self.prefix}shard-").removesuffix(".h5"))

    def clearing(self, folder: Path) -> str:
        """What to delete for it to be built anew."""
        return f"{folder}/{self.prefix}*" if self.name else str(folder)


BASE = Pass()


def passes_in(folder: Path) -> list[Pass]:
    """The further passes of which a split's folder holds anything, by name."""
    found = {of_file(path.name) for path in folder.iterdir()} if folder.is_dir() else set()
    return sorted((of for of in found if of is not None and not of.is_base), key=lambda of: of.name)


def of_file(name: str) -> Pass | None:
    """A file's name to the pass that it is of, or None if it is none of the content."""
    match = _FILE.fullmatch(name)
    return None if match is None else Pass(match["name"] or "")


def split_name(field: str) -> tuple[Pass, str]:
    """A field as students name it, `coca/vllm_scores` or `spatial_map`, to (its pass, its own name)."""
    name, _, own = field.rpartition("/")
    return Pass(name), own
