"""A split's folder to everything that is wrong with it: sizes, hashes and tables against manifest and schema.

Nothing is loaded but one shard's tables at a time, and nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cache.atomic import TEMPORARY_SUFFIX, read_json
from cache.fingerprint import differing_keys, digest_of, file_sha256
from cache.manifest import (
    BANK_NAME,
    INDEX_NAME,
    MANIFEST_NAME,
    BankReceipt,
    Manifest,
    Receipt,
    read_manifest,
    read_receipt,
    shard_name,
)
from cache.plan import hash_of_ids
from cache.schema import check_tables, fields_of
from cache.shard import BrokenFile, Header, inspect_shard, read_header, read_text
from hoi.errors import UserError
from hoi.vocabulary import Vocabulary

Kind = Literal["missing", "truncated", "changed", "foreign", "stray", "damaged", "incomplete", "failed"]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Args:
        split: Name of the split.
        name: Of the file in the split's folder.
        kind: `missing`; `truncated`, another size than recorded; `changed`, other bytes; `foreign`, of another cache,
            split or place; `stray`, left by a killed build; `damaged`, against the schema; `incomplete`, not sealed;
            `failed`, an unreadable image that can be read by now (`repair` alone looks for these).
        text: What exactly, for people.
    """

    split: str
    name: str
    kind: Kind
    text: str

    def __str__(self) -> str:
        return f"{self.split}/{self.name}: {self.kind}: {self.text}"


def cached_splits(folder: Path) -> list[str]:
    """Names of the splits that a cache's folder holds, finished or not."""
    if not folder.is_dir():
        return []
    begun = ("manifest.json", "bank.json", "bank.h5", "shard-*.h5")
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith(".") and any(any(path.glob(name)) for name in begun)
    )


def verify_split(folder: Path) -> list[Problem]:
    """All problems of a split, by name; none for a split that is complete and whole.

    A split that is not sealed is one problem, and what is there is judged by its own receipts.

    Raises:
        UserError: the manifest or a shard is of another schema version.
    """
    split = folder.name
    if not folder.is_dir():
        return [Problem(split, MANIFEST_NAME, "missing", "there is no such split in this cache")]
    manifest, problems = _manifest(folder)
    bank, bank_problems = _bank(folder, manifest)
    problems += bank_problems
    if manifest is not None:
        receipts: list[Receipt | None] = list(manifest.shards)
        problems += _judge_index(folder, manifest)
    else:
        receipts = _present_receipts(folder, bank)
        if not problems:
            done, planned = sum((folder / shard_name(i)).exists() for i in range(len(receipts))), len(receipts)
            text = f"the split is not sealed: {done} of {planned} shards are there"
            problems.append(Problem(split, MANIFEST_NAME, "incomplete", text))
    start = 0
    for index, receipt in enumerate(receipts):
        path = folder / shard_name(index)
        if manifest is not None or path.exists():
            problems += [Problem(split, path.name, *found) for found in _judge_shard(path, index, start, receipt, bank)]
            problems += _judge_receipt(path, receipt if manifest is not None else None)
        start += receipt.num_images if receipt is not None else bank.images_per_shard if bank is not None else 0
    problems += [Problem(split, *found) for found in _strays(folder, len(receipts))]
    return problems


def _manifest(folder: Path) -> tuple[Manifest | None, list[Problem]]:
    try:
        manifest = read_manifest(folder)
    except UserError as error:
        if error.expected is not None:
            raise
        return None, [Problem(folder.name, MANIFEST_NAME, "damaged", str(error.got))]
    if manifest is None:
        return None, []
    problems = []
    names = [shard.name for shard in manifest.shards]
    if names != [shard_name(index) for index in range(len(names))]:
        problems.append("its shards are not numbered from 0 on, in order")
    if manifest.split != folder.name:
        problems.append(f"it is the manifest of split '{manifest.split}'")
    if manifest.num_images != manifest.bank.num_images:
        problems.append(f"its shards hold {manifest.num_images} images, the split has {manifest.bank.num_images}")
    if problems:
        return None, [Problem(folder.name, MANIFEST_NAME, "damaged", text) for text in problems]
    return manifest, []


def _bank(folder: Path, manifest: Manifest | None) -> tuple[BankReceipt | None, list[Problem]]:
    """The bank's receipt, the manifest's before the file's own, and what is wrong with both files."""
    path = folder / BANK_NAME
    try:
        plain = read_json(path.with_suffix(".json"))
        own = BankReceipt(**plain) if plain is not None else None
        own_problem = None if own is not None else ("missing", "what the split was begun with")
    except (ValueError, TypeError) as error:
        own, own_problem = None, ("damaged", " ".join(repr(error).split()))
    if manifest is not None and own is not None and own != manifest.bank:
        own_problem = ("changed", "it differs from what the manifest says of it")
    bank = manifest.bank if manifest is not None else own
    found: list[tuple[str, str, str]] = []
    if own_problem is not None:
        found.append((path.with_suffix(".json").name, *own_problem))
    if bank is not None:
        found += [(path.name, *problem) for problem in _judge_bank(path, bank)]
    return bank, [Problem(folder.name, name, kind, text) for name, kind, text in found]  # type: ignore[arg-type]


def _judge_bank(path: Path, bank: BankReceipt) -> Iterator[tuple[Kind, str]]:
    wrong = _judge_bytes(path, bank.num_bytes, bank.sha256)
    if wrong is not None:
        yield wrong
        return
    if digest_of(bank.parts) != bank.fingerprint:
        yield "damaged", "the fingerprint is not the hash of its parts"
    try:
        header = read_header(path)
        shape = header.locations["text_embedding"].shape
        vocabulary = Vocabulary.from_dict(header.json("vocabulary"))
    except (BrokenFile, KeyError, UserError) as error:
        yield "damaged", str(error)
        return
    if shape != (bank.axes["K"], bank.axes["D"]) or len(vocabulary) != bank.axes["K"]:
        yield "damaged", f"{shape} text embeddings and {len(vocabulary)} interactions, expected K, D of {bank.axes}"
    if header.attributes.get("fingerprint") != bank.fingerprint:
        yield "foreign", f"it was made with fingerprint {str(header.attributes.get('fingerprint'))[:12]}"


def _judge_bytes(path: Path, num_bytes: int, sha256: str) -> tuple[Kind, str] | None:
    if not path.is_file():
        return "missing", "there is no such file"
    if path.stat().st_size != num_bytes:
        return "truncated", f"{path.stat().st_size} bytes, expected {num_bytes}"
    if file_sha256(path) != sha256:
        return "changed", f"its bytes are not those that were written (SHA-256, expected {sha256[:12]})"
    return None


def _judge_index(folder: Path, manifest: Manifest) -> list[Problem]:
    if manifest.index is None:
        return [Problem(folder.name, INDEX_NAME, "missing", "the split was sealed without an index")]
    wrong = _judge_bytes(folder / INDEX_NAME, manifest.index.num_bytes, manifest.index.sha256)
    return [] if wrong is None else [Problem(folder.name, INDEX_NAME, *wrong)]


def _present_receipts(folder: Path, bank: BankReceipt | None) -> list[Receipt | None]:
    """The receipts beside the shards of a split that is not sealed; None where there is none."""
    if bank is None:
        return []
    planned = -(-bank.num_images // bank.images_per_shard)
    return [read_receipt(folder / shard_name(index)) for index in range(planned)]


def _judge_shard(
    path: Path, index: int, start: int, receipt: Receipt | None, bank: BankReceipt | None
) -> list[tuple[Kind, str]]:
    if not path.is_file():
        return [("missing", "there is no such file")]
    wrong = _judge_bytes(path, receipt.num_bytes, receipt.sha256) if receipt is not None else None
    try:
        header = inspect_shard(path)
    except (BrokenFile, ValueError) as error:
        return [wrong or ("truncated", f"it is cut short, or no shard ({error})")]
    except UserError:
        # Of another schema version, unless these are not the bytes that were written.
        if wrong is None:
            raise
        return [wrong]
    foreign = _foreign(header, index, start, receipt, bank)
    if foreign:
        return [("foreign", "; ".join(foreign))]
    if wrong is not None:
        return [wrong]
    damage = _damage(header)
    return [] if damage is None else [("damaged", damage)]


def _foreign(header: Header, index: int, start: int, receipt: Receipt | None, bank: BankReceipt | None) -> list[str]:
    """In what a shard differs from the one that belongs here."""
    attributes, wanted = header.attributes, {"split": header.path.parent.name, "index": index, "start": start}
    if receipt is not None:
        wanted["image_ids_sha256"] = receipt.image_ids_sha256
    if bank is not None and attributes["fingerprint"] != bank.fingerprint:
        return differing_keys(bank.parts, attributes["fingerprint_parts"]) or ["another fingerprint"]
    return [
        f"{name} is {attributes[name]}, expected {value}" for name, value in wanted.items() if attributes[name] != value
    ]


def _damage(header: Header) -> str | None:
    """What the schema says against a shard's tables."""
    axes = header.attributes["axes"]
    try:
        tables = {field.name: header.table(field.name, mapped=True) for field in fields_of(axes)}
        check_tables(tables, axes)
    except (ValueError, KeyError, OSError) as error:
        return str(error)
    ids = read_text(tables["image_id"])
    if hash_of_ids(ids) != header.attributes["image_ids_sha256"]:
        return "its image ids are not those of its attribute image_ids_sha256"
    return None


def _judge_receipt(path: Path, receipt: Receipt | None) -> list[Problem]:
    """A receipt may be missing; one that is there says what the manifest says."""
    beside = path.with_suffix(".json")
    if receipt is None or not beside.exists():
        return []
    try:
        same = read_json(beside) == receipt.to_dict()
    except ValueError:
        same = False
    text = "this receipt differs from what the manifest says of the shard"
    return [] if same else [Problem(path.parent.name, beside.name, "changed", text)]


def _strays(folder: Path, num_shards: int) -> Iterator[tuple[str, Kind, str]]:
    """Temporary files, and shards beyond the last one."""
    known = {shard_name(index) for index in range(num_shards)}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") and path.name.endswith(TEMPORARY_SUFFIX):
            yield path.name, "stray", "a temporary file: of a build that runs now, or that was killed"
        elif path.match("shard-*.h5") and path.name not in known:
            yield path.name, "foreign", "the split has no such shard"
