"""The models on a worker: made once, in the thread of the first task that needs them, and kept until `release`."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from hoi.cache.fingerprint import fingerprint_parts
from hoi.config import PipelineConfig
from hoi.datasets import ImageSource, load_vocabulary
from hoi.files import json_sha256
from hoi.machine import choose_device
from hoi.records import ImageSignals, TextBank
from hoi.vlm import ImageAnswers, PhraseBank
from hoi.vocabulary import Vocabulary


class Extracts(Protocol):
    """What a worker needs of `hoi.extraction.Extractor`."""

    @property
    def text_bank(self) -> TextBank: ...

    @property
    def axes(self) -> dict[str, int]:
        """Size of every letter of the schema."""
        ...

    def extract(self, image_ids: Sequence[str], images: Sequence[np.ndarray]) -> list[ImageSignals]: ...

    def extract_stream(self, images: Iterable[tuple[str, np.ndarray]]) -> list[ImageSignals]:
        """The same from pairs of id and image, which come as they are decoded."""
        ...

    def provenance(self) -> dict[str, Any]: ...


class Asks(Protocol):
    """What a worker needs of `hoi.vlm.extractor.VlmExtractor`."""

    @property
    def phrases(self) -> PhraseBank: ...

    @property
    def axes(self) -> dict[str, int]:
        """Size of every letter of the schema."""
        ...

    def ask(self, images: Iterable[tuple[ImageSignals, np.ndarray]], teacher: Mapping[str, Any]) -> list[ImageAnswers]:
        """From what the base pass knows of each image and its pixels, and what it says of its teacher."""
        ...

    def provenance(self) -> dict[str, Any]: ...


Model = TypeVar("Model", bound=Extracts | Asks)
Factory = Callable[[PipelineConfig, Vocabulary, str], Model]
"""Config, vocabulary and device to what a pass is made with. Equal ones give equal models."""
ExtractorFactory = Factory[Extracts]
AskerFactory = Factory[Asks]


@dataclass(frozen=True)
class LoadAsker:
    """The product's own asker: the vision language model that a further pass of the config names."""

    name: str

    def __call__(self, config: PipelineConfig, vocabulary: Vocabulary, device: str) -> Asks:
        from hoi.vlm.extractor import VlmExtractor

        return VlmExtractor(config, self.name, vocabulary, device)


def load_extractor(config: PipelineConfig, vocabulary: Vocabulary, device: str) -> Extracts:
    """The product's own extractor: detector, pairs and teacher of the config."""
    from hoi.extraction import Extractor

    return Extractor(config, vocabulary, device)


@dataclass(frozen=True)
class Held(Generic[Model]):
    """What a worker keeps between its tasks."""

    key: tuple[str, Factory[Model]]
    config: PipelineConfig
    vocabulary: Vocabulary
    device: str
    model: Model
    parts: dict[str, Any]
    fingerprint: str
    sources: dict[str, ImageSource]


_held: list[Held[Any]] = []


def release() -> None:
    """Forgets the models, so that a process that goes on has its memory back."""
    _held.clear()


def hold(config_json: str, factory: Factory[Model]) -> Held[Model]:
    """The models of a config, made at the first call in this process; also sets the threads of the calling thread.

    Raises:
        UserError: a GPU is asked for and there is none, or the models cannot be made.
    """
    config = PipelineConfig.model_validate_json(config_json)
    # OpenMP keeps its thread count per thread, and a task may run in any of them.
    torch.set_num_threads(config.cache.threads)
    # numpy's products are summed in another order with more threads.
    threadpool_limits(config.cache.threads, user_api="blas")
    if _held and _held[0].key == (config_json, factory):
        return _held[0]
    release()
    device = choose_device(config.cache.device, "cache.device").type
    vocabulary = load_vocabulary(config.dataset)
    model = factory(config, vocabulary, device)
    parts = json.loads(json.dumps(fingerprint_parts(config, vocabulary.digest(), model.provenance()), sort_keys=True))
    held = Held((config_json, factory), config, vocabulary, device, model, parts, json_sha256(parts), sources={})
    _held.append(held)
    return held


def device_name(device: str) -> str:
    """`cpu` or `cuda` to the name of the processor or the GPU."""
    return torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
