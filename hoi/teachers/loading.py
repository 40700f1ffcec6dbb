"""Loading open_clip models: weights, tokenizer, and what the model expects of images.

Only functions are used that open_clip's releases and its main branch both keep. What open_clip would warn of, log or
ignore (missing weights, another activation than the weights were trained with) is an error here.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import PickleError
from typing import Any

import open_clip
import torch
from jaxtyping import Float32
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional

from hoi.config import TeacherConfig
from hoi.crops import CropStyle
from hoi.errors import UserError, nearest
from hoi.files import LOCAL_DIR, find_local
from hoi.weights import RANDOM, RANDOM_SEED, weights_sha256

HF_HUB = "hf-hub:"
CONFIG_FILE = "open_clip_config.json"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth")
"""What open_clip looks for in a `local-dir:` folder."""
LOADING_FAILS = (RuntimeError, ValueError, OSError, EOFError, LookupError, TypeError, PickleError, SafetensorError)


@dataclass(frozen=True)
class LoadedModel:
    """An open_clip model (CLIP, CustomTextCLIP or CoCa) in inference mode on the CPU.

    Args:
        tokenizer: Turns texts into int64 tokens [K, context].
        architecture: open_clip's model config.
        mean, std: RGB normalisation on [0, 1].
        style: How crops are to be cut.
    """

    model: Any
    tokenizer: Callable[[list[str]], Tensor]
    architecture: dict[str, Any]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    style: CropStyle


def load_model(config: TeacherConfig) -> LoadedModel:
    """Load the model of a teacher's settings.

    Raises:
        UserError: an unknown name or tag, a missing folder, file or network, weights that do not fit, or an activation
            that the weights were not trained with.
    """
    architecture = read_architecture(config)
    _check_weights_named(config, architecture)
    is_local = config.model.startswith(LOCAL_DIR)
    source = f"{LOCAL_DIR}{find_local(config.model)}" if is_local else config.model
    with torch.random.fork_rng(devices=[]), _unlogged(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.manual_seed(RANDOM_SEED)
        try:
            if config.pretrained == RANDOM:
                model, _, _ = open_clip.create_model_and_transforms(source, load_weights=False)
            else:
                # Unlike its sibling, this one does not go on with random weights where none were found.
                model, _ = open_clip.create_model_from_pretrained(source, config.pretrained)
            tokenizer = open_clip.get_tokenizer(source, **_tokenizer_paths(config, architecture))
        except LOADING_FAILS as error:
            raise UserError(
                f"the teacher {config.model} cannot be loaded",
                where=_where(config),
                got=" ".join(str(error).split())[:300] or type(error).__name__,
                fix="check teacher.model and teacher.pretrained; without a network, point them at local files",
            ) from None
        except ImportError as error:
            raise UserError(
                f"the teacher {config.model} needs a package that is not installed",
                where=_where(config),
                got=error,
                fix="pip install transformers" if "transformers" in str(error) else "install it",
            ) from None
    mismatch = [str(w.message) for w in caught if "QuickGELU mismatch" in str(w.message)]
    if mismatch:
        raise UserError("the activation is not the one of the weights", where=_where(config), got=mismatch[0])
    preprocess = model.visual.preprocess_cfg
    size = preprocess["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise UserError("the teacher's input is not square", where=_where(config), got=f"{height} x {width}")
    mean, std = (tuple(float(value) for value in preprocess[name]) for name in ("mean", "std"))
    style = CropStyle(
        size_px=height,
        fill_rgb=tuple(round(255 * value) for value in mean),  # type: ignore[arg-type]
        interpolation="bilinear" if preprocess["interpolation"] == "bilinear" else "bicubic",
        resize_mode=preprocess.get("resize_mode") or "shortest",
    )
    model.eval().requires_grad_(False)
    return LoadedModel(model, tokenizer, architecture, mean, std, style)  # type: ignore[arg-type]


def read_architecture(config: TeacherConfig) -> dict[str, Any]:
    """Return the model config of a teacher, without any weights.

    Raises:
        UserError: an unknown name, a folder without a config, or a hub that does not answer.
    """
    name = config.model
    if name.startswith(LOCAL_DIR):
        file = find_local(name) / CONFIG_FILE
        try:
            architecture = json.loads(file.read_text(encoding="utf-8"))["model_cfg"]
        except FileNotFoundError:
            raise UserError(
                "this is no folder of an open_clip model",
                where=file.parent,
                expected=CONFIG_FILE,
                fix="check teacher.model",
            ) from None
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise UserError("this is no open_clip model config", where=file, got=error) from None
        return architecture
    if name.startswith(HF_HUB):
        try:
            with _unlogged():
                return open_clip.get_model_config(name)
        except Exception as error:
            # The hub's client raises classes of its own; whichever it is, the model is out of reach.
            raise UserError(
                "the model cannot be fetched from the hub",
                where=f"teacher.model {name}",
                got=" ".join(str(error).split())[:200],
                fix="check the name and the network, or download the repository and use local-dir:",
            ) from None
    architecture = open_clip.get_model_config(name)
    if architecture is None:
        known = {model for model, _ in open_clip.list_pretrained()}
        raise UserError(
            "open_clip has no such model",
            where="teacher.model",
            expected=f"{nearest(name, known)}; or {HF_HUB}owner/name; or {LOCAL_DIR}folder",
            got=name,
        )
    return architecture


def _check_weights_named(config: TeacherConfig, architecture: dict[str, Any]) -> None:
    """Raise unless exactly one key names the weights, and they were trained with the model's activation."""
    name, pretrained = config.model, config.pretrained
    if name.startswith((LOCAL_DIR, HF_HUB)):
        if pretrained not in (None, RANDOM):
            raise UserError(
                "the weights are named twice",
                where=f"teacher.pretrained {pretrained}",
                expected=f"null, since {name} holds its weights (or {RANDOM})",
            )
        folder = find_local(name)
        found = [p for p in folder.iterdir() if p.suffix in WEIGHT_SUFFIXES] if name.startswith(LOCAL_DIR) else [folder]
        if pretrained is None and not found:
            raise UserError(
                "the folder holds no weights", where=folder, expected=" or ".join(f"*{s}" for s in WEIGHT_SUFFIXES)
            )
        return
    tags = sorted(tag for model, tag in open_clip.list_pretrained() if model == name)
    if pretrained is None:
        raise UserError(
            f"the weights of {name} are not named",
            where="teacher.pretrained",
            expected=f"one of {', '.join(tags) or 'no published tag'}; a weight file; or {RANDOM}",
        )
    if pretrained == RANDOM:
        return
    if pretrained in tags:
        twin = f"{name}-quickgelu"
        if not architecture.get("quick_gelu") and (twin, pretrained) in open_clip.list_pretrained():
            raise UserError(
                f"the weights {pretrained} were trained with QuickGELU, which {name} does not have",
                where="teacher.model",
                expected=twin,
                got=name,
                fix=f"set teacher.model to {twin}",
            )
        return
    if not Path(pretrained).is_file():
        raise UserError(
            f"{name} has no such weights",
            where="teacher.pretrained",
            expected=f"{nearest(pretrained, tags) if tags else 'no published tag'}; a weight file; or {RANDOM}",
            got=pretrained,
        )


def _tokenizer_paths(config: TeacherConfig, architecture: dict[str, Any]) -> dict[str, str]:
    """Return the word list in the model's folder by absolute path: open_clip looks in the working directory."""
    bpe_path = architecture.get("text_cfg", {}).get("tokenizer_kwargs", {}).get("bpe_path")
    if bpe_path is None or not config.model.startswith(LOCAL_DIR):
        return {}
    file = (find_local(config.model) / bpe_path).absolute()
    if not file.is_file():
        raise UserError("the tokenizer's word list is missing", where=file, fix="copy it into the model's folder")
    return {"bpe_path": str(file)}


@contextmanager
def _unlogged() -> Iterator[None]:
    """Silence libraries, whose reports of a failed download become one error of ours."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _where(config: TeacherConfig) -> str:
    return f"teacher {config.model}" + (f", pretrained {config.pretrained}" if config.pretrained else "")


TEXT_BATCH = 64
"""Texts of one forward pass."""


class TextSide:
    """A frozen open_clip model without its image tower; raises as `load_model`."""

    def __init__(self, config: TeacherConfig, device: str) -> None:
        loaded = load_model(config)
        # One hash for the whole teacher, so that it can be compared with what the base pass says of it.
        self._sha256 = weights_sha256(loaded.model)
        del loaded.model.visual
        self._model, self._tokenizer = loaded.model.to(device), loaded.tokenizer
        self._device = torch.device(device)
        self.width = int(loaded.architecture["embed_dim"])

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Float32[Tensor, "n D"]:
        """Return the unit-norm embeddings of texts, cut at the model's context length, in fp32 on the CPU."""
        if not texts:
            return torch.zeros(0, self.width)
        tokens = self._tokenizer(list(texts))
        parts = [self._model.encode_text(chunk.to(self._device)).float() for chunk in tokens.split(TEXT_BATCH)]
        return functional.normalize(torch.cat(parts), dim=-1).cpu()

    def provenance(self) -> dict[str, object]:
        return {"name": "open_clip", "weights_sha256": self._sha256, "batch_size": TEXT_BATCH}
