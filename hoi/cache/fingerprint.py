"""Descriptions of what a cache was made from: to one hash, and to the keys in which two of them differ."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from hoi.cache.manifest import BASE, Pass
from hoi.cache.schema import SCHEMA_VERSION
from hoi.config import PipelineConfig
from hoi.datasets import identity, load_vocabulary
from hoi.errors import UserError
from hoi.files import LOCAL_DIR, file_sha256, find_local, json_sha256

DATASET_PLACES = {"root", "images", "image_list", "image_lists", "annotations", "instances", "vocabulary", "splits"}
"""Dataset keys that say where things are or which images there are; ids, vocabulary and files stand for themselves."""


def files_as_hashes(section: dict[str, Any]) -> dict[str, Any]:
    """A section of a config, as plain data, with files and folders of weights as hashes of their bytes."""
    return {key: _hash_of(value) if _is_here(value) else value for key, value in section.items()}


def _is_here(value: Any) -> bool:
    """Whether a value names a file, or a folder in open_clip's way, that is on this machine."""
    if not isinstance(value, str):
        return False
    path = find_local(value)
    return path.is_dir() if value.startswith(LOCAL_DIR) else path.is_file()


def _hash_of(value: str) -> str:
    if not value.startswith(LOCAL_DIR):
        own, *bases = [file_sha256(path) for path in _with_bases(find_local(value))]
        return f"sha256:{json_sha256([own, *bases]) if bases else own}"
    folder = find_local(value)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return LOCAL_DIR + json_sha256([[p.relative_to(folder).as_posix(), file_sha256(p)] for p in files])


def _with_bases(path: Path) -> list[Path]:
    """A file and, if it is a detectron2 config, the configs that it is based on, as far as they are here."""
    files = [path.resolve()]
    while files[-1].suffix in (".yaml", ".yml"):
        text = files[-1].read_text(encoding="utf-8", errors="replace")
        named = re.search(r"^_BASE_:\s*[\"']?([^\"'\s#]+)", text, re.MULTILINE)
        base = None if named is None else (files[-1].parent / Path(named.group(1)).expanduser()).resolve()
        if base is None or not base.is_file() or base in files:
            break
        files.append(base)
    return files


def refuse_replaced_files(folder: Path, request: dict[str, Any], config: dict[str, Any]) -> None:
    """Nothing, if the weight files of a config that are here are those that a cache was made with.

    Training needs none of them, so one that is elsewhere is not asked for; one that is here may have been replaced.

    Args:
        folder: The split's folder.
        request: What the split was begun with (`hoi.cache.fingerprint.request_parts`).
        config: Resolved, as plain data.

    Raises:
        UserError: a file under the config's path is another one; names its key.
    """
    here: dict[str, Any] = {}
    cached: dict[str, Any] = {}
    for name in ("detector", "teacher"):
        values = files_as_hashes({key: value for key, value in config[name].items() if _is_here(value)})
        here[name], cached[name] = values, {key: request[name].get(key) for key in values}
    refuse_other_settings(folder, cached, here)


def settings_parts(config: dict[str, Any], split: str) -> dict[str, Any]:
    """A resolved config, as plain data, to the keys that decide what a split holds, comparable with no file at hand.

    Strings that name a local place are left out: the same weights may lie elsewhere.
    """
    dataset = {k: v for k, v in config["dataset"].items() if k not in DATASET_PLACES}
    parts = {
        "dataset": {**dataset, "splits": {split: config["dataset"]["splits"].get(split)}},
        **{name: config[name] for name in ("detector", "pairs", "teacher")},
        "cache": {"threads": config["cache"]["threads"]},
    }
    return {
        name: {key: value for key, value in section.items() if not _is_local_place(value)}
        for name, section in parts.items()
    }


def settings_of_pass(config: dict[str, Any], name: str) -> dict[str, Any]:
    """The same of a further pass: what a resolved config, as plain data, asks of it."""
    section = config["vlms"][name]
    return {"vlms": {name: {key: value for key, value in section.items() if not _is_local_place(value)}}}


def _is_local_place(value: Any) -> bool:
    return isinstance(value, str) and ("/" in value or "\\" in value) and not value.startswith("hf-hub:")


def flatten(parts: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings to dotted keys."""
    if not isinstance(parts, dict) or not parts:
        return {prefix: parts}
    flat: dict[str, Any] = {}
    for key, value in parts.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def differing_keys(cached: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Readable differences, as `teacher.crop.mode (cache: pad, now: square)`."""
    old, new = flatten(cached), flatten(wanted)
    absent = object()

    def shown(value: Any) -> str:
        text = "absent" if value is absent else value if isinstance(value, str) else json.dumps(value)
        return text if len(text) <= 40 else text[:37] + "..."

    return [
        f"{key} (cache: {shown(old.get(key, absent))}, now: {shown(new.get(key, absent))})"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, absent) != new.get(key, absent)
    ]


def refuse_other_settings(folder: Path, cached: dict[str, Any], wanted: dict[str, Any], of: Pass = BASE) -> None:
    """Nothing, if both descriptions are equal.

    Args:
        folder: The split's folder, or a file in it, for the message.
        cached, wanted: The descriptions.
        of: Which pass they are of.

    Raises:
        UserError: the cache was made with other settings; names every differing key and what to run.
    """
    differences = differing_keys(cached, wanted)
    if not differences:
        return
    got = "; ".join(differences[:8]) + (f"; and {len(differences) - 8} more" if len(differences) > 8 else "")
    if of.is_base:
        raise UserError(
            "this cache was made with other settings",
            where=folder,
            got=got,
            fix=f"run with another cache.folder=FOLDER, or delete {folder} and run make teacher-cache to build it anew",
        )
    whole = of.clearing(folder if folder.is_dir() else folder.parent)
    raise UserError(
        f"{of.title} was made with other settings",
        where=folder,
        got=got,
        fix=f"give it another name in vlms, or delete {whole} and run make teacher-cache to build it anew",
    )


def fingerprint_parts(config: PipelineConfig, vocabulary_digest: str, provenance: dict[str, Any]) -> dict[str, Any]:
    """All that changes what a shard holds.

    Args:
        config: Its data set enters; shard size, folder and workers do not.
        vocabulary_digest: `Vocabulary.digest()`.
        provenance: What the extractor says of itself, device and threads among it; `versions` are left to the manifest.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "dataset": _dataset_part(config),
        "vocabulary": vocabulary_digest,
        **{key: value for key, value in provenance.items() if key != "versions"},
    }


def request_parts(config: PipelineConfig) -> dict[str, Any]:
    """What a config asks for, without loading a model: its sections, with files as hashes of their bytes."""
    return {
        "schema_version": SCHEMA_VERSION,
        "dataset": _dataset_part(config),
        "vocabulary": load_vocabulary(config.dataset).digest(),
        "detector": files_as_hashes(config.detector.model_dump(mode="json")),
        "pairs": config.pairs.model_dump(mode="json"),
        "teacher": files_as_hashes(config.teacher.model_dump(mode="json")),
        "num_threads": config.cache.threads,
    }


def pass_request(config: PipelineConfig, name: str, base: dict[str, Any]) -> dict[str, Any]:
    """What a config asks of a further pass.

    Args:
        config: `vlms` is read.
        name: Of the pass.
        base: What the config asks of the base pass (`request_parts`).
    """
    section = config.vlms[name].model_dump(mode="json")
    if not section["model"].startswith(LOCAL_DIR) and find_local(section["model"]).is_dir():
        section["model"] = LOCAL_DIR + section["model"]
    return {"schema_version": SCHEMA_VERSION, "vlm": files_as_hashes(section), "base": base}


def _dataset_part(config: PipelineConfig) -> dict[str, Any]:
    settings = config.dataset.model_dump(mode="json")
    return {**{k: v for k, v in settings.items() if k not in DATASET_PLACES}, **identity(config.dataset)}
