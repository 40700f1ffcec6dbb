"""What a config asks a cache to be, and what models say that it is.

Two descriptions of the same thing: the *fingerprint* is said by the models themselves, on the worker that loaded them;
the *request* is said by the config and the hashes of the files it names, and costs no import of torch. Neither holds a
path, a worker count or a host: a weight file stands there as the hash of its bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cache.fingerprint import DATASET_PLACES, LOCAL_FOLDER, files_as_hashes
from cache.schema import SCHEMA_VERSION
from hoi.config import PipelineConfig
from hoi.datasets import identity, load_vocabulary


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
        config: `vllms` is read.
        name: Of the pass.
        base: What the config asks of the base pass (`request_parts`).
    """
    section = config.vllms[name].model_dump(mode="json")
    if Path(section["model"]).is_dir():
        section["model"] = LOCAL_FOLDER + section["model"]
    return {"schema_version": SCHEMA_VERSION, "vllm": files_as_hashes(section), "base": base}


def _dataset_part(config: PipelineConfig) -> dict[str, Any]:
    settings = config.dataset.model_dump(mode="json")
    return {**{k: v for k, v in settings.items() if k not in DATASET_PLACES}, **identity(config.dataset)}
