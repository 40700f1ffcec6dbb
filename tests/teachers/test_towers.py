"""Whole images and regions of every kind of image tower, with random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hoi.teachers.loading import load_model
from hoi.teachers.towers import open_tower
from tests.fakes.models import TOWERS, teacher_config
from tests.fakes.pipelines import refused

NATIVE = {kind: vision["image_size"] for kind, vision in TOWERS.items()}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: load_model(teacher_config(folder, kind)).model for kind in TOWERS}


def pixels(size: int) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(3))


def whole_box(size: int) -> Tensor:
    return torch.tensor([[row, 0, 0, size, size] for row in range(2)], dtype=torch.float32)


@pytest.mark.parametrize("kind", TOWERS)
@torch.inference_mode()
def test_a_whole_image_is_embedded_as_by_the_model(models: dict[str, Any], kind: str) -> None:
    size = NATIVE[kind]
    embedding, maps = open_tower(models[kind].visual, size, size).whole(pixels(size))
    torch.testing.assert_close(embedding, models[kind].encode_image(pixels(size)), rtol=1e-4, atol=1e-5)
    assert all(level.ndim == 4 and level.shape[0] == 2 for level in maps)


@pytest.mark.parametrize(
    ("kind", "level"),
    [("resnet", 0), ("resnet", 1), ("vit_average", 0), ("timm_convolution", 0), ("timm_map_pool", 0)],
)
@torch.inference_mode()
def test_the_region_of_the_whole_image_is_the_image(models: dict[str, Any], kind: str, level: int) -> None:
    # Where the pool sees nothing but the map; ViT's class token and CoCa's pool see the class token as well.
    size = NATIVE[kind]
    tower = open_tower(models[kind].visual, size, size)
    embedding, maps = tower.whole(pixels(size))
    region = tower.regions(maps, whole_box(size))[level]
    torch.testing.assert_close(region, embedding, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", TOWERS)
@torch.inference_mode()
def test_a_larger_image_has_a_larger_map(models: dict[str, Any], kind: str) -> None:
    size, model = NATIVE[kind], models[kind]
    before = model.encode_image(pixels(size))
    tower = open_tower(model.visual, 2 * size, size)
    embedding, maps = tower.whole(pixels(2 * size))
    features = tower.regions(maps, whole_box(2 * size))
    assert maps[-1].shape[-1] == 2 * open_tower(model.visual, size, size).whole(pixels(size))[1][-1].shape[-1]
    assert len(features) == len(tower.levels)
    assert all(feature.shape == embedding.shape == before.shape for feature in features)
    torch.testing.assert_close(model.encode_image(pixels(size)), before, rtol=0, atol=0)


@pytest.mark.parametrize("kind", TOWERS)
@torch.inference_mode()
def test_regions_read_their_own_place_of_their_own_image(models: dict[str, Any], kind: str) -> None:
    size = 2 * NATIVE[kind]
    tower = open_tower(models[kind].visual, size, NATIVE[kind])
    _, maps = tower.whole(pixels(size))
    half = size / 2
    rois = torch.tensor([[0, 0, 0, half, half], [0, half, half, size, size], [1, 0, 0, half, half]])
    changed = tuple(level.clone() for level in maps)
    for level in changed:
        level[0, :, 0, 0] += torch.linspace(-5, 5, level.shape[1])
    for before, after in zip(tower.regions(maps, rois), tower.regions(changed, rois), strict=True):
        moved = (before - after).abs().amax(-1) / before.abs().amax(-1)
        assert moved[0] > 1e-3
        assert moved[1:].max() < 1e-6
    # Regions without area are finite.
    rois = torch.tensor([[0, 5, 5, 5, 5], [0, 0, 0, 1, 1], [0, size, size, size, size], [0, 0, 0, 0, size]])
    assert all(feature.isfinite().all() for feature in tower.regions(maps, rois.float()))


@pytest.mark.parametrize(("kind", "multiple"), [("resnet", 32), ("vit", 16), ("timm_map_pool", 16)])
def test_a_size_that_the_tower_cannot_tile_is_refused(models: dict[str, Any], kind: str, multiple: int) -> None:
    error = refused(open_tower, models[kind].visual, 250, NATIVE[kind])
    assert error.where == "teacher.image_size_px"
    assert (error.expected, error.got) == (f"a multiple of {multiple}", 250)
