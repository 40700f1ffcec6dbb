"""A finished split of the cache to batches: what students and evaluation read, with no image, detector or teacher.

Tables of a split are the shards' tables, one after the other. They lie in memory, or stay on disk and are mapped.
Small columns (offsets, boxes, scores, labels, pairs) are always in memory.

Letters: n images of the split, N detections, P pairs, K interactions, D joint width, M crop margins, L levels,
B images of a batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cache.fingerprint import refuse_other_settings, settings_parts
from cache.manifest import BANK_NAME, MANIFEST_NAME, Manifest, has_all_files, read_manifest
from cache.schema import BY_NAME, READABLE, fields_of
from cache.shard import BrokenFile, Header, inspect_shard, read_header, read_text
from cache.sharded_table import ShardedTable
from hoi.config import PipelineConfig
from hoi.errors import UserError
from hoi.records import PairBatch, TextBank
from hoi.vocabulary import Vocabulary

Mode = Literal["auto", "memory", "mapped"]

SHARE_OF_MEMORY = 0.5
"""`auto` loads a split whose tables take less than this share of the memory that is free."""
_BUILD = "make teacher-cache (CONFIG=your pipeline file)"


class CacheSplit:
    """One complete split, opened for reading. `open` makes it.

    Tables keep their dtype on disk; batches are float32.
    """

    def __init__(self, folder: Path, manifest: Manifest, headers: list[Header], mode: Mode) -> None:
        self.folder = folder
        self.manifest = manifest
        self._headers = headers
        self._mode = mode
        size = sum(shard.num_bytes for shard in manifest.shards)
        self.is_mapped = mode == "mapped" or (mode == "auto" and size > SHARE_OF_MEMORY * _free_bytes())
        self._tables: dict[str, ShardedTable] = {}

    @classmethod
    def open(
        cls,
        folder: str | Path,
        split: str,
        expected_fingerprint: str | None = None,
        mode: Mode = "auto",
        config: PipelineConfig | None = None,
    ) -> CacheSplit:
        """A split's folder to its reader; every shard's header is checked, no table is read yet.

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
        if manifest is None:
            what = "there is no teacher cache" if not path.is_dir() else "this teacher cache is not complete"
            raise UserError(what, where=path, expected=MANIFEST_NAME, got="none", fix=_BUILD)
        if expected_fingerprint is not None and manifest.bank.fingerprint != expected_fingerprint:
            raise UserError(
                "this cache was made with other settings",
                where=path,
                expected=f"fingerprint {expected_fingerprint}",
                got=manifest.bank.fingerprint,
                fix=_BUILD,
            )
        if config is not None:
            made_with, now = manifest.made_with["config"], config.model_dump(mode="json")
            refuse_other_settings(path, settings_parts(made_with, split), settings_parts(now, split))
        if not has_all_files(path, manifest):
            raise UserError("a file of this teacher cache is missing or has another size", where=path, fix=_BUILD)
        return cls(path, manifest, [_checked_header(path, manifest, row) for row in range(len(manifest.shards))], mode)

    def __reduce__(self) -> tuple[Callable[..., CacheSplit], tuple[Any, ...]]:
        """Opens anew in another process, instead of sending tables there."""
        return CacheSplit.open, (self.folder.parent, self.folder.name, self.fingerprint, self._mode)

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
        """n stable keys; unreadable images keep their row."""
        return [image_id for header in self._headers for image_id in read_text(header.table("image_id"))]

    @cached_property
    def is_readable(self) -> np.ndarray:
        """bool [n]: False for an image that could not be read; it has no detection and no pair."""
        return self.table("status") == READABLE

    @cached_property
    def size_hw(self) -> np.ndarray:
        """int32 [n, 2], pixels."""
        return self.table("size_hw")

    @cached_property
    def detection_offsets(self) -> np.ndarray:
        """int64 [n + 1]: rows of the detection tables."""
        return self._offsets("detection_offsets")

    @cached_property
    def pair_offsets(self) -> np.ndarray:
        """int64 [n + 1]: rows of the pair tables."""
        return self._offsets("pair_offsets")

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
        """A whole field of the split, [n, ...], [N, ...] or [P, ...], as on disk; not for offsets and text.

        In memory mode this is no copy.
        """
        return self._table(name).whole()

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
        )

    def batch(self, image_rows: np.ndarray, extra: Sequence[str] = ()) -> PairBatch:
        """Rows of the split to a batch of their pairs, float32, on the CPU.

        Args:
            image_rows: int [B], readable images.
            extra: Further fields by name (`spatial_map`, `union_embedding`, ...), for `PairBatch.extra`.

        Raises:
            ValueError: an image is unreadable, or the cache lacks a field of `extra`.
        """
        image_rows = np.asarray(image_rows, np.int64)
        if not self.is_readable[image_rows].all():
            raise ValueError("a batch asks for an unreadable image; take rows where `is_readable`")
        pair_image, pair_rows = _ragged_rows(self.pair_offsets, image_rows)
        humans, objects = self.pairs_ho[pair_rows].T
        return PairBatch(
            image_rows=torch.from_numpy(image_rows),
            size_hw=_float(self.size_hw[image_rows]),
            image_embedding=self._gather("image_embedding", image_rows),
            image_similarity=self._gather("image_similarity", image_rows),
            pair_image=torch.from_numpy(pair_image),
            boxes_h=torch.from_numpy(self.boxes_xyxy[humans]),
            boxes_o=torch.from_numpy(self.boxes_xyxy[objects]),
            scores_h=torch.from_numpy(self.scores[humans]),
            scores_o=torch.from_numpy(self.scores[objects]),
            labels_o=torch.from_numpy(self.labels[objects]),
            pair_rows=torch.from_numpy(pair_rows),
            rows_h=torch.from_numpy(humans.astype(np.int64)),
            rows_o=torch.from_numpy(objects.astype(np.int64)),
            human_feature=self._gather("detection_feature", humans),
            object_feature=self._gather("detection_feature", objects),
            union_feature=self._gather("union_feature", pair_rows),
            union_similarity=self._gather("union_similarity", pair_rows),
            extra={name: self._extra(name, image_rows, pair_rows) for name in extra},
        )

    def batches(
        self, batch_images: int, rng: np.random.Generator | None = None, extra: Sequence[str] = ()
    ) -> Iterator[PairBatch]:
        """Every readable image once, in batches; the last may be smaller.

        Args:
            batch_images: B.
            rng: Shuffles the images, or None for their own order.
            extra: As in `batch`.
        """
        rows = np.flatnonzero(self.is_readable)
        if rng is not None:
            rows = rng.permutation(rows)
        for start in range(0, len(rows), batch_images):
            yield self.batch(rows[start : start + batch_images], extra)

    def _gather(self, name: str, rows: np.ndarray) -> Tensor:
        return _float(self._table(name).take(rows))

    def _extra(self, name: str, image_rows: np.ndarray, pair_rows: np.ndarray) -> Tensor:
        field = BY_NAME.get(name)
        if field is None or field not in fields_of(self.axes) or field.rows not in ("image", "pair") or field.is_text:
            raise ValueError(f"this cache has no field '{name}' of images or pairs")
        return self._gather(name, image_rows if field.rows == "image" else pair_rows)

    def _table(self, name: str) -> ShardedTable:
        if name not in self._tables:
            parts = [header.table(name, mapped=self.is_mapped) for header in self._headers]
            self._tables[name] = ShardedTable(parts, in_memory=not self.is_mapped)
        return self._tables[name]

    def _offsets(self, name: str) -> np.ndarray:
        counts = [np.diff(header.table(name)) for header in self._headers]
        return np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64)

    @cached_property
    def _bank(self) -> Header:
        return read_header(self.folder / BANK_NAME)


def _checked_header(folder: Path, manifest: Manifest, row: int) -> Header:
    path = folder / manifest.shards[row].name
    try:
        header = inspect_shard(path)
    except BrokenFile as error:
        raise UserError("a shard is damaged", where=path, got=error, fix=f"delete {path}, then {_BUILD}") from None
    expected = (manifest.bank.fingerprint, manifest.split, manifest.shards[row].image_ids_sha256)
    got = tuple(header.attributes[name] for name in ("fingerprint", "split", "image_ids_sha256"))
    if got != expected:
        raise UserError(
            "a shard does not belong to this cache",
            where=path,
            expected=f"fingerprint {expected[0][:12]}, split {expected[1]}, ids {expected[2][:12]}",
            got=f"fingerprint {got[0][:12]}, split {got[1]}, ids {got[2][:12]}",
            fix=f"delete {path}, then {_BUILD}",
        )
    return header


def _ragged_rows(offsets: np.ndarray, image_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images to their rows of a ragged table: (image of the batch, row of the table), each int64 [P]."""
    starts = offsets[image_rows]
    counts = offsets[image_rows + 1] - starts
    before = np.cumsum(counts) - counts
    image = np.repeat(np.arange(len(image_rows)), counts)
    return image, np.arange(counts.sum()) + (starts - before)[image]


def _float(rows: np.ndarray) -> Tensor:
    return torch.from_numpy(rows).float()


def _free_bytes() -> int:
    """Memory that a process may take now, in bytes; files that the system keeps in memory count as free."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
