"""A split's folder to everything that is wrong with it: sizes, hashes and tables against manifest and schema.

Nothing is loaded but one shard's tables at a time, and nothing is written.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tqdm import tqdm

from hoi.cache.fingerprint import differing_keys, request_parts
from hoi.cache.manifest import (
    BASE,
    MANIFEST_NAME,
    BankReceipt,
    Manifest,
    Pass,
    Receipt,
    passes_in,
    read_manifest,
    read_receipt,
)
from hoi.cache.plan import hash_of_ids, is_complete, plan_split, splits_of
from hoi.cache.schema import check_detections, check_tables, fields_of
from hoi.cache.shard import (
    BrokenFile,
    Header,
    inspect_shard,
    read_header,
    read_text,
)
from hoi.config import PipelineConfig
from hoi.errors import UserError
from hoi.files import TEMPORARY_SUFFIX, file_sha256, json_sha256, read_json
from hoi.vocabulary import Vocabulary

if TYPE_CHECKING:
    from hoi.cache.build.models import ExtractorFactory
    from hoi.cache.tools.recompute import Recomputed

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
    """All problems of a split, by name; none for a split that is complete and whole, and all passes of which are.

    Raises:
        UserError: a manifest or a shard is of another schema version.
    """
    if not folder.is_dir():
        return [Problem(folder.name, MANIFEST_NAME, "missing", "there is no such split in this cache")]
    further = [problem for of in passes_in(folder) for problem in verify_pass(folder, of)]
    return [*verify_pass(folder), *further]


def verify_pass(folder: Path, of: Pass = BASE) -> list[Problem]:
    """All problems of one pass over a split.

    A pass that is not sealed is one problem, and what is there is judged by its own receipts.

    Raises:
        UserError: the manifest or a shard is of another schema version.
    """
    split = folder.name
    manifest, problems = _manifest(folder, of)
    bank, bank_problems = _bank(folder, of, manifest)
    problems += bank_problems
    if manifest is not None:
        receipts: list[Receipt | None] = list(manifest.shards)
        problems += _judge_index(folder, manifest)
    else:
        receipts = _present_receipts(folder, of, bank)
        if not problems:
            done, planned = sum((folder / of.shard_name(i)).exists() for i in range(len(receipts))), len(receipts)
            text = f"the {of.title if not of.is_base else 'split'} is not sealed: {done} of {planned} shards are there"
            problems.append(Problem(split, of.manifest_name, "incomplete", text))
    judge = _ShardJudge(folder, of, bank)
    start = 0
    for index, receipt in enumerate(receipts):
        path = folder / of.shard_name(index)
        if manifest is not None or path.exists():
            problems += [Problem(split, path.name, *found) for found in judge.problems(path, index, start, receipt)]
            problems += _judge_receipt(path, receipt if manifest is not None else None)
        start += receipt.num_images if receipt is not None else bank.images_per_shard if bank is not None else 0
    problems += [Problem(split, *found) for found in _strays(folder, of, len(receipts))]
    return problems


def _manifest(folder: Path, of: Pass) -> tuple[Manifest | None, list[Problem]]:
    try:
        manifest = read_manifest(folder, of)
    except UserError as error:
        if error.expected is not None:
            raise
        return None, [Problem(folder.name, of.manifest_name, "damaged", str(error.got))]
    if manifest is None:
        return None, []
    problems = []
    names = [shard.name for shard in manifest.shards]
    if names != [of.shard_name(index) for index in range(len(names))]:
        problems.append("its shards are not numbered from 0 on, in order")
    if manifest.split != folder.name:
        problems.append(f"it is the manifest of split '{manifest.split}'")
    if manifest.num_images != manifest.bank.num_images:
        problems.append(f"its shards hold {manifest.num_images} images, the split has {manifest.bank.num_images}")
    if problems:
        return None, [Problem(folder.name, of.manifest_name, "damaged", text) for text in problems]
    return manifest, []


def _bank(folder: Path, of: Pass, manifest: Manifest | None) -> tuple[BankReceipt | None, list[Problem]]:
    """The bank's receipt, the manifest's before the file's own, and what is wrong with both files."""
    path = folder / of.bank_name
    try:
        plain = read_json(folder / of.bank_receipt_name)
        own = BankReceipt(**plain) if plain is not None else None
        own_problem = None if own is not None else ("missing", "what the split was begun with")
    except (ValueError, TypeError) as error:
        own, own_problem = None, ("damaged", " ".join(repr(error).split()))
    if manifest is not None and own is not None and own != manifest.bank:
        own_problem = ("changed", "it differs from what the manifest says of it")
    bank = manifest.bank if manifest is not None else own
    found: list[tuple[str, str, str]] = []
    if own_problem is not None:
        found.append((of.bank_receipt_name, *own_problem))
    if bank is not None:
        found += [(path.name, *problem) for problem in _judge_bank(path, of, bank)]
    return bank, [Problem(folder.name, name, kind, text) for name, kind, text in found]  # type: ignore[arg-type]


def _judge_bank(path: Path, of: Pass, bank: BankReceipt) -> Iterator[tuple[Kind, str]]:
    wrong = _judge_bytes(path, bank.num_bytes, bank.sha256)
    if wrong is not None:
        yield wrong
        return
    if json_sha256(bank.parts) != bank.fingerprint:
        yield "damaged", "the fingerprint is not the hash of its parts"
    try:
        header = read_header(path)
        shape = header.locations["text_embedding" if of.is_base else "num_tokens"].shape
        vocabulary = Vocabulary.from_dict(header.json("vocabulary"))
    except (BrokenFile, KeyError, UserError) as error:
        yield "damaged", str(error)
        return
    expected = (bank.axes["K"], bank.axes["D"]) if of.is_base else (len(vocabulary),)
    if shape != expected or len(vocabulary) != bank.axes.get("K", len(vocabulary)):
        yield "damaged", f"texts of shape {shape} and {len(vocabulary)} interactions, expected those of {bank.axes}"
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
    name = manifest.of.index_name
    if manifest.index is None:
        return [Problem(folder.name, name, "missing", "the split was sealed without an index")]
    wrong = _judge_bytes(folder / name, manifest.index.num_bytes, manifest.index.sha256)
    return [] if wrong is None else [Problem(folder.name, name, *wrong)]


def _present_receipts(folder: Path, of: Pass, bank: BankReceipt | None) -> list[Receipt | None]:
    """The receipts beside the shards of a pass that is not sealed; None where there is none."""
    if bank is None:
        return []
    planned = -(-bank.num_images // bank.images_per_shard)
    return [read_receipt(folder / of.shard_name(index)) for index in range(planned)]


class _ShardJudge:
    """What every shard of a pass is compared with.

    Args:
        folder: Of the split.
        of: Which pass.
        bank: What it was begun with, as far as that is known.
    """

    def __init__(self, folder: Path, of: Pass, bank: BankReceipt | None) -> None:
        self._of, self._bank = of, bank
        base = None if of.is_base else _manifest(folder, BASE)[0]
        self._base_sha256 = [receipt.sha256 for receipt in base.shards] if base is not None else []
        self._num_objects = _num_objects(folder)

    def problems(self, path: Path, index: int, start: int, receipt: Receipt | None) -> list[tuple[Kind, str]]:
        """All that is wrong with one shard.

        Args:
            path: Its file.
            index, start: Its place in the split.
            receipt: What was written of it, if that is known.
        """
        if not path.is_file():
            return [("missing", "there is no such file")]
        wrong = _judge_bytes(path, receipt.num_bytes, receipt.sha256) if receipt is not None else None
        try:
            header = inspect_shard(path, self._of.fields)
        except (BrokenFile, ValueError) as error:
            return [wrong or ("truncated", f"it is cut short, or no shard ({error})")]
        except UserError:
            # Of another schema version, unless these are not the bytes that were written.
            if wrong is None:
                raise
            return [wrong]
        foreign = self._foreign(header, index, start, receipt)
        if foreign:
            return [("foreign", "; ".join(foreign))]
        if wrong is not None:
            return [wrong]
        damage = self._damage(header)
        return [] if damage is None else [("damaged", damage)]

    def _foreign(self, header: Header, index: int, start: int, receipt: Receipt | None) -> list[str]:
        """In what a shard differs from the one that belongs here."""
        attributes, bank = header.attributes, self._bank
        wanted = {"split": header.path.parent.name, "index": index, "start": start}
        if receipt is not None:
            wanted["image_ids_sha256"] = receipt.image_ids_sha256
        if index < len(self._base_sha256):
            wanted["base_sha256"] = self._base_sha256[index]
        if bank is not None and attributes["fingerprint"] != bank.fingerprint:
            return differing_keys(bank.parts, attributes["fingerprint_parts"]) or ["another fingerprint"]
        return [
            f"{name} is {attributes.get(name)}, expected {value}"
            for name, value in wanted.items()
            if attributes.get(name) != value
        ]

    def _damage(self, header: Header) -> str | None:
        """What the schema says against a shard's tables."""
        axes, fields = header.attributes["axes"], self._of.fields
        try:
            tables = {field.name: header.table(field.name, mapped=True) for field in fields_of(axes, fields)}
            check_tables(tables, axes, fields)
            if self._of.is_base and self._num_objects is not None:
                check_detections(tables, self._num_objects)
        except (ValueError, KeyError, OSError) as error:
            return str(error)
        ids = read_text(tables["image_id"])
        if hash_of_ids(ids) != header.attributes["image_ids_sha256"]:
            return "its image ids are not those of its attribute image_ids_sha256"
        return None


def _num_objects(folder: Path) -> int | None:
    """Objects of the split's vocabulary; None where the bank does not say."""
    try:
        return len(Vocabulary.from_dict(read_header(folder / BASE.bank_name).json("vocabulary")).objects)
    except (BrokenFile, KeyError, FileNotFoundError, UserError, ValueError):
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


def _strays(folder: Path, of: Pass, num_shards: int) -> Iterator[tuple[str, Kind, str]]:
    """Shards beyond the last one, and, said once for all passes, temporary files."""
    known = {of.shard_name(index) for index in range(num_shards)}
    for path in sorted(folder.iterdir()):
        if of.is_base and path.name.startswith(".") and path.name.endswith(TEMPORARY_SUFFIX):
            yield path.name, "stray", "a temporary file: of a build that runs now, or that was killed"
        elif path.match(of.shard_pattern) and path.name not in known:
            yield path.name, "foreign", "the split has no such shard"


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found, by split; `num_shards` counts those of every pass by its title."""

    problems: tuple[Problem, ...]
    recomputed: dict[str, Recomputed]
    num_shards: dict[str, dict[str, int]]
    seconds: float

    @property
    def is_good(self) -> bool:
        return not self.problems and not any(found.problems for found in self.recomputed.values())

    def __str__(self) -> str:
        lines = [str(problem) for problem in self.problems]
        for split, found in self.recomputed.items():
            lines += [f"{split}: {text}" for text in found.problems]
            largest = ", ".join(f"{name} {value:.2g}" for name, value in found.differences.items())
            lines.append(f"{split}: {len(found.image_ids)} images recomputed, largest absolute difference: {largest}")
        bad = {problem.split for problem in self.problems}
        for split, numbers in self.num_shards.items():
            counts = ", ".join(f"{number} shards of the {title}" for title, number in numbers.items())
            lines += [f"{split}: {counts}, as they were written"] if split not in bad else []
        verdict = "nothing is wrong" if self.is_good else "next: make cache-repair, or see what changed"
        return "\n".join([*lines, f"verified in {self.seconds:.1f} s: {verdict}"])


def verify(
    config: PipelineConfig, recompute: int | None = None, seed: int = 0, factory: ExtractorFactory | None = None
) -> VerifyReport:
    """Every file of a cache against manifest and schema; on request a few images against the models, too.

    Args:
        config: Its cache, with all splits that lie there.
        recompute: Random images per split that go through the models again; None for none.
        seed: Says which.
        factory: As for `hoi.cache.build.run.build_cache`.

    Raises:
        UserError: there is no cache, it is of another schema version, or the models to recompute with are others.
    """
    start, folder = time.monotonic(), Path(config.cache.folder)
    splits = list(dict.fromkeys([*splits_of(config), *cached_splits(folder)]))
    if not cached_splits(folder):
        raise UserError("there is no teacher cache", where=folder, fix="make teacher-cache, or set cache.folder")
    problems: list[Problem] = []
    num_shards: dict[str, dict[str, int]] = {}
    for split in tqdm(splits, unit="split", desc="verify", leave=False):
        problems += verify_split(folder / split)
        passes = (BASE, *passes_in(folder / split))
        manifests = {of.title: None if problems else read_manifest(folder / split, of) for of in passes}
        num_shards[split] = {title: len(m.shards) for title, m in manifests.items() if m is not None}
    recomputed = {}
    if recompute is not None and not problems:
        recomputed = _recompute(config, recompute, seed, factory)
    return VerifyReport(tuple(problems), recomputed, num_shards, time.monotonic() - start)


def _recompute(
    config: PipelineConfig, number: int, seed: int, factory: ExtractorFactory | None
) -> dict[str, Recomputed]:
    from hoi.cache.build.models import hold, load_extractor, release
    from hoi.cache.build.run import complete_manifest
    from hoi.cache.build.worker import as_begun
    from hoi.cache.tools.recompute import recompute

    request, folder = request_parts(config), Path(config.cache.folder)
    manifests = {split: complete_manifest(folder / split) for split in splits_of(config)}
    for split in manifests:
        is_complete(plan_split(config, split), request)
    try:
        models = factory or load_extractor
        return {
            split: recompute(
                folder / split,
                manifest,
                hold(as_begun(config.model_dump_json(), folder / split), models),
                number,
                seed,
            )
            for split, manifest in tqdm(manifests.items(), unit="split", desc="recompute", leave=False)
        }
    finally:
        release()
