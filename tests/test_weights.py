"""Weight files that are not ours."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hoi.weights import load_weights, read_weights, weights_sha256
from tests.fakes.pipelines import refused


def test_a_state_dict_survives_every_kind_of_file(tmp_path: Path) -> None:
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    save_file(source.state_dict(), tmp_path / "a.safetensors")
    torch.save(source.state_dict(), tmp_path / "b.pth")
    torch.save({"state_dict": source.state_dict(), "epoch": 3}, tmp_path / "c.pt")
    for name in ("a.safetensors", "b.pth", "c.pt"):
        load_weights(target, read_weights(tmp_path / name), name)
        assert weights_sha256(target) == weights_sha256(source)
        nn.init.zeros_(target.weight)


@pytest.mark.parametrize("keys", [(), ("state_dict",), ("model",), ("model_state_dict",), ("model", "state_dict")])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "clip.", "_orig_mod.", "module._orig_mod.", "model.clip."])
def test_weights_are_found_under_the_usual_names(tmp_path: Path, keys: tuple[str, ...], prefix: str) -> None:
    plain = nn.Linear(3, 2).state_dict()
    state = {prefix + name: value for name, value in plain.items()}
    for key in keys:
        state = {key: state, "epoch": 3}
    torch.save(state, tmp_path / "a.pth")
    read = read_weights(tmp_path / "a.pth")
    assert read.keys() == plain.keys()
    assert torch.equal(read["weight"], plain["weight"])


def torchscript(module: nn.Module, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module), str(path))


def test_a_torchscript_archive_is_read_without_its_code(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.Sequential(nn.BatchNorm1d(2))).half()
    module.register_buffer("input_resolution", torch.tensor(224))
    torchscript(module, tmp_path / "a.pt")
    expected, read = module.state_dict(), read_weights(tmp_path / "a.pt")
    assert {name: (value.dtype, value.tolist()) for name, value in read.items()} == {
        name: (value.dtype, value.tolist()) for name, value in expected.items()
    }
    with zipfile.ZipFile(tmp_path / "a.pt") as archive, zipfile.ZipFile(tmp_path / "b.pt", "w") as other:
        for name in archive.namelist():
            content = archive.read(name)
            other.writestr(name, content[:1] if "/data/0" in name else b"" if "/code/" in name else content)
    assert refused(read_weights, tmp_path / "b.pt").got == "a tensor has another size than its data"
    with (
        zipfile.ZipFile(tmp_path / "b.pt") as archive,
        zipfile.ZipFile(tmp_path / "c.pt", "w", zipfile.ZIP_DEFLATED) as c,
    ):
        for name in archive.namelist():
            c.writestr(name, archive.read(name))
    assert "compressed" in str(refused(read_weights, tmp_path / "c.pt").got)


def test_weights_are_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    for name in ("pipe.pth", "zero.safetensors"):
        assert refused(read_weights, tmp_path / name).what == "this is no regular file"


def test_what_is_no_weight_or_fits_nothing_is_named(tmp_path: Path) -> None:
    torch.save({"optimizer": {}, "epoch": 3}, tmp_path / "a.pth")
    assert refused(read_weights, tmp_path / "a.pth").got == "the keys optimizer, epoch"
    error = refused(load_weights, nn.Linear(3, 2), {"weights": torch.zeros(2, 3), "bias": torch.zeros(2)}, "here")
    assert (error.expected, error.got) == ("weight, which the file lacks", "weights, which the model lacks")
    state = {"weight": torch.full((2, 3), torch.nan), "bias": torch.zeros(2)}
    error = refused(load_weights, nn.Linear(3, 2), state, "here")
    assert (error.what, error.where) == ("a weight is not finite", "here, weight")


def test_the_hash_sees_values_names_and_types() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    hashes = {weights_sha256(layer), weights_sha256(nn.Sequential(layer)), weights_sha256(nn.Linear(3, 2))}
    hashes.add(weights_sha256(layer.half()))
    assert len(hashes) == 4


def test_a_missing_or_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(b"\x40\x00\x00\x00\x00\x00\x00\x00{")
    (tmp_path / "code.pth").write_bytes(pickle.dumps(Path("/somewhere"), protocol=2))
    torch.save([1, 2], tmp_path / "list.pth")
    for name, what in (
        ("nothing.pth", "there is no such file"),
        ("cut.safetensors", "cannot be read"),
        ("code.pth", "no plain state dict"),
        ("list.pth", "no state dict"),
    ):
        assert what in str(refused(read_weights, tmp_path / name))


def test_weights_that_do_not_fit_name_the_tensor() -> None:
    error = refused(load_weights, nn.Linear(3, 2), nn.Linear(4, 2).state_dict(), "here")
    assert ("do not fit a Linear" in error.what, error.where) == (True, "here")
    assert "size mismatch for weight" in str(error.got)
