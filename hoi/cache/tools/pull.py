"""Pull a finished cache from anywhere that fsspec reaches (S3, HTTP, another disk), every byte verified.

The manifest comes first and says which files there are, with sizes and hashes; it is written last. Only names of the
format are asked for and written, so a manifest cannot point anywhere else.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import fsspec
from tqdm import tqdm

from hoi.cache.manifest import Manifest, parse_manifest, sole_builder
from hoi.cache.plan import splits_of
from hoi.cache.schema import BASE, Pass, extra_passes
from hoi.cache.tools.estimate import free_bytes
from hoi.config import PipelineConfig
from hoi.datasets import check_split
from hoi.errors import UserError
from hoi.files import file_sha256, json_sha256, read_json, remove_file, write_atomically, write_json

MAX_MANIFEST_BYTES = 1 << 30
DOWNLOADS = 4
"""Files that are fetched at once; each is in memory until its hash is known."""
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class RemoteFile:
    name: str
    num_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        is_size = isinstance(self.num_bytes, int) and not isinstance(self.num_bytes, bool) and self.num_bytes >= 0
        if not is_size or not isinstance(self.sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ValueError(f"size or hash of {self.name} is malformed")


@dataclass(frozen=True)
class Pulled:
    split: str
    of: Pass
    folder: Path
    num_files: int
    num_kept: int
    num_bytes: int

    def __str__(self) -> str:
        got = f"{self.num_files - self.num_kept} files fetched ({self.num_bytes / 1e6:.1f} MB), {self.num_kept} kept"
        return f"{self.of.label(self.split)}: {got}, all verified · {self.folder}"


def files_of(manifest: Manifest, split: str, of: Pass = BASE) -> list[RemoteFile]:
    """Return the files that a pass over a split has beside manifest and receipts; a ValueError if malformed."""
    if manifest.of != of:
        raise ValueError(f"it is of the {manifest.of.title}")
    names = [shard.name for shard in manifest.shards]
    if names != [of.shard_name(index) for index in range(len(names))]:
        raise ValueError("its shards are not numbered from 0 on, in order")
    if manifest.split != split:
        raise ValueError(f"it is of split '{manifest.split}'")
    if json_sha256(manifest.bank.parts) != manifest.bank.fingerprint:
        raise ValueError("the fingerprint is not the hash of its parts")
    return [
        RemoteFile(of.bank_name, manifest.bank.num_bytes, manifest.bank.sha256),
        *(RemoteFile(shard.name, shard.num_bytes, shard.sha256) for shard in manifest.shards),
        RemoteFile(of.index_name, manifest.index.num_bytes, manifest.index.sha256),
    ]


def pull_split(url: str, split: str, folder: Path, progress: Callable[[int], object], of: Pass = BASE) -> Pulled:
    """Fetch a finished pass over a split into a folder of the same name here.

    Files that are here with the right hash are kept, so an interrupted pull goes on where it was. `url` is the cache's
    folder, in any form that fsspec knows. Raises a UserError where nothing is there, it cannot be reached, its manifest
    is damaged or of another schema version, a file differs from it, another cache is in the way, or the disk is small.
    """
    place, here = f"{url.rstrip('/')}/{split}", folder / split
    where = f"{place}/{of.manifest_name}"
    data = _fetch(where, MAX_MANIFEST_BYTES)
    try:
        manifest = parse_manifest(json.loads(data), where, "ask whoever made it for a cache of this release")
        files = files_of(manifest, split, of)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        got = " ".join(str(error).split())[:200]
        raise UserError("this manifest is damaged", where=where, got=got, fix="check the location") from None
    _refuse_other_cache(here, manifest, data)
    remove_file(here / of.manifest_name)
    missing = [file for file in files if not _is_here(here / file.name, file)]
    needed, free = sum(file.num_bytes for file in missing), free_bytes(here)
    progress(sum(file.num_bytes for file in files) - needed)
    if needed > free:
        sizes = {"expected": f"{needed / 1e9:.2f} GB", "got": f"{free / 1e9:.2f} GB"}
        raise UserError("the disk is too small", where=here, **sizes)
    # What the split was begun with comes first, so that a partial pull says what it is part of.
    write_json(here / of.bank_receipt_name, asdict(manifest.bank))
    with ThreadPoolExecutor(DOWNLOADS) as pool:
        try:
            for file in pool.map(lambda file: _bring(place, file, here), missing):
                progress(file.num_bytes)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for shard in manifest.shards:
        write_json((here / shard.name).with_suffix(".json"), shard.to_dict())
    write_atomically(here / of.manifest_name, data)
    return Pulled(split, of, here, len(files), len(files) - len(missing), needed)


def _refuse_other_cache(here: Path, manifest: Manifest, data: bytes) -> None:
    begun = None
    with suppress(ValueError):
        begun = read_json(here / manifest.of.bank_receipt_name)
    sealed = here / manifest.of.manifest_name
    same_manifest = not sealed.exists() or sealed.read_bytes() == data
    if same_manifest and begun in (None, asdict(manifest.bank)):
        return
    raise UserError(
        f"another {manifest.of.title} is in this folder",
        where=here,
        expected=f"nothing, or parts of the cache with fingerprint {manifest.bank.fingerprint[:12]}",
        got=f"fingerprint {str(begun.get('fingerprint'))[:12]}" if isinstance(begun, dict) else "another manifest",
        fix=f"pull to another folder, or move {here} away",
    )


def _is_here(path: Path, file: RemoteFile) -> bool:
    # A link is replaced by a file: what it points to is none of this cache's.
    if path.is_symlink() or not path.is_file() or path.stat().st_size != file.num_bytes:
        return False
    return file_sha256(path) == file.sha256


def _bring(place: str, file: RemoteFile, here: Path) -> RemoteFile:
    url = f"{place}/{file.name}"
    data = _fetch(url, file.num_bytes)
    digest = hashlib.sha256(data).hexdigest()
    if len(data) != file.num_bytes or digest != file.sha256:
        raise UserError(
            "a file differs from what its manifest says",
            where=url,
            expected=f"{file.num_bytes} bytes, SHA-256 {file.sha256[:12]}",
            got=f"{len(data)} bytes, SHA-256 {digest[:12]}",
            fix="run the same command again; if it stays so, run hoi cache verify where the cache was made",
        )
    write_atomically(here / file.name, data)
    return file


def _fetch(url: str, max_bytes: int) -> bytes:
    # Reading stops one byte after the limit.
    data, left = bytearray(), max_bytes + 1
    try:
        with fsspec.open(url, "rb") as remote:
            while left and (block := remote.read(min(BLOCK_BYTES, left))):
                data += block
                left -= len(block)
        return bytes(data)
    except FileNotFoundError:
        fix = "give the folder that holds the splits' folders, as URL"
        raise UserError("there is no such file", where=url, fix=fix) from None
    except ImportError as error:
        raise UserError("this kind of location needs a package that is not installed", where=url, got=error) from None
    except Exception as error:
        # Every protocol raises classes of its own; whichever it is, the file is out of reach.
        got = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError("the location cannot be read", where=url, got=got) from None


@dataclass(frozen=True)
class PullReport:
    parts: tuple[Pulled, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.parts))


def pull(
    config: PipelineConfig, url: str, to: Path, splits: Sequence[str] | None = None, passes: Sequence[str] | None = None
) -> PullReport:
    """Fetch splits of a finished cache into a folder here, and verify every byte.

    The data set of the config names the splits, its `vlms` the extra passes; a UserError as of `pull_split`.
    """
    for split in splits or ():
        check_split(config.dataset, split)
    wanted = [BASE, *(extra_passes(config) if passes is None else map(Pass, passes))]
    with sole_builder(to), tqdm(unit="B", unit_scale=True, desc="pull") as bar:
        return PullReport(
            tuple(pull_split(url, split, to, bar.update, of) for split in splits or splits_of(config) for of in wanted)
        )
