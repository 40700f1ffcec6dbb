"""Check that a worker can be trusted with a shard: libraries, device, images and cache folder as on the others.

The driver asks every worker before the first shard is begun. A worker that joins later, or comes back after it died,
answers the same questions before its first task.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from hoi.cache.manifest import WORKERS_NAME
from hoi.cache.plan import splits_of
from hoi.cache.schema import BASE, Pass
from hoi.config import PipelineConfig
from hoi.datasets import UnreadableImage, open_images
from hoi.errors import UserError
from hoi.files import read_json, write_json
from hoi.machine import choose_device
from hoi.provenance import flatten, library_versions

LIBRARIES = ("torch", "torchvision", "open_clip_torch", "timm", "h5py", "numpy", "pillow", "distributed")
TOKEN_NAME = "driver.json"
UNREADABLE = "unreadable: "
SHOWN = 4

_admitted: set[str] = set()
"""Tokens of the builds whose check this process has passed."""


class Answer(NamedTuple):
    """What a worker says of itself; `written` is the file that it wrote into the cache folder, None if it could not."""

    host: str
    facts: dict[str, str]
    problems: tuple[str, ...]
    written: str | None


@dataclass(frozen=True)
class WorkerCheck:
    """The questions, with what the driver finds itself; small, since they travel with every task.

    Args:
        facts: What the workers agreed on; None until they were asked.
    """

    config_json: str
    token: str
    request: dict[str, Any]
    first_images: dict[str, str]
    facts: dict[str, str] | None = None
    of: Pass = BASE

    def answer(self, slots: int) -> Answer:
        """Answer everything, on a worker that runs `slots` tasks at the same time."""
        config = PipelineConfig.model_validate_json(self.config_json)
        facts, problems = library_versions(LIBRARIES), list[str]()
        if slots != 1:
            problems.append(f"it runs {slots} tasks at once; start it with --nthreads 1")
        # What numpy's matrix products were told at its import; they decide last bits of the cached similarities.
        told = [os.environ.get(name) for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")]
        threads = next(filter(None, told), str(os.cpu_count()))
        if threads != str(config.cache.threads):
            problems.append(
                f"numpy would compute with {threads} threads, cache.threads is {config.cache.threads}; "
                f"start it with OMP_NUM_THREADS={config.cache.threads}"
            )
        try:
            facts["device"] = choose_device(config.cache.device, "cache.device").type
        except UserError as error:
            problems.append(str(error))
        written = self._write(Path(config.cache.folder), problems)
        try:
            facts |= self._read(config, problems)
        # An OSError that left here would look like that of a worker which is gone.
        except (UserError, OSError) as error:
            problems.append(f"{error} (working directory {Path.cwd()})")
        return Answer(f"{platform.node()}, process {os.getpid()}", facts, tuple(problems), written)

    def _write(self, folder: Path, problems: list[str]) -> str | None:
        resolved = folder.absolute()
        try:
            found = read_json(folder / WORKERS_NAME / TOKEN_NAME)
        except (OSError, UserError) as error:
            found = str(error)
        if found != self.token:
            problems.append(
                f"it does not see the driver's cache folder as {resolved}; "
                "mount the shared folder there, or give an absolute cache.folder that all machines share"
            )
            return None
        written = f"{WORKERS_NAME}/{uuid.uuid4().hex}.json"
        try:
            write_json(folder / written, self.token)
        except (UserError, OSError) as error:
            problems.append(f"it cannot write there: {error}")
            return None
        return written

    def _read(self, config: PipelineConfig, problems: list[str]) -> dict[str, str]:
        # The driver's own reading is the yardstick for what can be read at all.
        facts = {}
        for split, seen_by_driver in self.first_images.items():
            seen = first_image(config, split)
            if seen != seen_by_driver and not seen_by_driver.startswith(UNREADABLE) and seen.startswith(UNREADABLE):
                problems.append(f"it cannot read the first image of split '{split}' ({seen})")
            facts[f"first image of split '{split}'"] = seen
        here, there = flatten(self.of.content.request(config)), flatten(self.request)
        differing = [key for key in sorted(here.keys() | there.keys()) if here.get(key) != there.get(key)]
        if differing:
            problems.append(f"the pipeline names other files there: {', '.join(differing[:SHOWN])} differ")
        return facts

    def settle(self, answers: Mapping[str, Answer | Exception]) -> WorkerCheck:
        """Return, on the driver, the check of later workers; a UserError names those that fail or differ."""
        folder = Path(PipelineConfig.model_validate_json(self.config_json).cache.folder)
        complaints = []
        for address, answer in sorted(answers.items()):
            if isinstance(answer, Exception):
                reason = f"{type(answer).__name__}: {answer}"
                complaints.append(f"{address}: cannot answer ({reason}); install hoi-distill there")
                continue
            problems = list(answer.problems)
            if answer.written is not None and not (folder / answer.written).exists():
                problems.append(f"what it writes into {folder} does not arrive here")
            complaints += [f"{address} ({answer.host}): {problem}" for problem in problems]
        if not complaints:
            given = {f"{address} ({a.host})": a.facts for address, a in answers.items() if isinstance(a, Answer)}
            facts = most_common(list(given.values()))
            complaints = [
                f"{worker}: {text}" for worker, said in sorted(given.items()) for text in differences(said, facts)
            ]
        if complaints:
            raise _refusal(complaints)
        return replace(self, facts=facts)

    def admit(self, slots: int) -> None:
        """Raise a UserError, on a worker before a task, unless it passed before or passes now."""
        if self.token in _admitted:
            return
        answer = self.answer(slots)
        complaints = [*answer.problems, *differences(answer.facts, self.facts or answer.facts)]
        if complaints:
            raise _refusal([f"{answer.host}, which joined later: {complaint}" for complaint in complaints])
        _admitted.add(self.token)


def first_image(config: PipelineConfig, split: str) -> str:
    """Return the hash of the pixels of a split's first image, or why it cannot be read."""
    source = open_images(config.dataset, split)
    try:
        return hashlib.sha256(source.read(0).tobytes()).hexdigest()[:16]
    except UnreadableImage as error:
        return f"{UNREADABLE}{source.image_ids[0]}, {error}"


def most_common(facts: list[dict[str, str]]) -> dict[str, str]:
    """Return for every fact the value that most workers give; of equals the first."""
    keys = sorted(set().union(*facts))
    return {key: Counter(each.get(key, "absent") for each in facts).most_common(1)[0][0] for key in keys}


def differences(facts: Mapping[str, str], others: Mapping[str, str]) -> list[str]:
    return [
        f"{key} is {facts.get(key, 'absent')}, elsewhere {others.get(key, 'absent')}"
        for key in sorted(facts.keys() | others.keys())
        if facts.get(key, "absent") != others.get(key, "absent")
    ]


def _refusal(complaints: list[str]) -> UserError:
    more = f"; and {len(complaints) - SHOWN} more" if len(complaints) > SHOWN else ""
    return UserError(
        "not every worker can build this cache",
        got="; ".join(complaints[:SHOWN]) + more,
        fix="mend or stop the named workers, then run the same command again: finished shards are kept",
    )


@contextmanager
def worker_check(config: PipelineConfig, request: dict[str, Any], of: Pass = BASE) -> Iterator[WorkerCheck | None]:
    """Open the check of a build's workers, None where there are none; its token lies in the cache folder so long."""
    folder = Path(config.cache.folder) / WORKERS_NAME
    if config.cache.scheduler == "synchronous":
        yield None
        return
    token = uuid.uuid4().hex
    write_json(folder / TOKEN_NAME, token)
    first_images = {split: first_image(config, split) for split in splits_of(config)}
    try:
        yield WorkerCheck(config.model_dump_json(), token, request, first_images, of=of)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
