"""What a config asks a cache to be, and what models say that it is.

Two descriptions of the same thing: the *fingerprint* is said by the models themselves, on the worker that loaded them;
the *request* is said by the config and the hashes of the files it names, and costs no import of torch. Neither holds a
path, a worker count or a host: a weight file stands there as the hash of its bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cache.fingerprint import DATASET_PLACES, digest_of, file_sha256
from cache.schema import SCHEMA_VERSION
from hoi.config import PipelineConfig
from hoi.datasets import identity, load_vocabulary

LOCAL_FOLDER = "local-dir:"


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
        "detector": _files_as_hashes(config.detector.model_dump(mode="json")),
        "pairs": config.pairs.model_dump(mode="json"),
        "teacher": _files_as_hashes(config.teacher.model_dump(mode="json")),
        "num_threads": config.cache.threads,
    }


def _dataset_part(config: PipelineConfig) -> dict[str, Any]:
    settings = config.dataset.model_dump(mode="json")
    return {**{k: v for k, v in settings.items() if k not in DATASET_PLACES}, **identity(config.dataset)}


def _files_as_hashes(section: dict[str, Any]) -> dict[str, Any]:
    return {key: _hash_if_file(value) if isinstance(value, str) else value for key, value in section.items()}


def _hash_if_file(value: str) -> str:
    if value.startswith(LOCAL_FOLDER):
        folder = Path(value.removeprefix(LOCAL_FOLDER))
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        return LOCAL_FOLDER + digest_of([[p.relative_to(folder).as_posix(), file_sha256(p)] for p in files])
    return f"sha256:{file_sha256(Path(value))}" if Path(value).is_file() else value
