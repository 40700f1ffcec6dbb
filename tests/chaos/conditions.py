"""Users, machines and neighbours that are not as usual: every command works all the same, or says what to do."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from hoi.cache.build.run import build_cache
from hoi.cache.read import split as reading
from hoi.config import PipelineConfig
from hoi.training.train import train_students
from tests.chaos.builds import NotHere, build, check_content, content_of, small_build
from tests.chaos.faults import mounted, refused
from tests.chaos.verbs import forked, results_of
from tests.fakes.extractors import DrawnSignals
from tests.fakes.pipelines import small_pipeline

NOBODY = 65534
NUM_REBUILT = 6
CACHE = {"scheduler": "synchronous", "device": "cpu"}
LACKS_SHM = (
    "mkdir -p {cache}.dev && mount -t tmpfs none {cache}.dev && cd {cache}.dev && touch null zero random urandom && "
    "for name in null zero random urandom; do mount --bind /dev/$name $name; done && mount --rbind {cache}.dev /dev && "
    "cd - > /dev/null"
)
FULL_SHM = "mount -t tmpfs -o size=4k none /dev/shm && head -c 4096 /dev/zero > /dev/shm/full"
REFUSED_AND_BUILT = (
    "cache = Path(config.cache.folder); local = small_build(cache.parent, cache, scheduler='local', workers=2); "
    "print(refused(local, 'shared memory is missing or full .*/dev/shm .*cache.scheduler=synchronous')); "
    "build(config); check_content(cache, content_of(cache.with_name('alone')))"
)


def missing_shared_memory(folder: Path) -> str:
    """A machine, often a container, without /dev/shm: workers are refused, this process builds."""
    return mounted(folder, LACKS_SHM, REFUSED_AND_BUILT)


def full_shared_memory(folder: Path) -> str:
    """A /dev/shm without a free byte."""
    return mounted(folder, FULL_SHM, REFUSED_AND_BUILT)


def other_user(folder: Path) -> str:
    """A user who is not root and has no home builds in a folder of their own, and is refused elsewhere."""
    build(small_build(folder, folder / "alone"))
    theirs = folder / "theirs"
    theirs.mkdir()
    config, elsewhere = (small_build(folder, cache) for cache in (theirs / "cache", folder / "new"))
    if os.getuid() != 0:
        raise NotHere("only root can become another user")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    os.chown(theirs, NOBODY, NOBODY)

    def as_nobody() -> None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        os.environ |= {"HOME": "/nonexistent", "USER": "nobody"}
        build(config)
        (theirs / "said").write_text(refused(elsewhere, "the folder cannot be written .*mend its permissions"))

    driver = forked(as_nobody, folder / "said")
    assert driver.wait() == 0, driver.report.read_text()
    check_content(theirs / "cache", content_of(folder / "alone"))
    return f"the same bytes; elsewhere: {(theirs / 'said').read_text()}"


def backward_clock(folder: Path) -> str:
    """A clock that goes back by a minute at every look: the same weights as ever."""
    build_cache(small_pipeline(folder), DrawnSignals)
    expected = trained(folder, "forward")
    real, steps = time.time, iter(range(10**9))
    time.time = lambda: real() - 60 * next(steps)
    try:
        found = trained(folder, "backward")
    finally:
        time.time = real
    assert found == expected
    return f"{len(found)} files equal"


def trained(folder: Path, name: str) -> dict[str, bytes]:
    """Return the weights of a training in a process of its own."""
    driver = forked(lambda: train_students(training(folder, name)), folder / "said")
    assert driver.wait() == 0, driver.report.read_text()
    return weights_of(folder / name)


def training(folder: Path, name: str) -> PipelineConfig:
    train = {"seeds": [0], "epochs": 30, "batch_images": 8, "checkpoint_every": 10, "device": "cpu"}
    return small_pipeline(folder, students={"student": {"width": 16}}, train=train, output=str(folder / name))


def weights_of(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in results_of(folder).items() if name.endswith(".safetensors")}


def rebuilt_while_trained(folder: Path) -> str:
    """A cache that is removed and built with other settings while students learn from it: no weight is of both."""
    build_cache(small_pipeline(folder), DrawnSignals)
    build_cache(
        small_pipeline(folder, cache={**CACHE, "folder": str(folder / "other")}, pairs={"min_score": 0.7}), DrawnSignals
    )
    (folder / "cache").rename(folder / "kept")
    shutil.copytree(folder / "kept", folder / "cache")
    begin = time.monotonic()
    expected = trained(folder, "undisturbed")
    seconds, rng = time.monotonic() - begin, random.Random(0)
    codes, said = [], set[str]()
    for number in range(NUM_REBUILT):
        shutil.rmtree(folder / "cache")
        shutil.copytree(folder / "kept", folder / "cache")

        def train(number: int = number) -> None:
            # Every second one reads mapped shards, batch by batch, as from a cache larger than the memory.
            setattr(reading, "free_memory_bytes", lambda *_: 10**12 * (number % 2))  # noqa: B010
            train_students(training(folder, str(number)))

        driver = forked(train, folder / "said")
        time.sleep(rng.uniform(0, seconds))
        shutil.rmtree(folder / "cache")
        shutil.copytree(folder / "other", folder / "cache")
        codes.append(driver.wait())
        text = driver.report.read_text()
        if codes[-1] == 0:
            assert weights_of(folder / str(number)) == expected, f"weights of two caches in run {number}"
        else:
            assert (codes[-1], text[:7], "next: " in text) == (2, "error: ", True), text
            said.add(text.split(" · ")[0])
    return f"{codes.count(0)} went on to the same weights, {codes.count(2)} were told: {'; '.join(sorted(said))}"


CONDITIONS: tuple[Callable[[Path], str], ...] = (
    missing_shared_memory,
    full_shared_memory,
    other_user,
    backward_clock,
    rebuilt_while_trained,
)
