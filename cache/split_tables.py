"""Where the fields of a split lie: its base pass and the further ones that are asked for, mapped, joined in memory, or
kept on a device.

A field is named as students name it: `spatial_map` of the base pass, `coca/vllm_scores` of a further one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch

from cache.gather import JoinedTables, Kind, MappedTables, Tables, Template
from cache.opened import OpenedPass, open_further
from cache.passes import BASE, Pass, split_name
from hoi.config import PipelineConfig

SHARE_OF_GPU = 0.5
"""A split's features, and each further field, are kept on a GPU if they take at most this share of its free memory."""


class SplitTables:
    """All fields of one split.

    Args:
        base: Its base pass.
        is_mapped: Whether rows stay on disk until they are touched.
        config: The pipeline file that is run now, for further passes to agree with; None for any.
    """

    def __init__(self, base: OpenedPass, is_mapped: bool, config: PipelineConfig | None) -> None:
        self.is_mapped = is_mapped
        self._base, self._config = base, config
        self._passes = {BASE: base}
        self._on: dict[torch.device, JoinedTables] = {}
        self._kept: dict[tuple[str, torch.device], bool] = {}

    @property
    def here(self) -> Tables:
        """The fields as they lie by themselves: mapped, or joined in memory."""
        return self._mapped if self.is_mapped else self._joined

    def on(self, device: torch.device) -> JoinedTables:
        """The fields on a device, each put there when it is first asked for."""
        if device.type == "cpu":
            return self._joined
        if device not in self._on:
            self._on[device] = JoinedTables(self._shard_rows, self._base.num_shards, device)
        return self._on[device]

    def whole(self, name: str) -> np.ndarray:
        """All rows of a field, as on disk; no copy where fields are joined in memory."""
        if self.is_mapped:
            return np.concatenate([self._shard_rows(shard, name) for shard in range(self._base.num_shards)])
        return self._joined.whole(name).numpy()

    def further(self, names: Sequence[str], device: torch.device | None) -> dict[str, tuple[Kind, Tables]]:
        """Fields of images or pairs to which of the two they are of, and where they are taken from.

        Args:
            names: Of any pass; one that was not asked for before is opened.
            device: Where fields are kept; one that has no room there comes from where it lies by itself.

        Raises:
            UserError: there is no such pass or field; see `open_further` and `OpenedPass.extra`.
        """
        found: dict[str, tuple[Kind, Tables]] = {}
        for name in names:
            of, own = split_name(name)
            kind: Kind = "image" if self._opened(of).extra(own).rows == "image" else "pair"
            found[name] = (kind, self.here if device is None or not self._fits(name, device) else self.on(device))
        return found

    def num_bytes(self, name: str) -> int:
        """What all rows of a field take."""
        of, own = split_name(name)
        field = self._opened(of).fields[own]
        dtype, shape = self._template(name)
        offsets = self._base.index.columns
        num_images = len(offsets["detection_offsets"]) - 1
        num_rows = num_images if field.rows == "image" else int(offsets[f"{field.rows}_offsets"][-1])
        return num_rows * dtype.itemsize * math.prod(shape)

    def _fits(self, name: str, device: torch.device) -> bool:
        """Whether a field is put on a device whole, found out when it is first asked for."""
        if (name, device) not in self._kept:
            free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
            self._kept[name, device] = free is None or self.num_bytes(name) <= SHARE_OF_GPU * free
        return self._kept[name, device]

    def _opened(self, of: Pass) -> OpenedPass:
        if of not in self._passes:
            self._passes[of] = open_further(self._base.folder, of, self._base.manifest, self._config)
        return self._passes[of]

    @cached_property
    def _joined(self) -> JoinedTables:
        return JoinedTables(self._shard_rows, self._base.num_shards)

    @cached_property
    def _mapped(self) -> MappedTables:
        columns = self._base.index.columns
        images = columns["shard_offsets"]
        starts: dict[Kind, np.ndarray] = {
            "image": images,
            "detection": columns["detection_offsets"][images],
            "pair": columns["pair_offsets"][images],
        }
        return MappedTables(self._shard_rows, starts, self._template)

    def _shard_rows(self, shard: int, name: str) -> np.ndarray:
        of, own = split_name(name)
        return self._opened(of).rows(shard, own)

    def _template(self, name: str) -> Template:
        of, own = split_name(name)
        return self._opened(of).template(own)
