"""A cache folder to what has to be equal, however it came about."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

ABOUT_THE_RUN = (".lock", "*journal.jsonl", "*shard-*.json")


def content_of(folder: Path) -> dict[str, str]:
    """Relative path to SHA-256 of every file that is content; of manifests without what they say of the run.

    Receipts beside the shards stand in the manifest, and may be missing.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or any(path.match(pattern) for pattern in ABOUT_THE_RUN):
            continue
        data = path.read_bytes()
        if path.match("*manifest.json"):
            plain = json.loads(data)
            plain["made_with"] = None
            data = json.dumps(plain, sort_keys=True).encode()
        found[name] = hashlib.sha256(data).hexdigest()
    return found
