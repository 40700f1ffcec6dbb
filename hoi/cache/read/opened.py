"""A complete pass of a split, opened for reading: the base pass, or a further one beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from hoi.cache.fingerprint import refuse_other_settings, settings_of_pass
from hoi.cache.index import (
    BUILD,
    LazyShard,
    SplitIndex,
    open_index,
)
from hoi.cache.manifest import BASE, Manifest, Pass, has_all_files, passes_in, read_manifest, split_name
from hoi.cache.plan import is_over, plan_over
from hoi.cache.read.batches import (
    JoinedTables,
    Kind,
    MappedTables,
    Tables,
    Template,
)
from hoi.cache.schema import Field, shape_of
from hoi.config import PipelineConfig
from hoi.errors import UserError


class OpenedPass:
    """Where a pass's fields lie. Its index is mapped; a shard is opened when a row of it is first touched.

    Args:
        folder: Of the split.
        manifest: Of the pass, all of whose files are there.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self.index: SplitIndex = open_index(folder, manifest)
        self._shards = [LazyShard(folder, manifest, self.index, number) for number in range(len(manifest.shards))]

    @property
    def num_shards(self) -> int:
        return len(self._shards)

    @cached_property
    def fields(self) -> dict[str, Field]:
        """What a batch may take of it: fields of images, detections and pairs, but no texts."""
        known = (field for _, field in self.index.fields.values())
        return {f.name: f for f in known if f.rows in ("image", "detection", "pair") and not f.is_text}

    def rows(self, shard: int, name: str) -> np.ndarray:
        """A field's rows of one shard, mapped and read-only."""
        return self._shards[shard].rows(name)

    def template(self, name: str) -> tuple[np.dtype, tuple[int, ...]]:
        """dtype and shape of one row of a field."""
        field = self.fields[name]
        return np.dtype(field.dtype), shape_of(field, 0, self.manifest.bank.axes)[1:]

    def extra(self, name: str) -> Field:
        """A field of images or pairs, by its own name.

        Raises:
            UserError: the pass has no such field.
        """
        known = {own: field for own, field in self.fields.items() if field.rows in ("image", "pair")}
        if name in known:
            return known[name]
        title = "this cache" if self.manifest.of.is_base else self.manifest.of.title
        raise UserError(
            f"{title} has no field '{name}' of images or pairs",
            where=self.folder,
            expected=f"one of {', '.join(known)}",
            fix=f"ask for it under {'teacher' if self.manifest.of.is_base else 'vlms'}, then {BUILD}",
        )


def open_further(folder: Path, of: Pass, base: Manifest, config: PipelineConfig | None) -> OpenedPass:
    """A further pass of a split, beside its complete base pass.

    Args:
        folder: Of the split.
        of: Which pass.
        base: Manifest of the base pass.
        config: The pipeline file that is run now, with which the pass must agree if it names it; None for any.

    Raises:
        UserError: there is no such pass; it is not complete, or made with other settings or over other base shards.
    """
    known = passes_in(folder)
    if of not in known:
        raise UserError(
            f"the cache has no {of.title}",
            where=folder,
            expected=f"one of {', '.join(other.name for other in known)}" if known else "none is there",
            fix=f"describe it under vlms.{of.name} in the pipeline file, then {BUILD}",
        )
    manifest = read_manifest(folder, of)
    if manifest is None or not has_all_files(folder, manifest):
        raise UserError(f"{of.title} is not complete", where=folder, fix=BUILD)
    if manifest.bank.parts.get("base") != base.bank.fingerprint or not is_over(plan_over(base, folder, of), manifest):
        raise UserError(
            f"{of.title} was made over other shards of the base pass", where=folder, fix="make cache-repair"
        )
    if config is not None and of.name in config.vlms:
        made_with = settings_of_pass(manifest.made_with["config"], of.name)
        refuse_other_settings(folder, made_with, settings_of_pass(config.model_dump(mode="json"), of.name), of)
    return OpenedPass(folder, manifest)


def pass_fingerprints(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Further passes of a split to the fingerprints of what they were made with, by name.

    Raises:
        UserError: a pass is not there or not complete.
    """
    found = {}
    for name in sorted(names):
        manifest = read_manifest(folder, Pass(name))
        if manifest is None:
            raise UserError(f"the cache has no complete {Pass(name).title}", where=folder, fix=BUILD)
        found[name] = manifest.bank.fingerprint
    return found


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
