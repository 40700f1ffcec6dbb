"""A complete pass of a split, opened for reading: the base pass, or an extra one beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from hoi.cache.base_pass import check_labels
from hoi.cache.index import checked_header, foreign_shard, open_index, rebuild_shard
from hoi.cache.manifest import BankReceipt, Manifest, complete_manifest
from hoi.cache.plan import is_over, plan_over, refuse_other_config
from hoi.cache.read.batches import JoinedTables, Kind, MappedTables, Tables, Template
from hoi.cache.schema import BASE, Field, Pass, fields_of, pass_and_name, passes_in, shape_of
from hoi.cache.shard import BrokenFile, Header, MappedFile, read_header
from hoi.config import PipelineConfig
from hoi.errors import UserError, command
from hoi.files import convert
from hoi.records import TextBank, VisualHead
from hoi.vocabulary import Vocabulary


@dataclass(frozen=True)
class Bank:
    """The bank of a pass, opened and checked: its vocabulary, and of the base pass its texts."""

    header: Header
    vocabulary: Vocabulary

    @classmethod
    def open(cls, folder: Path, begun: BankReceipt, of: Pass = BASE) -> Bank:
        """Open the bank that a pass was begun with; a UserError where it is missing, damaged or another one."""
        path = folder / of.bank_name
        try:
            header = read_header(path)
            vocabulary = Vocabulary.from_dict(header.json("vocabulary"))
            expected, texts = of.content.bank_shape(begun.axes, vocabulary), header.locations[of.content.bank_key]
            if texts.shape != expected or len(vocabulary) != begun.axes.get("K", len(vocabulary)):
                got = f"{texts.shape} and {len(vocabulary)} interactions"
                raise ValueError(f"texts of shape {got}, expected {expected}")
            if header.attributes.get("fingerprint") != begun.fingerprint:
                raise ValueError("it was made with another fingerprint")
            bank = cls(header, vocabulary)
            if not of.name:
                bank.texts.check(len(vocabulary))
            return bank
        except (BrokenFile, FileNotFoundError, KeyError, ValueError, TypeError, UserError) as error:
            fix = command("cache repair")
            raise UserError("a bank of texts is missing or damaged", where=path, got=error, fix=fix) from None

    @cached_property
    def texts(self) -> TextBank:
        """The interaction texts of the base pass."""
        attributes = self.header.attributes
        names = [part.name for part in fields(VisualHead) if f"visual_{part.name}" in self.header.locations]
        head = {name: self.header.table(f"visual_{name}") for name in names}
        return TextBank(
            self.header.table("text_embedding"),
            attributes["logit_scale"],
            attributes.get("logit_bias"),
            convert(self.header.json("prompts"), tuple[tuple[str, ...], ...]),
            VisualHead(**head) if head else None,
        )


class OpenedPass:
    """Where a pass's fields lie. Its index is mapped.

    A shard is opened when a row of it is first touched, and refused then if it is not the manifest's.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self.index = open_index(folder, manifest)
        self.bank = Bank.open(folder, manifest.bank, manifest.of)
        self._num_objects = None if manifest.of.name else len(self.bank.vocabulary.objects)
        self._files: dict[int, MappedFile] = {}

    @cached_property
    def fields(self) -> dict[str, Field]:
        """What a batch may take: fields of images, detections and pairs, but no texts."""
        known = (field for _, field in self.index.fields.values())
        return {f.name: f for f in known if f.rows in ("image", "detection", "pair") and not f.is_text}

    def rows(self, shard: int, name: str) -> np.ndarray:
        """Return a field's rows of one shard, mapped, read-only; a UserError for a damaged or another shard."""
        location = self.index.location(shard, name)
        if shard not in self._files:
            self._files[shard] = self._open(shard)
        return self._files[shard].table(location)

    def _open(self, shard: int) -> MappedFile:
        manifest, index = self.manifest, self.index
        receipt, fingerprint = manifest.shards[shard], manifest.bank.fingerprint
        header = checked_header(self.folder, manifest.split, fingerprint, receipt, index.table)
        for name in index.fields:
            expected, got = index.location(shard, name), header.locations[name]
            if got != expected:
                at = [f"{name} {place.dtype} {place.shape} at byte {place.offset}" for place in (expected, got)]
                raise foreign_shard(header.path, *at)
        try:
            # A row that is out of range would read another image's data, or memory that is nobody's.
            self._check_offsets(header, shard)
            tables = header.tables(fields_of(index.axes, index.table))
            manifest.of.content.check(tables, index.axes, None)
            check_labels(tables, self._num_objects)
        except ValueError as error:
            fix = rebuild_shard(header.path)
            raise UserError("a shard is damaged", where=header.path, got=error, fix=fix) from None
        return header.file

    def _check_offsets(self, header: Header, shard: int) -> None:
        start, stop = self.index.columns["shard_offsets"][shard : shard + 2].tolist()
        for name in ("detection_offsets", "pair_offsets"):
            if name in header.locations:
                of_split = self.index.columns[name][start : stop + 1]
                if not np.array_equal(of_split - of_split[0], header.table(name, mapped=True)):
                    raise ValueError(f"its {name} are not those of the index")

    def template(self, name: str) -> tuple[np.dtype, tuple[int, ...]]:
        field = self.fields[name]
        return np.dtype(field.dtype), shape_of(field, 0, self.manifest.bank.axes)[1:]

    def extra(self, name: str) -> Field:
        """Return a field of images or pairs; a UserError where the pass has none of this name."""
        known = {name: field for name, field in self.fields.items() if field.rows in ("image", "pair")}
        if name in known:
            return known[name]
        content = self.manifest.of.content
        raise UserError(
            f"{content.subject} has no field '{name}' of images or pairs",
            where=self.folder,
            expected=f"one of {', '.join(known)}",
            fix=f"ask for it under {content.section}, then {command('teacher-cache')}",
        )


def open_extra(folder: Path, name: str, base: Manifest, config: PipelineConfig | None) -> OpenedPass:
    """Open an extra pass of a split, beside its complete base pass.

    Raises a UserError where there is none, or it is not complete, over other base shards, or of other settings than
    those of the pipeline file that is run now, if there is one and it names the pass.
    """
    known = {of.name: of for of in passes_in(folder)}
    if name not in known:
        raise UserError(
            f"the cache has no {Pass(name).title}",
            where=folder,
            expected=f"one of {', '.join(known)}" if known else "none is there",
            fix=f"describe it under vlms.{name} in the pipeline file, then {command('teacher-cache')}",
        )
    of, manifest = known[name], complete_manifest(folder, known[name])
    if manifest.bank.parts.get("base") != base.bank.fingerprint or not is_over(plan_over(base, folder, of), manifest):
        what = f"{of.title} was made over other shards of the base pass"
        raise UserError(what, where=folder, fix=command("cache repair"))
    if config is not None and name in config.vlms:
        refuse_other_config(folder, manifest, config)
    return OpenedPass(folder, manifest)


def pass_fingerprints(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the fingerprints of extra passes of a split by name; a UserError where one is not complete."""
    return {name: complete_manifest(folder, Pass(name)).bank.fingerprint for name in sorted(names)}


SHARE_OF_GPU = 0.5
"""A split's features, and each extra field, are kept on a GPU if they take at most this share of its free memory."""


class SplitTables:
    """All fields of one split."""

    def __init__(self, base: OpenedPass, is_mapped: bool, config: PipelineConfig | None) -> None:
        self.is_mapped = is_mapped
        self._base, self._config, self._num_shards = base, config, len(base.manifest.shards)
        self._passes = {BASE: base}
        self._on: dict[torch.device, JoinedTables] = {}
        self._kept: dict[tuple[str, torch.device], bool] = {}

    @property
    def here(self) -> Tables:
        """The fields as they lie by themselves: mapped, or joined in memory."""
        return self._mapped if self.is_mapped else self.on(torch.device("cpu"))

    def on(self, device: torch.device) -> JoinedTables:
        """Return the fields on a device, each put there when it is first asked for."""
        device = torch.device("cpu") if device.type == "cpu" else device
        if device not in self._on:
            self._on[device] = JoinedTables(self._shard_rows, self._num_shards, device)
        return self._on[device]

    def whole(self, name: str) -> np.ndarray:
        """Return all rows of a field, as on disk; no copy where fields are joined in memory."""
        if self.is_mapped:
            return np.concatenate([self._shard_rows(shard, name) for shard in range(self._num_shards)])
        return self.on(torch.device("cpu")).whole(name).numpy()

    def extra(self, names: Sequence[str], device: torch.device | None) -> dict[str, tuple[Kind, Tables]]:
        """Return where fields of images or pairs, of any pass, are taken from; a UserError where there is none.

        They come from a device, where one is named and has room for the whole field, or from where they lie.
        """
        places: dict[str, tuple[Kind, Tables]] = {}
        for name in names:
            of, field = pass_and_name(name)
            kind: Kind = "image" if self._opened(of).extra(field).rows == "image" else "pair"
            places[name] = (kind, self.here if device is None or not self._fits(name, device) else self.on(device))
        return places

    def num_bytes(self, name: str) -> int:
        of, field_name = pass_and_name(name)
        field = self._opened(of).fields[field_name]
        dtype, shape = self._template(name)
        is_image, columns = field.rows == "image", self._base.index.columns
        num_rows = self._base.manifest.num_images if is_image else int(columns[f"{field.rows}_offsets"][-1])
        return num_rows * dtype.itemsize * math.prod(shape)

    def _fits(self, name: str, device: torch.device) -> bool:
        # Whether a field is put on a device whole is found out when it is first asked for.
        if (name, device) not in self._kept:
            free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
            self._kept[name, device] = free is None or self.num_bytes(name) <= SHARE_OF_GPU * free
        return self._kept[name, device]

    def _opened(self, of: Pass) -> OpenedPass:
        if of not in self._passes:
            self._passes[of] = open_extra(self._base.folder, of.name, self._base.manifest, self._config)
        return self._passes[of]

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
        of, field = pass_and_name(name)
        return self._opened(of).rows(shard, field)

    def _template(self, name: str) -> Template:
        of, field = pass_and_name(name)
        return self._opened(of).template(field)
