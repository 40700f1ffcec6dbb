"""Read weight files without running pickled code, fill models with them, and identify them by hash."""

from __future__ import annotations

import hashlib
import io
import pickle
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hoi.errors import UserError
from hoi.files import open_file

RANDOM = "random"
"""Name of weights for a model that is needed for its shapes alone."""
RANDOM_SEED = 0
"""Fixed, so that a cache made with random weights can be reproduced."""
CONTAINERS = ("state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "model.", "clip.", "_orig_mod.")
"""Under which other programs write a model's tensors, and what they put before the names."""
MAX_PARTS, MAX_DEPTH = 100_000, 100
"""Tensors and modules of a TorchScript archive, and their depth."""
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
DAMAGED = (
    *(SafetensorError, RuntimeError, ValueError, EOFError, OSError, LookupError, TypeError, AttributeError),
    *(ArithmeticError, MemoryError, AssertionError, pickle.PickleError, zipfile.BadZipFile),
)
"""What the readers of damaged weight files raise."""


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
    """Return the state dict of a `.safetensors` file, or of a `.pt` or `.pth`, as `torch.save` or TorchScript wrote it.

    It may lie under `CONTAINERS`; `PREFIXES` that all names have are taken off.

    Raises UserError: no such file, no regular one, or one without weights that can be read safely.
    """
    with open_file(path, "a weight file"):
        pass
    try:
        if path.suffix == ".safetensors":
            return _unwrapped(load_file(path), path)
        root = _torchscript_root(path)
        state = _TorchScript(path, root).state() if root else torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        expected, fix = "tensors by name (it is read with weights_only)", "save it as .safetensors"
        what = "the weight file is no plain state dict"
        raise UserError(what, where=path, expected=expected, got=first_line(error), fix=fix) from None
    except DAMAGED as error:
        raise UserError("the weight file cannot be read", where=path, got=first_line(error)) from None
    return _unwrapped(state, path)


def _unwrapped(state: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(state, dict) and (inner := [name for name in CONTAINERS if isinstance(state.get(name), dict)]):
        state = state[inner[0]]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        got = f"the keys {_some(state)}" if isinstance(state, dict) else type(state).__name__
        expected = f"tensors by name, as they are or under {', '.join(CONTAINERS)}"
        raise UserError("the weight file is no state dict", where=path, expected=expected, got=got)
    state = {str(name): value for name, value in state.items()}
    while prefixes := [prefix for prefix in PREFIXES if state and all(name.startswith(prefix) for name in state)]:
        state = {name.removeprefix(prefixes[0]): value for name, value in state.items()}
    return state


def load_weights(module: nn.Module, state: dict[str, Tensor], where: object) -> None:
    """Load a state dict; raise a `UserError` that names tensors missing, left over, of another shape or not finite."""
    try:
        missing, left_over = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        reasons = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        what = f"the weights do not fit a {type(module).__name__}"
        raise UserError(what, where=where, got=reasons[0][:200]) from None
    check_loaded(module, missing, left_over, where)


def check_loaded(module: nn.Module, missing: Sequence[str], left_over: Sequence[str], where: object) -> None:
    """Raise a UserError if a model misses weights, its file held others, or one is not finite."""
    if missing or left_over:
        raise UserError(
            f"the weights do not fit a {type(module).__name__}",
            where=where,
            expected=f"{_some(missing)}, which the file lacks" if missing else None,
            got=f"{_some(left_over)}, which the model lacks" if left_over else "no other tensors",
        )
    for name, value in module.state_dict().items():
        if value.is_floating_point() and not value.is_meta and not value.isfinite().all():
            raise UserError("a weight is not finite", where=f"{where}, {name}", expected="finite numbers")


def _some(names: Iterable[Any]) -> str:
    names = [str(name)[:60] for name in names]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "nothing"


def _torchscript_root(path: Path) -> str:
    """Return the folder inside a TorchScript archive, and nothing for any other file."""
    if not zipfile.is_zipfile(path):
        return ""
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            # Of what is read torch compresses nothing, so that a file cannot unpack to more than it is.
            if info.compress_type != zipfile.ZIP_STORED and info.filename.split("/")[1:2] != ["code"]:
                raise ValueError(f"{info.filename} in it is compressed")
        roots = [name.split("/")[0] for name in archive.namelist() if name.split("/")[1:] == ["constants.pkl"]]
    return f"{roots[0]}/" if roots else ""


class _Inert:
    """An object of a TorchScript archive: its attributes alone. Neither its class nor its code is looked at."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _TorchScript(pickle.Unpickler):
    """Reads the tensors of a TorchScript archive, which `torch.jit.load` would not do without running its code."""

    def __init__(self, path: Path, root: str) -> None:
        self._archive, self._root = zipfile.ZipFile(path), root
        self._storages: dict[str, Tensor] = {}
        super().__init__(io.BytesIO(self._bytes("data.pkl")))

    def state(self) -> dict[str, Tensor]:
        with self._archive:
            found: dict[str, Tensor] = {}
            ahead = [("", self.load())]
            while ahead:
                prefix, part = ahead.pop()
                content = part.state if isinstance(part, _Inert) else None
                for name, value in content.items() if isinstance(content, dict) else ():
                    if isinstance(value, Tensor):
                        found[f"{prefix}{name}"] = value
                    elif isinstance(value, _Inert):
                        ahead.append((f"{prefix}{name}.", value))
                if len(found) + len(ahead) > MAX_PARTS or prefix.count(".") > MAX_DEPTH:
                    raise ValueError("it has too many parts")
            return found

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Inert
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: storage.as_strided(size, stride, offset)
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if module == "torch.jit._pickle" and name in ("build_intlist", "build_doublelist", "build_boollist"):
            return list
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        raise UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, key: Any) -> Tensor:
        _, dtype, name, _, number = key
        if name not in self._storages:
            content = bytearray(self._bytes(f"data/{name}"))
            if not isinstance(dtype, torch.dtype) or len(content) != number * dtype.itemsize:
                raise ValueError("a tensor has another size than its data")
            self._storages[name] = torch.frombuffer(content, dtype=dtype) if content else torch.zeros(0, dtype=dtype)
        return self._storages[name]

    def _bytes(self, name: str) -> bytes:
        return self._archive.read(self._root + name)


def first_line(error: BaseException) -> str:
    """Return the first line of what a library says, at most 200 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
