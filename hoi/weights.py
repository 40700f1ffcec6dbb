"""Read weight files without running pickled code, fill models with them, and identify them by hash."""

from __future__ import annotations

import hashlib
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hoi.errors import UserError

RANDOM = "random"
"""Name of weights for a model that is needed for its shapes alone."""
RANDOM_SEED = 0
"""Fixed, so that a cache made with random weights can be reproduced."""


def weights_sha256(module: nn.Module) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of all parameters and buffers.

    Hashing what was loaded gives one value for a tag, a download and a local file of the same weights.
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the state dict of a `.safetensors` file, or of a `.pt` or `.pth` of tensors alone.

    Raises UserError: the file is missing, or has no weights that can be read safely.
    """
    if not path.is_file():
        raise UserError("there is no such weight file", where=path, fix="check the path")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, ValueError, EOFError, OSError, KeyError) as error:
        raise UserError("the weight file cannot be read", where=path, got=_first_line(error)) from None
    except UnpicklingError as error:
        expected, fix = "tensors by name (it is read with weights_only)", "save it as .safetensors"
        what = "the weight file is no plain state dict"
        raise UserError(what, where=path, expected=expected, got=_first_line(error), fix=fix) from None
    if isinstance(state, dict) and isinstance(state.get("state_dict", state.get("model")), dict):
        state = state.get("state_dict", state.get("model"))
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError("the weight file is no state dict", where=path, expected="tensors by name")
    return state


def load_weights(module: nn.Module, state: dict[str, Tensor], where: object) -> None:
    """Load a state dict; raise a `UserError` that names the first tensor missing, left over or of another shape."""
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        reasons = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        what = f"the weights do not fit a {type(module).__name__}"
        raise UserError(what, where=where, got=reasons[0][:200]) from None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
