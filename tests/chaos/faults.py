"""What goes wrong with files, disks, clocks and second builders: each is found, named and mended, and nothing is mixed.

A fault takes an empty folder, returns what was said of it, and raises AssertionError where that was not right.
"""

from __future__ import annotations

import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hoi.cache.tools.repair import set_aside
from hoi.cache.tools.verify import verify_split
from hoi.config import PipelineConfig
from hoi.errors import UserError
from tests.chaos.builds import NotHere, SlowSignals, build, check_content, content_of, small_build, start
from tests.fakes.pipelines import photo_pipeline

ROOT = Path(__file__).parents[2]
SHARD = "shard-00007.h5"


@dataclass(frozen=True)
class Sealed:
    """A complete cache and its content."""

    config: PipelineConfig
    split: Path
    content: dict[str, str]

    def check(self) -> None:
        check_content(Path(self.config.cache.folder), self.content)


def sealed(folder: Path) -> Sealed:
    config = small_build(folder, folder / "cache")
    build(config)
    return Sealed(config, folder / "cache" / "test", content_of(folder / "cache"))


def said_by_verify(cache: Sealed, pattern: str) -> str:
    said = "; ".join(map(str, verify_split(cache.split)))
    assert re.search(pattern, said), f"verify says: {said or 'nothing'}"
    return said


def mended_by_repair(cache: Sealed, pattern: str) -> str:
    """Return the problems `verify` names, after bad files were set aside and the missing ones built."""
    said = said_by_verify(cache, pattern)
    set_aside(cache.split, verify_split(cache.split))
    build(cache.config)
    shutil.rmtree(cache.split / "quarantine", ignore_errors=True)
    cache.check()
    return said


def truncated_shard(folder: Path) -> str:
    """A shard that lost its last byte: it alone is built again."""
    cache = sealed(folder)
    shard = cache.split / SHARD
    shard.write_bytes(shard.read_bytes()[:-1])
    return rebuilt_alone(cache, rf"{SHARD}: truncated")


def deleted_shard(folder: Path) -> str:
    """A shard that is gone: it alone is built again."""
    cache = sealed(folder)
    (cache.split / SHARD).unlink()
    return rebuilt_alone(cache, rf"{SHARD}: missing")


def half_written_shard(folder: Path) -> str:
    """A shard that is half-written under a temporary name: it alone is built again, and the half is gone."""
    cache = sealed(folder)
    shard, half = cache.split / SHARD, cache.split / f".{SHARD}.0123abcd.part"
    half.write_bytes(shard.read_bytes()[:1000])
    shard.unlink()
    said = rebuilt_alone(cache, rf"(?s)(?=.*{SHARD}: missing)(?=.*\.part: stray)")
    assert not half.exists()
    return said


def rebuilt_alone(cache: Sealed, pattern: str) -> str:
    """Return what verify says of a bad shard, after a build made that one again."""
    said = said_by_verify(cache, pattern)
    assert build(cache.config).splits[0].num_built == 1
    cache.check()
    return said


def flipped_byte(folder: Path) -> str:
    """One bit at a random place of every file that is content."""
    cache, rng = sealed(folder), random.Random(0)
    said = []
    for name in (SHARD, "bank.h5", "index.h5"):
        path = cache.split / name
        data = bytearray(path.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        said.append(mended_by_repair(cache, re.escape(name)))
    return "; ".join(said)


def foreign_shard(folder: Path) -> str:
    """The shard of another cache under the same name, with and without a manifest that says otherwise."""
    cache = sealed(folder)
    other = photo_pipeline(folder, (3,) * 40, teacher={"precision": "bf16"}, cache={"folder": str(folder / "other")})
    build(other)
    foreign = (folder / "other" / "test" / SHARD).read_bytes()
    small_build(folder, folder / "cache")
    (cache.split / SHARD).write_bytes(foreign)
    said = [mended_by_repair(cache, rf"{SHARD}: (foreign|truncated|changed)")]
    (cache.split / SHARD).write_bytes(foreign)
    (cache.split / "manifest.json").unlink()
    said.append(refused(cache.config, r"other settings .*teacher\.precision \(cache: bf16, now: fp32\)"))
    assert (cache.split / SHARD).read_bytes() == foreign
    (cache.split / SHARD).write_bytes((cache.split / "shard-00003.h5").read_bytes())
    said.append(refused(cache.config, "holds other images than planned"))
    (cache.split / SHARD).unlink()
    build(cache.config)
    cache.check()
    return "; ".join(said)


def refused(config: PipelineConfig, pattern: str) -> str:
    """What stage one says when it refuses."""
    try:
        build(config)
    except UserError as error:
        said = str(error)
    else:
        raise AssertionError(f"not refused, expected: {pattern}")
    assert re.search(pattern, said), f"refused with: {said}"
    return said


def two_builders(folder: Path) -> str:
    """Six at once on one folder: one builds, the others are refused, and nothing is mixed."""
    build(small_build(folder, folder / "alone"))
    config = small_build(folder, folder / "cache")
    drivers = [start(config, SlowSignals) for _ in range(6)]
    assert sorted(driver.wait() for driver in drivers) == [0, 2, 2, 2, 2, 2]
    said = {driver.report.read_text() for driver in drivers if driver.wait() == 2}
    assert all(re.search("another process is building this cache", text) for text in said), said
    check_content(folder / "cache", content_of(folder / "alone"))
    return f"one built, five were told: {said.pop()}"


def jumping_clock(folder: Path) -> str:
    """A clock that jumps by hours at every look, and files from the future, change nothing."""
    cache = sealed(folder)
    again = small_build(folder, folder / "jumping")
    real, rng = time.time, random.Random(1)
    time.time = lambda: real() + rng.uniform(-20_000, 20_000)
    try:
        driver = start(again)
        assert driver.wait() == 0, driver.report.read_text()
    finally:
        time.time = real
    for path in (folder / "jumping").rglob("*"):
        os.utime(path, (real() + 1e6, real() + 1e6) if hash(path.name) % 2 else (0, 0))
    assert build(again).splits[0].num_built == 0
    (folder / "jumping" / "test" / SHARD).unlink()
    assert build(again).splits[0].num_built == 1
    check_content(folder / "jumping", cache.content)
    return "the same bytes, and nothing is built twice"


def full_disk(folder: Path) -> str:
    """A disk of 200 KB: what fits is kept, and with more room the build goes on."""
    return mounted(
        folder,
        "mount -t tmpfs -o size=200k none {cache}",
        "import os; "
        "refused(config, r'the disk is full .*what is finished is kept'); "
        "done = len(list(Path(config.cache.folder).glob('test/shard-*.h5'))); assert 0 < done < 20, done; "
        "os.system('mount -o remount,size=20m ' + config.cache.folder); "
        "built = build(config).splits[0].num_built; assert built <= 20 - done + 1, built; "
        "check_content(Path(config.cache.folder), content_of(Path(config.cache.folder).with_name('alone'))); "
        "print(done, 'shards fitted,', built, 'were built with more room')",
    )


def read_only_folder(folder: Path) -> str:
    """A folder that is mounted read-only: refused in one line, the cache in it is untouched and can be read."""
    cache = sealed(folder)
    (cache.split / SHARD).unlink()
    said = mounted(
        folder,
        "mount --bind {cache} {cache} && mount -o remount,bind,ro {cache}",
        "print(refused(config, r'the folder cannot be written .*Read-only file system .*mend its permissions'))",
    )
    build(cache.config)
    cache.check()
    return said


def mounted(folder: Path, mount: str, code: str) -> str:
    """Runs Python on a small build with something mounted on its cache folder, seen by that program alone.

    Raises:
        NotHere: this machine does not let us mount.
    """
    cache = folder / "cache"
    cache.mkdir(exist_ok=True)
    build(small_build(folder, folder / "alone"))
    permitted = shutil.which("unshare") and not subprocess.run(["unshare", "--mount", "true"], check=False).returncode
    if not permitted:
        raise NotHere("no mount namespaces are permitted")
    program = textwrap.dedent(
        f"""
        from pathlib import Path
        from tests.chaos.faults import *
        config = small_build(Path({str(folder)!r}), Path({str(cache)!r}))
        {code}
        """
    )
    script = f"{mount.format(cache=cache)} || exit 77; exec {sys.executable} -c {shlex.quote(program)}"
    command = ["unshare", "--mount", "bash", "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 77:
        raise NotHere(" ".join(done.stderr.split()))
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split())


Fault = Callable[[Path], str]
FAULTS: tuple[Fault, ...] = (
    truncated_shard,
    deleted_shard,
    half_written_shard,
    flipped_byte,
    foreign_shard,
    read_only_folder,
    full_disk,
    two_builders,
    jumping_clock,
)
