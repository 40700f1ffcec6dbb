"""Loading frozen models of `transformers` with their processors.

Code that comes with weights is never run (`trust_remote_code=False`), and weights are read from safetensors alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError

from hoi.config import VlmConfig
from hoi.errors import UserError
from hoi.files import LOCAL_DIR, find_local
from hoi.teachers.loading import HF_HUB
from hoi.weights import RANDOM, RANDOM_SEED

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class LoadedModel:
    """A decoder-only image-text-to-text model in inference mode on the CPU; `kind` is as `qwen2_vl`."""

    model: Any
    processor: Any
    kind: str


def load_model(config: VlmConfig) -> LoadedModel:
    """Load the model of a section of `vlms`.

    Raises:
        UserError: the library is missing; there is no such model, or it is of another kind or needs code of its own;
            the processor or weights are missing, not safetensors, or do not fit; memory is short.
    """
    name = config.model
    if config.pretrained not in (None, RANDOM):
        raise UserError(
            "pretrained is of the backend coca",
            where=f"vlms, model {name}",
            expected=f"null or {RANDOM}",
            got=config.pretrained,
            fix="give the model's folder as model",
        )
    try:
        import transformers
    except ImportError:
        raise UserError(
            "the package transformers is not installed",
            where=f"vlms, model {name}",
            fix="pip install 'hoi-distill[vlm]'",
        ) from None
    source, is_folder = _find(name)
    safely = {"trust_remote_code": False, "local_files_only": is_folder}
    with quiet(), _explained(name, "configuration", "check the name or folder; without a network, give a folder"):
        settings = transformers.AutoConfig.from_pretrained(source, **safely)
        _check_kind(name, settings, transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING)
    with quiet(), _explained(name, "processor", "it is (pre)processor_config.json and tokenizer.json"):
        processor = transformers.AutoProcessor.from_pretrained(source, **safely)
        _check_processor(name, processor)
    with quiet(), _explained(name, "weights", "fetch model.safetensors again, or convert the weights to it"):
        kind: Any = transformers.AutoModelForImageTextToText
        dtype = DTYPES[config.precision]
        if config.pretrained == RANDOM:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(RANDOM_SEED)
                model = kind.from_config(settings, dtype=dtype)
        else:
            model, report = kind.from_pretrained(
                source,
                **safely,
                use_safetensors=True,
                dtype=dtype,
                # Shapes that differ are refused below, by their names.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
            _check_weights(name, report)
    return LoadedModel(model.eval().requires_grad_(False), processor, settings.model_type)


@contextmanager
def memory_explained(name: str) -> Iterator[None]:
    """Turn running out of memory into a UserError with a hint."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.cuda.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)):
            raise
        raise UserError(
            "there is not enough memory for the model",
            where=f"vlms, model {name}",
            got=_first_line(error),
            fix="lower its batch_size, set precision: bf16, lower the image size in preprocessor_config.json, "
            "or take a smaller model",
        ) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Silence progress bars and logs: what libraries report of a failure becomes one error of ours."""
    from transformers.utils import logging as library

    level, bars = logging.root.manager.disable, library.is_progress_bar_enabled()
    logging.disable(logging.ERROR)
    library.disable_progress_bar()
    try:
        yield
    finally:
        logging.disable(level)
        if bars:
            library.enable_progress_bar()


def _find(name: str) -> tuple[str, bool]:
    """Return the library's name of a model, and whether it is a folder; a UserError if a path is not there."""
    source = name.removeprefix(LOCAL_DIR).removeprefix(HF_HUB)
    if not name.startswith(HF_HUB) and find_local(source).is_dir():
        return str(find_local(source)), True
    if name.startswith((".", "/", "~", LOCAL_DIR)) or source.count("/") > 1:
        raise UserError(
            "there is no such model folder",
            where=name,
            expected="a folder, or owner/name of the hub",
            fix="check model",
        )
    return source, False


@contextmanager
def _explained(name: str, part: str, fix: str) -> Iterator[None]:
    """Turn what the library raises while it reads a part of the model into a UserError."""
    where = f"vlms, model {name}"
    try:
        with memory_explained(name):
            yield
    except ImportError as error:
        raise UserError(
            "the model needs a package that is not installed", where=where, got=_first_line(error), fix="install it"
        ) from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        text = " ".join(str(error).split())
        if "trust_remote_code" in text:
            problem, fix = (
                "the model comes with code of its own, which is never run",
                "take one that transformers knows",
            )
        else:
            problem = f"the model's {part} cannot be read"
        raise UserError(problem, where=where, got=text[:200] or type(error).__name__, fix=fix) from None


def _check_kind(name: str, settings: Any, known: Any) -> None:
    where = f"vlms, model {name}"
    if type(settings) not in known:
        raise UserError(
            "this model does not turn images and text into text",
            where=where,
            expected="an image-text-to-text model of transformers",
            got=settings.model_type,
        )
    if settings.is_encoder_decoder:
        raise UserError(
            "this model reads the question in an encoder of its own, which is not supported",
            where=where,
            expected="a decoder-only model, in which the image is a part of the text",
            got=settings.model_type,
        )


def _check_processor(name: str, processor: Any) -> None:
    missing = [part for part in ("image_processor", "tokenizer") if getattr(processor, part, None) is None]
    if missing:
        raise UserError(
            "the model has no processor for images and text",
            where=f"vlms, model {name}",
            expected="processor_config.json or preprocessor_config.json, and a tokenizer",
            got=f"a {type(processor).__name__} without {' and '.join(missing)}",
        )


def _check_weights(name: str, report: dict[str, Any]) -> None:
    """Raise where the library would go on with random values for what a file lacks."""
    for problem in ("missing_keys", "mismatched_keys"):
        if report.get(problem):
            raise UserError(
                "the weights do not fit the model",
                where=f"vlms, model {name}",
                got=f"{len(report[problem])} {problem.replace('_', ' ')}, the first {min(map(str, report[problem]))}",
            )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
