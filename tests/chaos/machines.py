"""Stage one on a cluster of three machines that share a folder and nothing else, when one of them goes.

A case is a function of an empty folder. It returns what was found, and raises AssertionError where that was wrong.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from hoi.cache.build.run import build_cache
from hoi.config import load_config
from tests.chaos.content import content_of
from tests.chaos.nodes import PORT, ROOT, Node, bridged_nodes, cluster, power_off, wait_for

Case = Callable[[Path], str]


def settings(cache: Path) -> list[str]:
    """A small build of the embedded world: two splits, eight shards."""
    weights = ROOT / "hoi" / "world" / "weights"
    return [
        "dataset.splits={train: 14, test: 2}",
        "cache.device=cpu",
        "cache.images_per_shard=2",
        "teacher.batch_size=16",
        "teacher.crop.margins=[1.15]",
        f"detector.weights={weights / 'detector.safetensors'}",
        f"teacher.model=local-dir:{weights / 'clip'}",
        f"cache.folder={cache}",
    ]


def start_driver(hub: Node, folder: Path) -> tuple[Node, subprocess.Popen[bytes]]:
    """The real command, on the scheduler's machine; its cache is `folder/shared`."""
    driver = Node(hub.name, hub.address, folder / "driver")
    stage = [sys.executable, "-m", "hoi", "teacher-cache", "--config", str(ROOT / "pipeline.yaml")]
    address = f"cache.scheduler=tcp://{hub.address}:{PORT}"
    return driver, driver.start([*stage, *settings(folder / "shared"), address])


def wait_for_shards(folder: Path, driver: Node, program: subprocess.Popen[bytes]) -> int:
    """Number of shards that are there once there are two, while the build goes on."""
    shards = "shared/*/shard-*.h5"
    wait_for(lambda: len(list(folder.glob(shards))) >= 2 or program.poll() is not None, "two shards", 90)
    assert program.poll() is None, driver.log()
    assert not list(folder.glob("shared/*/manifest.json"))
    return len(list(folder.glob(shards)))


def check_against_local(folder: Path) -> None:
    """Nothing, if `folder/shared` holds what a build in this process gives."""
    build_cache(load_config(ROOT / "pipeline.yaml", [*settings(folder / "local"), "cache.scheduler=synchronous"]))
    assert content_of(folder / "shared") == content_of(folder / "local")


def lost_node(folder: Path) -> str:
    """A machine that loses its power midway: the others finish its shards, in the same run."""
    with bridged_nodes(folder, 3) as nodes, cluster(nodes) as (_, _, worker):
        driver, program = start_driver(nodes[0], folder)
        done = wait_for_shards(folder, driver, program)
        power_off(worker)
        assert program.wait(timeout=90) == 0, driver.log()
        assert "7 shards, 7 built now" in driver.log(), driver.log()
    check_against_local(folder)
    return f"lost after {done} of 8 shards; the bytes are those of a local run"


def lost_scheduler(folder: Path) -> str:
    """A scheduler that is killed midway: the driver says so, and a run without it goes on."""
    with bridged_nodes(folder, 3) as nodes, cluster(nodes) as (scheduler, *_):
        driver, program = start_driver(nodes[0], folder)
        done = wait_for_shards(folder, driver, program)
        power_off(scheduler)
        assert program.wait(timeout=90) == 2, driver.log()
    said = _error_of(driver)
    assert "the connection to the scheduler is lost" in said, said
    check_against_local_after_resume(folder)
    return f"lost after {done} of 8 shards; {said}"


def check_against_local_after_resume(folder: Path) -> None:
    """Finishes `folder/shared` in this process, then compares."""
    build_cache(load_config(ROOT / "pipeline.yaml", [*settings(folder / "shared"), "cache.scheduler=synchronous"]))
    check_against_local(folder)


def unshared_folder(folder: Path) -> str:
    """A machine that sees another folder under the cache's name is named before anything is computed."""
    (folder / "shared").mkdir()
    with bridged_nodes(folder, 3) as nodes, cluster(nodes, private=[folder / "shared"]):
        driver, program = start_driver(nodes[0], folder)
        assert program.wait(timeout=90) == 2, driver.log()
    said = _error_of(driver)
    assert f"tcp://{nodes[2].address}:" in said, said
    assert f"tcp://{nodes[1].address}:" not in said, said
    assert f"it does not see the driver's cache folder as {folder / 'shared'}" in said, said
    assert [path.name for path in (folder / "shared").rglob("*") if path.is_file()] == [".lock"]
    return said


def _error_of(driver: Node) -> str:
    lines = [line for line in driver.log().splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, driver.log()
    assert "Traceback" not in driver.log(), driver.log()
    return lines[0].removeprefix("error: ")


CASES: tuple[Case, ...] = (lost_node, lost_scheduler, unshared_folder)
