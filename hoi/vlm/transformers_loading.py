"""Loading frozen models of `transformers`, and what their processors make of an image and a text.

Code that comes with weights is never run (`trust_remote_code=False`), and weights are read from safetensors alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from hoi.config import VlmConfig
from hoi.errors import UserError
from hoi.files import HF_HUB, LOCAL_DIR, check_folder, find_local
from hoi.teachers.loading import unlogged
from hoi.weights import RANDOM, RANDOM_SEED, first_line

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NOT_FOR_MODELS = ("labels",)  # what some processors give for training alone


def load_model(config: VlmConfig) -> tuple[Any, Any]:
    """Return the model of a section of `vlms`, in inference mode on the CPU, and its processor.

    A UserError says of a missing library, of a model that is not there, is no decoder-only one or needs code of its
    own, of a processor or weights that are missing, not safetensors, or do not fit, and of too little memory.
    """
    name, where = config.model, f"vlms, model {config.model}"
    if config.pretrained not in (None, RANDOM):
        problem, fix = "pretrained is of the backend coca", "give the model's folder as model"
        raise UserError(problem, where=where, expected=f"null or {RANDOM}", got=config.pretrained, fix=fix)
    try:
        import transformers
    except ImportError:
        fix = "pip install 'hoi-distill[vlm]'"
        raise UserError("the package transformers is not installed", where=where, fix=fix) from None
    source, is_folder = _find(name)
    safely = {"trust_remote_code": False, "local_files_only": is_folder}
    with _reading(name, "configuration", "check the name or folder; without a network, give a folder"):
        settings = transformers.AutoConfig.from_pretrained(source, **safely)
    if type(settings) not in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        problem, expected = "this model does not turn images and text into text", "an image-text-to-text model"
        raise UserError(problem, where=where, expected=expected, got=settings.model_type)
    if settings.is_encoder_decoder:
        problem = "this model reads the question in an encoder of its own, which is not supported"
        raise UserError(problem, where=where, expected="a decoder-only model", got=settings.model_type)
    with _reading(name, "processor", "it is (pre)processor_config.json and tokenizer.json"):
        processor = transformers.AutoProcessor.from_pretrained(source, **safely)
    missing = [part for part in ("image_processor", "tokenizer") if getattr(processor, part, None) is None]
    if missing:
        expected = "processor_config.json or preprocessor_config.json, and a tokenizer"
        got = f"a {type(processor).__name__} without {' and '.join(missing)}"
        raise UserError("the model has no processor for images and text", where=where, expected=expected, got=got)
    report: dict[str, Any] = {}
    with _reading(name, "weights", "fetch model.safetensors again, or convert the weights to it"):
        kind: Any = transformers.AutoModelForImageTextToText
        dtype = DTYPES[config.precision]
        if config.pretrained == RANDOM:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(RANDOM_SEED)
                model = kind.from_config(settings, dtype=dtype)
        else:
            # Tensors whose shapes differ are refused below, by their names.
            reported = {"ignore_mismatched_sizes": True, "output_loading_info": True}
            model, report = kind.from_pretrained(source, **safely, use_safetensors=True, dtype=dtype, **reported)
    # The library would go on with random values for what a file lacks.
    for problem in ("missing_keys", "mismatched_keys"):
        if keys := report.get(problem):
            got = f"{len(keys)} {problem.replace('_', ' ')}, the first {min(map(str, keys))}"
            raise UserError("the weights do not fit the model", where=where, got=got)
    return model.eval().requires_grad_(False), processor


@contextmanager
def memory_explained(name: str) -> Iterator[None]:
    """Turn running out of memory into a UserError with a hint."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.cuda.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)):
            raise
        fix = "lower its batch_size, set precision: bf16, or take smaller images (preprocessor_config.json) or models"
        problem = "there is not enough memory for the model"
        raise UserError(problem, where=f"vlms, model {name}", got=first_line(error), fix=fix) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Silence progress bars and logs: what libraries report of a failure becomes one error of ours."""
    from transformers.utils import logging as library

    has_bars = library.is_progress_bar_enabled()
    library.disable_progress_bar()
    try:
        with unlogged():
            yield
    finally:
        if has_bars:
            library.enable_progress_bar()


@contextmanager
def _reading(name: str, part: str, fix: str) -> Iterator[None]:
    """Turn what the library raises while it reads a part of the model into a UserError."""
    where = f"vlms, model {name}"
    try:
        with quiet(), memory_explained(name):
            yield
    except ImportError as error:
        problem = "the model needs a package that is not installed"
        raise UserError(problem, where=where, got=first_line(error), fix="install it") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        text, problem = " ".join(str(error).split()), f"the model's {part} cannot be read"
        if "trust_remote_code" in text:
            problem = "the model comes with code of its own, which is never run"
            fix = "take one that transformers knows"
        raise UserError(problem, where=where, got=text[:200] or type(error).__name__, fix=fix) from None


def _find(name: str) -> tuple[str, bool]:
    """Return the library's name of a model, and whether it is a folder; a UserError if a path is not there."""
    source = name.removeprefix(LOCAL_DIR).removeprefix(HF_HUB)
    if not name.startswith(HF_HUB) and find_local(source).is_dir():
        check_folder(find_local(source))
        return str(find_local(source)), True
    if name.startswith((".", "/", "~", LOCAL_DIR)) or source.count("/") > 1:
        expected = "a folder, or owner/name of the hub"
        raise UserError("there is no such model folder", where=name, expected=expected, fix="check model")
    return source, False


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Prompter:
    """Questions and texts in the form that one model was trained on.

    A candidate's tokens are those that the tokenizer adds to the end of the prompt when both are written as one text,
    with a space between them unless the prompt ends in white space or in a special token. Where the two would melt into
    one token, the candidate is tokenized alone.
    """

    def __init__(self, processor: Any, where: str) -> None:
        self._processor, self._where = processor, where
        self._tokenizer = processor.tokenizer
        template = getattr(processor, "chat_template", None) or getattr(self._tokenizer, "chat_template", None)
        self._template: str | None = template.get("default") if isinstance(template, dict) else template
        self._image_token: str = getattr(processor, "image_token", None) or ""

    def text(self, question: str) -> str:
        """Return the prompt around a question: the chat template's, or image and question if the model has none."""
        # A question that names the model's image token is a whole prompt already.
        if self._image_token and self._image_token in question:
            return question
        if self._template is None:
            return self._image_token + question
        content = [{"type": "image"}, *([{"type": "text", "text": question}] if question else [])]
        turns = [{"role": "user", "content": content}]
        try:
            text: str = self._processor.apply_chat_template(
                turns, chat_template=self._template, add_generation_prompt=True, tokenize=False
            )
        except (TemplateError, TypeError) as error:
            raise UserError("the chat template does not work", where=self._where, got=str(error)[:200]) from None
        if self._image_token not in text:
            problem, expected = "the chat template has no place for an image", f"{self._image_token} in it"
            fix = f"write the whole prompt, {self._image_token} included, as the question"
            raise UserError(problem, where=self._where, expected=expected, got=text[:120], fix=fix)
        return text

    def inputs(self, image: np.ndarray, question: str) -> dict[str, Tensor]:
        """Return what the model reads of an image, uint8 [H, W, 3], and a question, as one row."""
        text, begin = self.text(question), self._tokenizer.bos_token
        # A template that writes the beginning of the text itself must not get a second one.
        special = {"add_special_tokens": False} if begin and text.startswith(begin) else {}
        # As a Pillow image no axis can be mistaken for the colours.
        try:
            inputs = self._processor(images=[Image.fromarray(image)], text=[text], return_tensors="pt", **special)
        except ValueError as error:
            problem = "the model's processor refuses an image and its question"
            got = f"{image.shape[1]} x {image.shape[0]} px, '{text[:80]}': {error}"
            fix = "check the question, and whether the image is extremely narrow"
            raise UserError(problem, where=self._where, got=got, fix=fix) from None
        return {name: value for name, value in inputs.items() if name not in NOT_FOR_MODELS}

    def tokens(self, prompt: Tensor, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of candidate texts after a prompt, int64 [1, tokens]; a UserError if there are none."""
        ids = prompt[0].tolist()
        added = self._tokenizer.added_tokens_decoder
        special = {*self._tokenizer.all_special_ids, *(token for token, text in added.items() if text.special)}
        last = max((place for place, token in enumerate(ids) if token in special), default=-1)
        end = ids[last + 1 :]
        written = self._tokenizer.decode(end)
        gap = "" if not end or written[-1:].isspace() else " "
        # The end of the prompt as the tokenizer would write it again; or else its last character, which stands for it.
        before = written if self._encode(written) == end else written[-1:]
        start, candidates = self._encode(before), []
        for text in texts:
            whole = self._encode(before + gap + text)
            melts = whole[: len(start)] != start
            candidates.append(self._encode(gap + text) if melts else whole[len(start) :])
        if not all(candidates):
            raise UserError("a candidate is empty", where=self._where, expected="at least one token of text")
        return candidates

    def written(self, tokens: Sequence[int]) -> str:
        """Return the plain text of tokens that a model wrote."""
        return self._tokenizer.decode(tokens, skip_special_tokens=True).strip()

    def single_tokens(self, word: str) -> list[int]:
        """Return the single tokens that are a word in any case, with or without a space before it."""
        forms = [space + form for form in (word.lower(), word.capitalize(), word.upper()) for space in ("", " ")]
        single = sorted({tokens[0] for tokens in map(self._encode, forms) if len(tokens) == 1})
        if not single:
            fix = "score by sum or mean instead"
            raise UserError(f"the tokenizer has no token for '{word}'", where=self._where, fix=fix)
        return single

    def provenance(self) -> dict[str, Any]:
        """Return hashes of what decides the model's inputs."""
        settings = json.dumps(self._processor.image_processor.to_dict(), sort_keys=True, default=str)
        probe = repr([self._encode(text) for text in ("Yes no", "riding a horse", "\n ?")])
        return {
            "chat_template_sha256": None if self._template is None else _sha256(self._template),
            "image_processor_sha256": _sha256(settings),
            "tokens_sha256": _sha256(probe),
        }

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))
