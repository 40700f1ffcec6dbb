"""Which cache a config speaks of: the one door through which training and evaluation reach it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from hoi.cache.fingerprint import refuse_other_settings, refuse_replaced_files, request_parts, settings_parts
from hoi.cache.index import BUILD
from hoi.cache.manifest import (
    BANK_NAME,
    INDEX_NAME,
    MANIFEST_NAME,
    Manifest,
    has_all_files,
    read_manifest,
)
from hoi.cache.plan import is_complete, plan_split
from hoi.cache.read.batches import BatchMaker
from hoi.cache.read.opened import OpenedPass, SplitTables
from hoi.cache.schema import READABLE
from hoi.cache.shard import Header, read_header, read_text
from hoi.config import PipelineConfig
from hoi.errors import UserError
from hoi.machine import free_memory_bytes
from hoi.records import PairBatch, TextBank, VisualHead
from hoi.vocabulary import Vocabulary

Mode = Literal["auto", "memory", "mapped"]

SHARE_OF_MEMORY = 0.5
"""`auto` loads a split whose tables take less than this share of the memory that is free."""
PLANNED_IMAGES = 512
"""Images of an epoch whose rows are worked out at once, before their features are read batch by batch."""


class CacheSplit:
    """One complete split, opened for reading. `open` makes it.

    Tables keep their dtype on disk; batches are float32.
    """

    def __init__(self, folder: Path, manifest: Manifest, mode: Mode, config: PipelineConfig | None) -> None:
        self.folder = folder
        self.manifest = manifest
        self._mode, self._config = mode, config
        size = sum(shard.num_bytes for shard in manifest.shards)
        self.is_mapped = mode == "mapped" or (mode == "auto" and size > SHARE_OF_MEMORY * free_memory_bytes())
        base = OpenedPass(folder, manifest)
        self._index = base.index
        self._tables = SplitTables(base, self.is_mapped, config)
        self._makers: dict[torch.device | None, BatchMaker] = {}

    @classmethod
    def open(
        cls,
        folder: str | Path,
        split: str,
        expected_fingerprint: str | None = None,
        mode: Mode = "auto",
        config: PipelineConfig | None = None,
    ) -> CacheSplit:
        """A split's folder to its reader: manifest, index, and the sizes of all files; no shard is opened yet.

        A shard is checked to be the manifest's when a row of it is first touched, which raises the same errors.

        Args:
            folder: The cache's folder, `cache.folder` of the config.
            split: Name of the split, a folder below it.
            expected_fingerprint: What the cache must have been made with, or None for whatever it is.
            mode: `memory`, `mapped`, or `auto` by size.
            config: The pipeline file that is run now, whose settings the cache must have been made with; None for any.

        Raises:
            UserError: there is no cache, it is not complete, damaged, of another schema version or fingerprint.
        """
        path = Path(folder) / split
        manifest = read_manifest(path)
        if manifest is None or manifest.index is None:
            what = "there is no teacher cache" if not path.is_dir() else "this teacher cache is not complete"
            expected = MANIFEST_NAME if manifest is None else INDEX_NAME
            raise UserError(what, where=path, expected=expected, got="none", fix=BUILD)
        if expected_fingerprint is not None and manifest.bank.fingerprint != expected_fingerprint:
            raise UserError(
                "this cache was made with other settings",
                where=path,
                expected=f"fingerprint {expected_fingerprint}",
                got=manifest.bank.fingerprint,
                fix=BUILD,
            )
        if config is not None:
            made_with, now = manifest.made_with["config"], config.model_dump(mode="json")
            refuse_other_settings(path, settings_parts(made_with, split), settings_parts(now, split))
            refuse_replaced_files(path, manifest.bank.request, now)
        if not has_all_files(path, manifest):
            raise UserError("a file of this teacher cache is missing or has another size", where=path, fix=BUILD)
        return cls(path, manifest, mode, config)

    def __reduce__(self) -> tuple[Callable[..., CacheSplit], tuple[Any, ...]]:
        """Opens anew in another process, instead of sending tables there."""
        return CacheSplit.open, (self.folder.parent, self.folder.name, self.fingerprint, self._mode, self._config)

    @property
    def fingerprint(self) -> str:
        """Hash over all that changed what is cached."""
        return self.manifest.bank.fingerprint

    @property
    def attributes(self) -> dict[str, Any]:
        """The readable parts of the fingerprint."""
        return self.manifest.bank.parts

    @property
    def axes(self) -> dict[str, int]:
        """Size of every letter: K, D, M, L, and C, H, W where there are spatial maps."""
        return self.manifest.bank.axes

    @property
    def num_images(self) -> int:
        return self.manifest.num_images

    @property
    def num_pairs(self) -> int:
        return int(self.pair_offsets[-1])

    @cached_property
    def image_ids(self) -> list[str]:
        """n stable keys; unreadable images keep their row. Made when first asked for: a million of them take 70 MB."""
        return read_text(self._index.columns["image_id"])

    @cached_property
    def is_readable(self) -> np.ndarray:
        """bool [n]: False for an image that could not be read; it has no detection and no pair."""
        return self._index.columns["status"] == READABLE

    @property
    def size_hw(self) -> np.ndarray:
        """int32 [n, 2], pixels; mapped."""
        return self._index.columns["size_hw"]

    @property
    def detection_offsets(self) -> np.ndarray:
        """int64 [n + 1]: rows of the detection tables; mapped."""
        return self._index.columns["detection_offsets"]

    @property
    def pair_offsets(self) -> np.ndarray:
        """int64 [n + 1]: rows of the pair tables; mapped."""
        return self._index.columns["pair_offsets"]

    @cached_property
    def pair_image(self) -> np.ndarray:
        """int64 [P]: the row of the split that each pair belongs to."""
        return np.repeat(np.arange(self.num_images), np.diff(self.pair_offsets))

    @cached_property
    def pairs_ho(self) -> np.ndarray:
        """int64 [P, 2]: the human and the object of each pair, as rows of the split's detection tables."""
        return self.table("pairs_ho") + self.detection_offsets[self.pair_image][:, None]

    @cached_property
    def boxes_xyxy(self) -> np.ndarray:
        """float32 [N, 4]."""
        return self.table("boxes_xyxy")

    @cached_property
    def scores(self) -> np.ndarray:
        """float32 [N]."""
        return self.table("scores")

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 [N], rows of the vocabulary's objects."""
        return self.table("labels").astype(np.int64)

    def table(self, name: str) -> np.ndarray:
        """A whole field of the split or, as `NAME/field`, of a further pass, as on disk; not for offsets and text.

        It is [n, ...], [N, ...] or [P, ...], and no copy in memory mode.
        """
        return self._tables.whole(name)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The names that the similarities are about."""
        return Vocabulary.from_dict(self._bank.json("vocabulary"))

    @cached_property
    def text_bank(self) -> TextBank:
        """The interaction texts and the teacher's scale."""
        attributes = self._bank.attributes
        return TextBank(
            self._bank.table("text_embedding"),
            attributes["logit_scale"],
            attributes.get("logit_bias"),
            tuple(tuple(texts) for texts in self._bank.json("prompts")),
            self._visual_head(),
        )

    def batch(self, image_rows: np.ndarray, extra: Sequence[str] = (), device: torch.device | None = None) -> PairBatch:
        """Rows of the split to a batch of their pairs, float32.

        Args:
            image_rows: int [B], readable images.
            extra: Further fields by name, for `PairBatch.extra`: `spatial_map`, `union_embedding`, ..., or of a further
                pass, whose index is opened then, `NAME/field`.
            device: Where fields are kept whole from the first batch on, for the batch to be made there; None for the
                CPU, from memory or mapped shards.

        Raises:
            ValueError: an image is unreadable.
            UserError: the cache lacks a field of `extra`, or the pass that it is of.
        """
        image_rows = np.asarray(image_rows, np.int64)
        if not self.is_readable[image_rows].all():
            raise ValueError("a batch asks for an unreadable image; take rows where `is_readable`")
        return next(self._maker(device).make([image_rows], self._tables.further(extra, device)))

    def batches(
        self,
        batch_images: int,
        rng: np.random.Generator | None = None,
        extra: Sequence[str] = (),
        device: torch.device | None = None,
    ) -> Iterator[PairBatch]:
        """Every readable image once, in batches; the last may be smaller.

        Args:
            batch_images: B.
            rng: Shuffles the images, or None for their own order.
            extra, device: As in `batch`.
        """
        rows = np.flatnonzero(self.is_readable)
        if rng is not None:
            rows = rng.permutation(rows)
        batches = [rows[start : start + batch_images] for start in range(0, len(rows), batch_images)]
        return self.batches_of(batches, extra, device)

    def batches_of(
        self, image_rows: Sequence[np.ndarray], extra: Sequence[str] = (), device: torch.device | None = None
    ) -> Iterator[PairBatch]:
        """The batches of the given images.

        Args:
            image_rows: int64 [B] each, readable images.
            extra, device: As in `batch`.
        """
        further = self._tables.further(extra, device)
        largest = max(map(len, image_rows), default=0)
        at_once = max(1, PLANNED_IMAGES // max(1, largest))
        for start in range(0, len(image_rows), at_once):
            yield from self._maker(device).make(image_rows[start : start + at_once], further)

    def num_bytes(self, name: str) -> int:
        """What all rows of a field take, `NAME/field` of a further pass."""
        return self._tables.num_bytes(name)

    def _maker(self, device: torch.device | None) -> BatchMaker:
        if device not in self._makers:
            here = self._tables.here
            there = here if device is None else self._tables.on(device)
            self._makers[device] = BatchMaker(
                self.size_hw, self.detection_offsets, self.pair_offsets, here, there, self.vocabulary.no_object_idx
            )
        return self._makers[device]

    def _visual_head(self) -> VisualHead | None:
        parts = [part.name for part in fields(VisualHead) if f"visual_{part.name}" in self._bank.locations]
        return VisualHead(**{name: self._bank.table(f"visual_{name}") for name in parts}) if parts else None

    @cached_property
    def _bank(self) -> Header:
        return read_header(self.folder / BANK_NAME)


def open_split(config: PipelineConfig, split: str) -> CacheSplit:
    """A split of the config's cache, made with the config's settings from the config's images.

    Raises:
        UserError: there is no such cache, it is not complete, or it was made with other settings or images.
    """
    is_complete(plan_split(config, split), request_parts(config))
    return CacheSplit.open(config.cache.folder, split)
