"""Machines without machines: network namespaces on one bridge, each with its own processes, /tmp and /dev/shm.

Needs root and the `ip` program; where they are not given, `NoNodes` says why.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PORT = 8786


class NoNodes(Exception):
    """This machine does not let us make network namespaces; the text says why."""


@dataclass(frozen=True)
class Node:
    """A namespace with an address of its own.

    Args:
        name: Of the network namespace.
        address: IPv4 address on the bridge.
        folder: Its working directory, with its own HOME and log files.
    """

    name: str
    address: str
    folder: Path

    def start(self, command: Sequence[str], private: Sequence[Path] = ()) -> subprocess.Popen[bytes]:
        """Starts a program on the node. Killing it kills all that it started: its first process is the node's init.

        Args:
            command: Program and arguments.
            private: Folders of which this node sees an empty one of its own.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        own = ["/dev/shm", str(self.folder / "tmp"), *map(str, private)]
        (self.folder / "tmp").mkdir(exist_ok=True)
        script = "".join(f"mount -t tmpfs none {shlex.quote(folder)} && " for folder in own)
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
        """What the node's programs printed."""
        return (self.folder / "log.txt").read_text()


def power_off(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to everything that a node's program is."""
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=10)


@contextmanager
def bridged_nodes(folder: Path, number: int) -> Iterator[list[Node]]:
    """Nodes that reach one another and nothing else.

    Raises:
        NoNodes: namespaces are not permitted here.
    """
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
        raise NoNodes("there is no program `ip` here") from None
    if done.returncode:
        raise NoNodes(f"ip {' '.join(arguments)}: {' '.join(done.stderr.split())}")


@contextmanager
def cluster(nodes: Sequence[Node], private: Sequence[Path] = ()) -> Iterator[list[subprocess.Popen[bytes]]]:
    """A dask scheduler on the first node and a worker on each of the others; yields their programs in this order.

    Args:
        nodes: Of `bridged_nodes`.
        private: Folders of which the last node sees an empty one of its own.
    """
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


def wait_for(condition: object, what: str, timeout_s: float) -> None:
    """Returns once the condition holds.

    Raises:
        TimeoutError: it did not come true in time.
    """
    assert callable(condition)
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:g} s for {what}")
        time.sleep(0.02)
