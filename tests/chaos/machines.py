"""Stage one on a cluster of three machines that share a folder and nothing else, when one of them goes.

The machines are network namespaces on one bridge, each with its own processes, /tmp and /dev/shm. They need root and
the `ip` program; `NotHere` says why where these are not given. A case takes an empty folder and returns what it found.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from hoi.cache.build.run import build_cache
from hoi.config import load_config
from tests.chaos.builds import NotHere, content_of, wait_for

Case = Callable[[Path], str]
ROOT = Path(__file__).parents[2]
PORT = 8786


@dataclass(frozen=True)
class Node:
    """A network namespace with an IPv4 address on the bridge, and a folder for its HOME and log."""

    name: str
    address: str
    folder: Path

    def start(self, command: Sequence[str], private: Sequence[Path] = ()) -> subprocess.Popen[bytes]:
        """Start a program on the node; killing it kills all that it started, as it is the node's init.

        Args:
            private: Folders of which this node sees an empty one of its own.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        hidden = ["/dev/shm", str(self.folder / "tmp"), *map(str, private)]
        (self.folder / "tmp").mkdir(exist_ok=True)
        script = "".join(f"mount -t tmpfs none {shlex.quote(folder)} && " for folder in hidden)
        script += f"cd {shlex.quote(str(self.folder))} && exec {shlex.join(command)}"
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder / "tmp"),
            "PYTHONPATH": str(ROOT),
        }
        apart = ["unshare", "--mount", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
        with open(self.folder / "log.txt", "ab") as log:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, *apart, "bash", "-c", script],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def log(self) -> str:
        return (self.folder / "log.txt").read_text()


def power_off(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=10)


@contextmanager
def bridged_nodes(folder: Path, number: int) -> Iterator[list[Node]]:
    """Yield nodes that reach one another and nothing else; raise `NotHere` where namespaces are not permitted."""
    prefix = f"hoi{uuid.uuid4().hex[:6]}"
    nodes = [Node(f"{prefix}-{n}", f"10.77.0.{n + 1}", folder / f"node-{n}") for n in range(number)]
    with ExitStack() as stack:
        for node in nodes:
            _ip("netns", "add", node.name)
            stack.callback(subprocess.run, ["ip", "netns", "del", node.name], check=False, capture_output=True)
        hub = nodes[0]
        _ip("-n", hub.name, "link", "set", "lo", "up")
        _ip("-n", hub.name, "link", "add", "br0", "type", "bridge")
        _ip("-n", hub.name, "addr", "add", f"{hub.address}/24", "dev", "br0")
        _ip("-n", hub.name, "link", "set", "br0", "up")
        for number, node in enumerate(nodes[1:], start=1):
            _ip(
                "-n", hub.name, "link", "add", f"to{number}", "type", "veth", "peer", "name", "eth0", "netns", node.name
            )
            _ip("-n", hub.name, "link", "set", f"to{number}", "master", "br0", "up")
            _ip("-n", node.name, "addr", "add", f"{node.address}/24", "dev", "eth0")
            _ip("-n", node.name, "link", "set", "eth0", "up")
            _ip("-n", node.name, "link", "set", "lo", "up")
        yield nodes


def _ip(*arguments: str) -> None:
    try:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise NotHere("there is no program `ip` here") from None
    if done.returncode:
        raise NotHere(f"ip {' '.join(arguments)}: {' '.join(done.stderr.split())}")


@contextmanager
def cluster(nodes: Sequence[Node], private: Sequence[Path] = ()) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Yield a dask scheduler on the first node and a worker on each of the others; `private` are the last one's."""
    address = f"tcp://{nodes[0].address}:{PORT}"
    scheduler = ["scheduler", "--host", nodes[0].address, "--port", str(PORT), "--no-dashboard"]
    worker = ["worker", address, "--nthreads", "1", "--no-dashboard", "--death-timeout", "60"]
    dask = [sys.executable, "-m", "dask"]
    programs = [nodes[0].start([*dask, *scheduler])]
    try:
        programs += [node.start([*dask, *worker], private if node is nodes[-1] else ()) for node in nodes[1:]]
        wait_for(lambda: nodes[0].log().count("Register worker") >= len(nodes) - 1, "the workers to join", 60)
        yield programs
    finally:
        for program in programs:
            if program.poll() is None:
                power_off(program)


def settings(cache: Path) -> list[str]:
    """Return overrides for a small build of the embedded world: two splits, eight shards."""
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
    """Start the real command on the scheduler's machine; its cache is `folder/shared`."""
    driver = Node(hub.name, hub.address, folder / "driver")
    stage = [sys.executable, "-m", "hoi", "teacher-cache", "--config", str(ROOT / "pipeline.yaml")]
    address = f"cache.scheduler=tcp://{hub.address}:{PORT}"
    return driver, driver.start([*stage, *settings(folder / "shared"), address])


def wait_for_shards(folder: Path, driver: Node, program: subprocess.Popen[bytes]) -> int:
    """Return the number of shards once there are two, while the build goes on."""
    shards = "shared/*/shard-*.h5"
    wait_for(lambda: len(list(folder.glob(shards))) >= 2 or program.poll() is not None, "two shards", 300)
    assert program.poll() is None, driver.log()
    assert not list(folder.glob("shared/*/manifest.json"))
    return len(list(folder.glob(shards)))


def build_here(cache: Path) -> None:
    build_cache(load_config(ROOT / "pipeline.yaml", [*settings(cache), "cache.scheduler=synchronous"]))


def check_against_local(folder: Path) -> None:
    """Fail unless `folder/shared` holds what a build in this process gives."""
    build_here(folder / "local")
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
    build_here(folder / "shared")
    check_against_local(folder)
    return f"lost after {done} of 8 shards; {said}"


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
