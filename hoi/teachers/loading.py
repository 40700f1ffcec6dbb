"""Load open_clip models, and refuse what open_clip would only warn of, log or ignore.

Only functions are used that both its releases and its main branch keep.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.nn import functional

from hoi.config import TeacherConfig
from hoi.crops import CropStyle
from hoi.errors import UserError, nearest
from hoi.files import HF_HUB, LOCAL_DIR, find_local
from hoi.teachers import CONFIG_FILE, read_local_config
from hoi.weights import DAMAGED, RANDOM, RANDOM_SEED, check_loaded, read_weights, weights_sha256

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
PREFERRED = (
    *("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin"),
    *("open_clip_pytorch_model.pth", "model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth"),
)
"""Weights in a `local-dir:` folder; where it has several, those that open_clip takes, the first ones first."""
OPENAI_KEYS = {"input_resolution", "context_length", "vocab_size"}
"""Numbers among the tensors of OpenAI's archives, and of nothing else."""
SLACK = 10_000_000
"""Numbers that a model may have beyond twice those of its weights."""
TEXT_BATCH = 64
"""Texts of one forward pass. Not padded: the texts of a vocabulary always come together."""


@dataclass(frozen=True)
class LoadedModel:
    """An open_clip model in inference mode on the CPU."""

    model: Any
    """CLIP, CustomTextCLIP or CoCa."""
    tokenizer: Callable[[list[str]], Tensor]
    architecture: dict[str, Any]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """RGB normalisation on [0, 1]."""
    style: CropStyle


def load_model(config: TeacherConfig) -> LoadedModel:
    """Return the model that a teacher section names.

    A UserError says of an unknown name or tag, a missing folder, file or network, weights that do not fit, or an
    activation that the weights were not trained with.
    """
    architecture = read_architecture(config)
    file = _weight_file(config, architecture)
    where = f"teacher {config.model}" + (f", pretrained {config.pretrained}" if config.pretrained else "")
    is_local = config.model.startswith(LOCAL_DIR)
    source = f"{LOCAL_DIR}{find_local(config.model)}" if is_local else config.model
    state = None if file is None or file.suffix in (".npy", ".npz") else read_weights(file)
    if state is not None and OPENAI_KEYS & state.keys():
        state = {name: value for name, value in state.items() if name not in OPENAI_KEYS}
        if not architecture.get("quick_gelu"):
            twin = _quickgelu_twin(config.model)
            what = f"these are OpenAI's weights, trained with QuickGELU, which {config.model} does not have"
            fix = f"set teacher.model to {twin}" if twin else f'set "quick_gelu": true in {CONFIG_FILE}'
            raise UserError(what, where=file, expected=twin, fix=fix)
    with torch.random.fork_rng(devices=[]), unlogged(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.manual_seed(RANDOM_SEED)
        try:
            model = _build(source, config, file, state)
            tokenizer = _load_tokenizer(source, config, architecture, where)
        except DAMAGED as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            fix = "check teacher.model and teacher.pretrained; without a network, point them at local files"
            raise UserError(f"the teacher {config.model} cannot be loaded", where=where, got=reason, fix=fix) from None
        except ImportError as error:
            fix = "pip install transformers" if "transformers" in str(error) else "install it"
            problem = f"the teacher {config.model} needs a package that is not installed"
            raise UserError(problem, where=where, got=error, fix=fix) from None
    # open_clip leaves some random weights uninitialised.
    if config.pretrained != RANDOM:
        check_loaded(model, (), (), where)
    for warning in caught:
        if "QuickGELU mismatch" in str(warning.message):
            raise UserError("the activation is not the one of the weights", where=where, got=warning.message)
    preprocess = model.visual.preprocess_cfg
    size = preprocess["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise UserError("the teacher's input is not square", where=where, got=f"{height} x {width}")
    mean = tuple(float(value) for value in preprocess["mean"])
    style = CropStyle(
        size_px=height,
        fill_rgb=tuple(round(255 * value) for value in mean),  # type: ignore[arg-type]
        interpolation="bilinear" if preprocess["interpolation"] == "bilinear" else "bicubic",
        resize_mode=preprocess.get("resize_mode") or "shortest",
    )
    std = tuple(float(value) for value in preprocess["std"])
    return LoadedModel(model.eval().requires_grad_(False), tokenizer, architecture, mean, std, style)  # type: ignore[arg-type]


def may_download(config: TeacherConfig) -> bool:
    """Return whether loading the model might download its weights."""
    tag = config.pretrained
    is_published = tag not in (None, RANDOM) and (config.model, tag) in open_clip.list_pretrained()
    return config.model.startswith(HF_HUB) or (is_published and not Path(str(tag)).is_file())


def read_architecture(config: TeacherConfig) -> dict[str, Any]:
    """Return the model config that a teacher's name stands for, without any weights.

    A UserError says of an unknown name, a folder without a config, or a hub that does not answer.
    """
    name = config.model
    if name.startswith(LOCAL_DIR):
        return read_local_config(name)
    if name.startswith(HF_HUB):
        try:
            with unlogged():
                return open_clip.get_model_config(name)
        except Exception as error:
            # The hub's client raises classes of its own; whichever it is, the model is out of reach.
            reason = " ".join(str(error).split())[:200]
            fix = "check the name and the network, or download the repository and use local-dir:"
            problem = "the model cannot be fetched from the hub"
            raise UserError(problem, where=f"teacher.model {name}", got=reason, fix=fix) from None
    architecture = open_clip.get_model_config(name)
    if architecture is None:
        known = nearest(name, {model for model, _ in open_clip.list_pretrained()})
        expected = f"{known}; or {HF_HUB}owner/name; or {LOCAL_DIR}folder"
        raise UserError("open_clip has no such model", where="teacher.model", expected=expected, got=name)
    return architecture


def activation_notice(config: TeacherConfig) -> str | None:
    """See `TeacherConfig.activation_notice`."""
    if (twin := _quickgelu_twin(config.model)) is None:
        return None
    return (
        f"{config.model} computes GELU: if {config.pretrained} was trained with QuickGELU, as OpenAI's, MetaCLIP's and "
        f"DFN's weights were, set teacher.model to {twin}"
    )


def _quickgelu_twin(name: str) -> str | None:
    twin = f"{name}-quickgelu"
    return twin if twin in open_clip.list_models() else None


def _build(source: str, config: TeacherConfig, file: Path | None, state: dict[str, Tensor] | None) -> Any:
    """Return a model with random, published or a file's weights; `state` is the file's content but of `.npz`."""
    if config.pretrained == RANDOM:
        return open_clip.create_model_and_transforms(source, load_weights=False)[0]
    if file is None:
        # Unlike its sibling, this one does not go on with random weights where none were found.
        return open_clip.create_model_from_pretrained(source, config.pretrained)[0]
    if state is not None:
        _check_size(source, state, file)
    model = open_clip.create_model(source, load_weights=False, pretrained_text=False)
    factory, read = open_clip.factory, open_clip.factory.load_state_dict
    # Of its loading only the conversions are wanted: the file is read already.
    factory.load_state_dict = read if state is None else lambda *_, **__: state
    try:
        keys = open_clip.load_checkpoint(model, str(file), strict=False)
    finally:
        factory.load_state_dict = read
    if keys:
        check_loaded(model, keys.missing_keys, keys.unexpected_keys, file)
    return model


def _check_size(source: str, state: dict[str, Tensor], file: Path) -> None:
    """Raise a UserError if a model is far larger than its weights, before anything of its size is allocated."""
    try:
        with torch.device("meta"):
            model = open_clip.create_model(source, load_weights=False, pretrained_text=False, device="meta")
    except DAMAGED:
        # Some models cannot be built without memory, and what is wrong with others is told when they are built.
        return
    wanted = sum(value.numel() for value in model.state_dict().values())
    # A tensor may show few numbers many times.
    parts = {value.untyped_storage().data_ptr(): value for value in state.values()}
    held = sum(value.untyped_storage().nbytes() // value.element_size() for value in parts.values())
    if wanted > 2 * held + SLACK:
        expected, got = f"{wanted} numbers, as {CONFIG_FILE} says", f"{held} in the file"
        raise UserError("the weights are smaller than the model", where=file, expected=expected, got=got)


def _load_tokenizer(source: str, config: TeacherConfig, architecture: dict[str, Any], where: str) -> Any:
    try:
        return open_clip.get_tokenizer(source, **_tokenizer_paths(config, architecture))
    except (ImportError, UserError):
        raise
    except Exception as error:
        # The hub's client raises classes of its own; whichever it is, the tokenizer is out of reach.
        name = architecture["text_cfg"].get("hf_tokenizer_name") or config.model
        got = " ".join(str(error).split())[:300] or type(error).__name__
        fix = f"run once with a network, or put the tokenizer of {name} into a folder and use {LOCAL_DIR}"
        raise UserError("the teacher's tokenizer cannot be loaded", where=where, got=got, fix=fix) from None


def _weight_file(config: TeacherConfig, architecture: dict[str, Any]) -> Path | None:
    """Return the file of the weights, None for published and random ones.

    Raises UserError: not exactly one key names the weights, or they were not trained with the model's activation.
    """
    name, pretrained, where = config.model, config.pretrained, "teacher.pretrained"
    if name.startswith((LOCAL_DIR, HF_HUB)):
        if pretrained not in (None, RANDOM):
            expected = f"null, since {name} holds its weights (or {RANDOM})"
            raise UserError("the weights are named twice", where=f"{where} {pretrained}", expected=expected)
        return _file_in(find_local(name)) if pretrained is None and name.startswith(LOCAL_DIR) else None
    published, twin = open_clip.list_pretrained(), f"{name}-quickgelu"
    tags = sorted(tag for model, tag in published if model == name)
    if pretrained is None:
        expected = f"one of {', '.join(tags) or 'no published tag'}; a weight file; or {RANDOM}"
        raise UserError(f"the weights of {name} are not named", where=where, expected=expected)
    if pretrained in tags:
        if not architecture.get("quick_gelu") and (twin, pretrained) in published:
            problem = f"the weights {pretrained} were trained with QuickGELU, which {name} does not have"
            raise UserError(problem, where="teacher.model", expected=twin, got=name, fix=f"set teacher.model to {twin}")
        return None
    if pretrained == RANDOM:
        return None
    if not Path(pretrained).is_file():
        expected = f"{nearest(pretrained, tags) if tags else 'no published tag'}; a weight file; or {RANDOM}"
        raise UserError(f"{name} has no such weights", where=where, expected=expected, got=pretrained)
    return Path(pretrained)


def _file_in(folder: Path) -> Path:
    names = sorted(path.name for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES)
    if not names:
        expected = " or ".join(f"*{suffix}" for suffix in WEIGHT_SUFFIXES)
        raise UserError("the folder holds no weights", where=folder, expected=expected)
    chosen = [name for name in PREFERRED if name in names] or names
    if len(chosen) > 1 and chosen == names:
        what, fix = "the folder holds several weight files", f"name the right one {PREFERRED[0]}, or remove the others"
        raise UserError(what, where=folder, expected="one of them", got=", ".join(names[:5]), fix=fix)
    return folder / chosen[0]


def _tokenizer_paths(config: TeacherConfig, architecture: dict[str, Any]) -> dict[str, str]:
    """Return the absolute path of a word list in the model's folder: open_clip looks in the working directory."""
    bpe_path = architecture.get("text_cfg", {}).get("tokenizer_kwargs", {}).get("bpe_path")
    if bpe_path is None or not config.model.startswith(LOCAL_DIR):
        return {}
    file = (find_local(config.model) / bpe_path).absolute()
    if not file.is_file():
        raise UserError("the tokenizer's word list is missing", where=file, fix="copy it into the model's folder")
    return {"bpe_path": str(file)}


@contextmanager
def unlogged() -> Iterator[None]:
    """Suppress log lines: what libraries report of a download that fails becomes one error of ours."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


@torch.inference_mode()
def encode_texts(model: Any, tokens: Int64[Tensor, "n T"], device: torch.device) -> Float32[Tensor, "n D"]:
    """Return the unit-norm embeddings of tokenised texts, in fp32 on the model's device."""
    parts = [model.encode_text(chunk.to(device)).float() for chunk in tokens.split(TEXT_BATCH)]
    return functional.normalize(torch.cat(parts), dim=-1)


class TextSide:
    """A frozen open_clip model without its image tower, which is let go as soon as the weights are hashed."""

    def __init__(self, config: TeacherConfig, device: str) -> None:
        loaded = load_model(config)
        # One hash for the whole teacher, so that it can be compared with what the base pass says of it.
        self._sha256 = weights_sha256(loaded.model)
        del loaded.model.visual
        self._model, self._tokenizer = loaded.model.to(device), loaded.tokenizer
        self._device = torch.device(device)
        self.width = int(loaded.architecture["embed_dim"])

    def encode(self, texts: Sequence[str]) -> Float32[Tensor, "n D"]:
        """Return the unit-norm embeddings of texts, cut at the model's context length, in fp32 on the CPU."""
        if not texts:
            return torch.zeros(0, self.width)
        return encode_texts(self._model, self._tokenizer(list(texts)), self._device).cpu()

    def provenance(self) -> dict[str, object]:
        """Return what decides the embeddings, in plain JSON types."""
        return {"name": "open_clip", "weights_sha256": self._sha256, "batch_size": TEXT_BATCH}
