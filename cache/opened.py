"""A complete pass of a split, opened for reading: the base pass, or a further one beside it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np

from cache.fingerprint import refuse_other_settings, settings_of_pass
from cache.index import BUILD, LazyShard, SplitIndex, open_index
from cache.layout import is_over, plan_over
from cache.manifest import Manifest, has_all_files, read_manifest
from cache.passes import Pass, passes_in
from cache.schema import Field, shape_of
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
            fix=f"ask for it under {'teacher' if self.manifest.of.is_base else 'vllms'}, then {BUILD}",
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
            fix=f"describe it under vllms.{of.name} in the pipeline file, then {BUILD}",
        )
    manifest = read_manifest(folder, of)
    if manifest is None or not has_all_files(folder, manifest):
        raise UserError(f"{of.title} is not complete", where=folder, fix=BUILD)
    if manifest.bank.parts.get("base") != base.bank.fingerprint or not is_over(plan_over(base, folder, of), manifest):
        raise UserError(
            f"{of.title} was made over other shards of the base pass", where=folder, fix="make cache-repair"
        )
    if config is not None and of.name in config.vllms:
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
