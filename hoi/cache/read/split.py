"""A split of the cache, opened for reading. `open_split` is the one door through which students reach it.

Shapes: n images, N detections and P pairs of a split; B images of a batch; K interactions, D the teacher's joint width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from hoi.cache.manifest import Manifest, complete_manifest
from hoi.cache.plan import plan_split, refuse_other_config, refuse_other_request, refuse_replaced_files
from hoi.cache.read.batches import FEATURES, BatchMaker
from hoi.cache.read.opened import SHARE_OF_GPU, OpenedPass, SplitTables
from hoi.cache.schema import BASE, READABLE
from hoi.cache.shard import read_text
from hoi.config import PipelineConfig
from hoi.errors import UserError, command
from hoi.files import size_text
from hoi.machine import free_memory_bytes
from hoi.records import PairBatch, TextBank
from hoi.vocabulary import Vocabulary

Mode = Literal["auto", "memory", "mapped"]

SHARE_OF_MEMORY = 0.5
"""`auto` loads a split whose tables take less than this share of the memory that is free."""
PLANNED_IMAGES = 512
"""Images of an epoch whose rows are worked out at once, before their features are read batch by batch."""


def open_split(
    config: PipelineConfig, name: str, *, same_images: bool = True, fingerprint: str | None = None, mode: Mode = "auto"
) -> CacheSplit:
    """Open a complete split of a config's cache, made with the config's settings and, if given, with a fingerprint.

    Extra passes are checked in the same way when a field of theirs is first asked for.

    Args:
        same_images: Whether it must hold the data set's own images in its own order, as labels do, which join images by
            row; they must be here then. Without them only weight files that are here are looked at.
        mode: `memory`, `mapped`, or `auto` by size.

    Raises UserError: there is no such split or cache, it is not complete, damaged, or of other settings or images.
    """
    plan = plan_split(config, name) if same_images else None
    split = CacheSplit.open(config.cache.folder, name, fingerprint, mode, config)
    bank = split.manifest.bank
    if plan is not None:
        refuse_other_request(plan, bank, BASE.content.request(config))
    else:
        refuse_other_config(split.folder, split.manifest, config)
        refuse_replaced_files(split.folder, bank.request, config.model_dump(mode="json"))
    return split


class CacheSplit:
    """One complete split, opened for reading. Tables keep their dtype on disk; batches are float32."""

    def __init__(self, folder: Path, manifest: Manifest, mode: Mode, config: PipelineConfig | None) -> None:
        self.folder = folder
        self.manifest = manifest
        self._mode, self._config = mode, config
        size = sum(shard.num_bytes for shard in manifest.shards)
        self.is_mapped = mode == "mapped" or (mode == "auto" and size > SHARE_OF_MEMORY * free_memory_bytes())
        base = OpenedPass(folder, manifest)
        self._bank = base.bank
        self._index = base.index
        self._tables = SplitTables(base, self.is_mapped, config)
        self._makers: dict[torch.device | None, BatchMaker] = {}

    @classmethod
    def open(
        cls,
        folder: str | Path,
        split: str,
        fingerprint: str | None = None,
        mode: Mode = "auto",
        config: PipelineConfig | None = None,
    ) -> CacheSplit:
        """Open a split without a look at its settings; extra passes must be of those of `config`, if there is one.

        Raises a UserError where there is no cache, or it is not complete, damaged, of another schema version or
        fingerprint; so does the first touch of a row, if its shard is damaged or not the manifest's.
        """
        path, fix = Path(folder) / split, command("teacher-cache")
        if not path.is_dir():
            raise UserError("there is no teacher cache", where=path, fix=fix)
        manifest = complete_manifest(path)
        made_with = manifest.bank.fingerprint
        if fingerprint not in (None, made_with):
            what = "this cache was made with other settings"
            raise UserError(what, where=path, expected=f"fingerprint {fingerprint}", got=made_with, fix=fix)
        return cls(path, manifest, mode, config)

    def __reduce__(self) -> tuple[Callable[..., CacheSplit], tuple[Any, ...]]:
        # Opened anew in another process, instead of sending tables there.
        return CacheSplit.open, (self.folder.parent, self.folder.name, self.fingerprint, self._mode, self._config)

    @property
    def fingerprint(self) -> str:
        """Hash over all that changes what is cached."""
        return self.manifest.bank.fingerprint

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
        """Return a whole field of the split, [n, ...], [N, ...] or [P, ...], as on disk; `NAME/field` of an extra pass.

        Not offsets and text; no copy in memory mode.
        """
        return self._tables.whole(name)

    @property
    def vocabulary(self) -> Vocabulary:
        return self._bank.vocabulary

    @property
    def text_bank(self) -> TextBank:
        return self._bank.texts

    def batch(self, image_rows: np.ndarray, extra: Sequence[str] = (), device: torch.device | None = None) -> PairBatch:
        """Return a batch of the pairs of some readable images, int [B], in float32.

        Args:
            extra: More fields by name, for `PairBatch.extra`: `spatial_map`, `union_embedding`, ..., or of an extra
                pass, whose index is opened then, `NAME/field`.
            device: Where fields are kept whole from the first batch on, for the batch to be made there; None for the
                CPU, from memory or mapped shards.
        """
        image_rows = np.asarray(image_rows, np.int64)
        if not self.is_readable[image_rows].all():
            raise ValueError("a batch asks for an unreadable image; take rows where `is_readable`")
        return next(self._maker(device).make([image_rows], self._tables.extra(extra, device)))

    def batches(
        self,
        batch_images: int,
        rng: np.random.Generator | None = None,
        extra: Sequence[str] = (),
        device: torch.device | None = None,
    ) -> Iterator[PairBatch]:
        """Yield every readable image once, in batches; the last may be smaller. `rng` shuffles the images."""
        return self.batches_of(_batches(np.flatnonzero(self.is_readable), batch_images, rng), extra, device)

    def batches_of(
        self, image_rows: Sequence[np.ndarray], extra: Sequence[str] = (), device: torch.device | None = None
    ) -> Iterator[PairBatch]:
        """Yield the batches of the given readable images, int64 [B] each."""
        places = self._tables.extra(extra, device)
        largest = max(map(len, image_rows), default=0)
        at_once = max(1, PLANNED_IMAGES // max(1, largest))
        for start in range(0, len(image_rows), at_once):
            yield from self._maker(device).make(image_rows[start : start + at_once], places)

    def num_bytes(self, name: str) -> int:
        return self._tables.num_bytes(name)

    def _maker(self, device: torch.device | None) -> BatchMaker:
        if device not in self._makers:
            here = self._tables.here
            there = here if device is None else self._tables.on(device)
            self._makers[device] = BatchMaker(
                self.size_hw, self.detection_offsets, self.pair_offsets, here, there, self.vocabulary.no_object_idx
            )
        return self._makers[device]


@dataclass(frozen=True)
class ResidentSplit:
    """A split's batches, made on a device where its features are put with the first of them."""

    split: CacheSplit
    device: torch.device

    @property
    def num_images(self) -> int:
        return self.split.num_images

    def batches(
        self, batch_images: int, rng: np.random.Generator | None = None, extra: Sequence[str] = ()
    ) -> Iterator[PairBatch]:
        return self.split.batches(batch_images, rng, extra, self.device)


def training_source(
    split: CacheSplit, device: torch.device, resident: Literal["auto", "never", "always"]
) -> CacheSplit | ResidentSplit:
    """Return the split itself, or kept on the device, as `train.resident` says; a UserError where there is no room."""
    free_bytes = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    return ResidentSplit(split, device) if is_resident(feature_bytes(split), free_bytes, resident) else split


def is_resident(num_bytes: int, free_bytes: int | None, resident: Literal["auto", "never", "always"]) -> bool:
    if resident == "always" and free_bytes is not None and num_bytes > free_bytes:
        raise UserError(
            "the GPU has no room for the cached features",
            where="train.resident",
            expected=f"{size_text(num_bytes, 3)} free",
            got=size_text(free_bytes, 3),
            fix="set train.resident: auto",
        )
    fits = free_bytes is not None and num_bytes <= SHARE_OF_GPU * free_bytes
    return resident == "always" or (resident == "auto" and fits)


def feature_bytes(split: CacheSplit) -> int:
    return sum(map(split.num_bytes, FEATURES))


def _batches(rows: np.ndarray, batch_images: int, rng: np.random.Generator | None) -> list[np.ndarray]:
    rows = rows if rng is None else rng.permutation(rows)
    return [rows[start : start + batch_images] for start in range(0, len(rows), batch_images)]


ORDER_SEED = 0


@dataclass(frozen=True)
class FirstImages:
    """The first `max_images` readable images of one shuffled order, which no training seed changes; None for all.

    `share` takes from the rows of each batch this process's own, which may be none.
    """

    source: CacheSplit | ResidentSplit
    max_images: int | None
    share: Callable[[np.ndarray], np.ndarray] | None = None

    @property
    def num_images(self) -> int:
        return len(self.rows)

    @cached_property
    def rows(self) -> np.ndarray:
        """int64 [n], ascending rows of the split."""
        readable = np.flatnonzero(self._split.is_readable)
        return np.sort(np.random.default_rng(ORDER_SEED).permutation(readable)[: self.max_images])

    def batches(
        self, batch_images: int, rng: np.random.Generator | None = None, extra: Sequence[str] = ()
    ) -> Iterator[PairBatch]:
        device = self.source.device if isinstance(self.source, ResidentSplit) else None
        batches = _batches(self.rows, batch_images, rng)
        if self.share is not None:
            batches = [self.share(batch) for batch in batches]
        return self._split.batches_of(batches, extra, device)

    @property
    def _split(self) -> CacheSplit:
        return self.source.split if isinstance(self.source, ResidentSplit) else self.source
