"""Weight files that are not ours."""

from __future__ import annotations

import pickle
from pathlib import Path

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
        ("nothing.pth", "no such weight file"),
        ("cut.safetensors", "cannot be read"),
        ("code.pth", "no plain state dict"),
        ("list.pth", "no state dict"),
    ):
        assert what in str(refused(read_weights, tmp_path / name))


def test_weights_that_do_not_fit_name_the_tensor() -> None:
    error = refused(load_weights, nn.Linear(3, 2), nn.Linear(4, 2).state_dict(), "here")
    assert ("do not fit a Linear" in error.what, error.where) == (True, "here")
    assert "size mismatch for weight" in str(error.got)
