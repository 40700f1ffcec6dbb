"""Weights of models that are not ours: reading files without pickle's risks, and saying which weights they are."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hoi.errors import UserError

RANDOM = "random"
"""The weights of a model that is only there for its shapes."""
RANDOM_SEED = 0
"""Random weights are always the same ones, so that a cache made with them can be made again."""


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and bytes of all parameters and buffers, as loaded on the CPU.

    Hashing what was loaded, not its file, gives one value for a tag, a download and a local file of the same weights.
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def read_weights(path: Path) -> dict[str, Tensor]:
    """A weight file to its state dict; `.safetensors`, or a `.pt` or `.pth` of tensors alone.

    Raises:
        UserError: there is no such file, or it holds no weights that can be read safely.
    """
    if not path.is_file():
        raise UserError("there is no such weight file", where=path, fix="check the path")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, ValueError, EOFError, OSError, KeyError) as error:
        raise UserError("the weight file cannot be read", where=path, got=_first_line(error)) from None
    except Exception as error:
        # The unpickler of weights_only refuses with an error class that changed its home between torch releases.
        if type(error).__name__ != "UnpicklingError":
            raise
        raise UserError(
            "the weight file is no plain state dict",
            where=path,
            expected="tensors by name (it is read with weights_only)",
            got=_first_line(error),
            fix="save it as .safetensors",
        ) from None
    if isinstance(state, dict) and isinstance(state.get("state_dict", state.get("model")), dict):
        state = state.get("state_dict", state.get("model"))
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError("the weight file is no state dict", where=path, expected="tensors by name")
    return state


def load_weights(module: nn.Module, state: dict[str, Tensor], where: object) -> None:
    """Fills a model with a state dict that must fit it exactly.

    Raises:
        UserError: a tensor is missing, left over, or of another shape; the first is named.
    """
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        reasons = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        raise UserError(
            f"the weights do not fit a {type(module).__name__}", where=where, got=reasons[0][:200]
        ) from None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
