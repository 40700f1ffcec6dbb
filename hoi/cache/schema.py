"""What a pass over a split stores: fields with their dtypes, shapes and units, and the names of files.

FORMAT.md says the same; the fields of shards are in `base_pass` and `vlm_pass`.

Shapes: n images of a shard, N detections, P pairs, K interactions, D the teacher's joint width, M crop margins,
L levels of region features, C, H, W channels, height and width of the teacher's spatial map. Of an index: S shards of
a split, F fields of a shard. Of a pass of a vision language model: K interactions, there where whole images were asked
about them, Q the same number, there where pairs were, S sentences of a caption at most.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, cast

import numpy as np
from msgspec import Meta, Struct

from hoi.errors import UserError
from hoi.files import read_json
from hoi.registry import PASSES

if TYPE_CHECKING:
    from hoi.config import PipelineConfig
    from hoi.vocabulary import Vocabulary

SCHEMA_VERSION = 1

Axes = dict[Annotated[str, Meta(pattern=r"^[A-Z]\Z")], Annotated[int, Meta(ge=0, le=1 << 24)]]
"""Letter → its size in this cache."""
Rows = Literal["image", "detection", "pair", "offset", "shard", "shard offset", "field"]

READABLE = 0
UNREADABLE = 1
MAX_REASON_BYTES = 400


@dataclass(frozen=True)
class Field:
    """One HDF5 dataset of a shard or of an index.

    Args:
        dtype: Little-endian numpy dtype, or `utf8` for fixed-length UTF-8 text padded with NUL.
        rows: What one row is; `offset` datasets have one row more than there are images, `shard offset` than shards.
        axes: Sizes of the axes after the first: a number, or a letter of which a cache has one size.
        meaning: Unit, range and convention.
        required: Whether every shard has it; an optional field is in all shards of a split or in none.
    """

    name: str
    dtype: str
    rows: Rows
    axes: tuple[str | int, ...]
    meaning: str
    required: bool = True

    @property
    def is_text(self) -> bool:
        return self.dtype == "utf8"


INDEX_FIELDS = (
    Field("image_id", "utf8", "image", (), "as in the shards, one shard after the other"),
    Field("size_hw", "<i4", "image", (2,), "as in the shards"),
    Field("status", "|u1", "image", (), "as in the shards"),
    Field("detection_offsets", "<i8", "offset", (), "as in the shards, but rows of the split"),
    Field("pair_offsets", "<i8", "offset", (), "as in the shards, but rows of the split"),
    Field("shard_offsets", "<i8", "shard offset", (), "shard s holds images [s] up to, not including, [s + 1]"),
    Field("field", "utf8", "field", (), "names of the F fields of every shard, in the order of its table"),
    Field("byte_offset", "<i8", "shard", ("F",), "byte of the file where the field's rows start; 0 if it has no row"),
    Field("row_bytes", "<i8", "shard", ("F",), "bytes of one row of the field; only text differs between shards"),
)


def fields_of(axes: Iterable[str], table: Sequence[Field]) -> tuple[Field, ...]:
    """Return the fields that shards with these axes have: the required ones, and optional ones whose axes are there."""
    known = set(axes)
    return tuple(field for field in table if field.required or {a for a in field.axes if isinstance(a, str)} <= known)


def shape_of(field: Field, num_rows: int, axes: Mapping[str, int]) -> tuple[int, ...]:
    # A file that says nothing of an axis has no table of this shape.
    return (num_rows, *(axes.get(axis, -1) if isinstance(axis, str) else axis for axis in field.axes))


def check_tables(tables: Mapping[str, np.ndarray], axes: Mapping[str, int], table: Sequence[Field]) -> None:
    """Raise a ValueError that names the field if the tables of a shard disagree with their schema or one another."""
    expected = fields_of(axes, table)
    names = {field.name for field in expected}
    if names != set(tables):
        raise ValueError(f"fields differ from the schema: {', '.join(sorted(names ^ set(tables)))}")
    num_images = len(tables["image_id"])
    num_rows = {"image": num_images, "offset": num_images + 1}
    for kind in ("detection", "pair"):
        name = f"{kind}_offsets"
        if name not in tables:
            continue
        offsets = tables[name]
        if len(offsets) != num_images + 1 or offsets[0] != 0 or (np.diff(offsets) < 0).any():
            raise ValueError(f"{name} must hold {num_images + 1} numbers that start at 0 and never fall")
        num_rows[kind] = int(offsets[-1])
    for field in expected:
        value, shape = tables[field.name], shape_of(field, num_rows[field.rows], axes)
        if value.shape != shape:
            raise ValueError(f"{field.name} has shape {value.shape}, expected {shape}")
        if value.dtype.kind != "S" if field.is_text else value.dtype != np.dtype(field.dtype):
            raise ValueError(f"{field.name} has dtype {value.dtype}, expected {field.dtype}")
    if len(np.unique(tables["image_id"])) != num_images:
        raise ValueError("image_id holds duplicates")


def check_finite(values: Mapping[str, Any], of: str = "") -> None:
    """Raise a ValueError that names the field if an array among the values holds NaN or infinity."""
    for name, value in values.items():
        if isinstance(value, np.ndarray) and value.dtype.kind == "f" and not np.isfinite(value).all():
            raise ValueError(f"{name}{of} is not finite")


def text_table(values: Sequence[str]) -> np.ndarray:
    encoded = [value.encode() for value in values]
    return np.array(encoded, dtype=f"S{max([1, *map(len, encoded)])}")


def clip_reason(reason: str) -> str:
    """Shorten the reason why an image is unreadable: shards hold 400 bytes."""
    return reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore")


_FILE = re.compile(
    r"(?:(?P<name>[A-Za-z0-9][A-Za-z0-9_.-]*)-)?(?:(?:bank|shard-\d{5,})\.(?:h5|json)|manifest\.json|index\.h5)"
)


class PassKind(Protocol):
    """What a pass of one kind stores, and how; `hoi.registry.PASSES` names the kinds.

    A worker asks, in this order: `as_begun`, `load_model`, `parts`; for the bank `bank`; for a shard `base_shard`,
    `inputs`, `process` and `pack`. In messages it is the `subject`, asked for in the pipeline file's `section`;
    `another` is how to have one of other settings. `bank_key` is the bank's table with a row per interaction.
    """

    subject: str
    another: str
    section: str
    fields: Sequence[Field]
    bank_key: str

    def request(self, config: PipelineConfig, base: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return what a config asks for, as comparable without a model; `base` is that of the base pass, if known."""

    def settings(self, config: dict[str, Any], split: str) -> dict[str, Any]:
        """Return the keys of a plain config that decide what the pass holds, as comparable with no file at hand."""

    def begins_alone(self, config: PipelineConfig) -> bool:
        """Return whether no other task may run beside the one that begins the pass."""
        return False

    def load_model(self, config: PipelineConfig, vocabulary: Vocabulary, device: str) -> Any:
        """Return the model, which has `axes` and `provenance()`."""

    def as_begun(self, config_json: str, folder: Path) -> str:
        """Return the config with what was chosen when the pass was begun."""
        return config_json

    def parts(self, model_parts: dict[str, Any], folder: Path) -> dict[str, Any]:
        """Return what the fingerprint is over."""
        return model_parts

    def bank(self, model: Any, vocabulary: Vocabulary) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return the tables and attributes of the bank."""

    def bank_shape(self, axes: Mapping[str, int], vocabulary: Vocabulary) -> tuple[int, ...]:
        """Return the shape of the bank's table `bank_key`."""

    def base_shard(self, folder: Path, plan: Any) -> Any:
        """Return what is known of the images from the base pass."""
        return None

    def inputs(self, image_ids: Sequence[str], over: Any) -> tuple[dict[int, Any], dict[int, str]]:
        """Return, by row, what goes to the model beside an image, and why others are not read."""

    def process(self, model: Any, over: Any) -> Callable[[Iterable[tuple[Any, np.ndarray]]], list[Any]]:
        """Return the function that makes one record of each input and its image."""

    def pack(
        self, image_ids: Sequence[str], outcomes: Sequence[Any], axes: Mapping[str, int], over: Any
    ) -> dict[str, np.ndarray]:
        """Return the tables of a shard, checked."""

    def check(self, tables: Mapping[str, np.ndarray], axes: Mapping[str, int], num_objects: int | None) -> None:
        """Raise a ValueError if the tables of a shard are damaged."""

    def axes(self, config: PipelineConfig, teacher: Mapping[str, int], num_interactions: int) -> dict[str, int]:
        """Return the size of every letter, from those of the base pass."""

    def text_bytes(self, axes: Mapping[str, int]) -> dict[str, int]:
        """Return about what a row takes, for fields of text that are not nearly empty."""
        return {}


@dataclass(frozen=True)
class Pass:
    """One pass over a split: the base pass, without a name, or an extra pass over its shards, named in its files.

    The kind is a name of `hoi.registry.PASSES`.
    """

    name: str = ""
    kind: str = dataclasses.field(default="", compare=False)

    @property
    def content(self) -> PassKind:
        return cast(PassKind, PASSES[self.kind or ("vlm" if self.name else "base")](self))

    @property
    def prefix(self) -> str:
        return f"{self.name}-" if self.name else ""

    @property
    def title(self) -> str:
        return f"pass '{self.name}'" if self.name else "teacher cache"

    def label(self, split: str) -> str:
        return f"{split}, {self.title}" if self.name else split

    @property
    def bank_name(self) -> str:
        return f"{self.prefix}bank.h5"

    @property
    def bank_receipt_name(self) -> str:
        return f"{self.prefix}bank.json"

    @property
    def index_name(self) -> str:
        return f"{self.prefix}index.h5"

    @property
    def manifest_name(self) -> str:
        return f"{self.prefix}manifest.json"

    @property
    def journal_name(self) -> str:
        return f"{self.prefix}journal.jsonl"

    @property
    def shard_pattern(self) -> str:
        return f"{self.prefix}shard-*.h5"

    def shard_name(self, index: int) -> str:
        return f"{self.prefix}shard-{index:05d}.h5"

    def shard_index(self, name: str) -> int:
        return int(name.removeprefix(f"{self.prefix}shard-").removesuffix(".h5"))

    def clearing(self, folder: Path) -> str:
        """Return what to delete of a split's folder for the pass to be built anew."""
        return f"{folder}/{self.prefix}*" if self.name else str(folder)


BASE = Pass()


def extra_passes(config: PipelineConfig) -> list[Pass]:
    """Return the passes that a config asks for besides the base pass."""
    return [Pass(name, "vlm") for name in config.vlms]


def passes_in(folder: Path) -> list[Pass]:
    """Return the extra passes of which a split's folder holds anything, by name."""
    found = {of_file(path.name) for path in folder.iterdir()} if folder.is_dir() else set()
    return [Pass(name, _kind_of(folder, name)) for name in sorted(of.name for of in found if of and of.name)]


def _kind_of(folder: Path, name: str) -> str:
    # What the request of the begun pass names; nothing where that cannot be read.
    try:
        begun = read_json(folder / Pass(name).bank_receipt_name, _Begun)
    except UserError:
        return ""
    return next((kind for kind in begun.request if kind in PASSES and kind != "base"), "") if begun else ""


class _Begun(Struct):
    request: dict[str, Any]


def of_file(name: str) -> Pass | None:
    """Return the pass a file belongs to by its name, or None for a file that holds no content."""
    match = _FILE.fullmatch(name)
    return None if match is None else Pass(match["name"] or "")


def pass_and_name(field: str) -> tuple[Pass, str]:
    """Return the pass, and the name in it, of a field as students name it: `coca/vlm_scores`, `spatial_map`."""
    pass_name, _, name = field.rpartition("/")
    return Pass(pass_name), name
