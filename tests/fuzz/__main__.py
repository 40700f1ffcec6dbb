"""Spoil every file that the product reads, node by node, and count what happens: `make fuzz`.

    python -m tests.fuzz [--cases 20000] [--seed 0] [--only TEXT] [--list]

Cases are drawn evenly over the kinds of files, and run in forked processes of two managers. The exit code is 1 if a
case ended in anything but a result or one clear line.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TQDM_DISABLE"] = "1"

from tests.fuzz.forked import Outcome, outcome_of, run_forked
from tests.fuzz.targets import Target, targets

MANAGERS = 2
KINDS = ("read", "refused", "raw exception", "hang", "signal")


def draw(known: list[Target], number: int, seed: int) -> list[tuple[int, int]]:
    """Return (target, variant) of a number of cases, as even over the targets as their variants allow, shuffled."""
    rng = np.random.default_rng(seed)
    left = [rng.permutation(len(target.variants)).tolist() for target in known]
    drawn: list[tuple[int, int]] = []
    while len(drawn) < number and any(left):
        takes = rng.random(len(known)) < [target.share for target in known]
        drawn += [(row, variants.pop()) for row, variants in enumerate(left) if variants and takes[row]]
    return [drawn[row] for row in rng.permutation(min(number, len(drawn)))]


def run(known: list[Target], drawn: list[tuple[int, int]], root: Path) -> list[Outcome]:
    """Run cases in two managers that fork, and return their outcomes in order."""
    context = multiprocessing.get_context("fork")
    queue: Any = context.Queue()
    managers = [
        context.Process(target=_manage, args=(known, drawn[start::MANAGERS], root / str(start), queue))
        for start in range(MANAGERS)
    ]
    for manager in managers:
        manager.start()
    outcomes: list[Outcome] = [Outcome("signal", "its manager ended")] * len(drawn)
    for _ in drawn:
        where, number, outcome = queue.get()
        outcomes[int(where) + number * MANAGERS] = outcome
    for manager in managers:
        manager.join()
    return outcomes


def _manage(known: list[Target], drawn: list[tuple[int, int]], work: Path, queue: Any) -> None:
    work.mkdir(parents=True, exist_ok=True)
    cases = [known[row].case(variant, work) for row, variant in drawn]
    for number, outcome in run_forked(cases):
        queue.put((work.name, number, outcome))


def table(known: list[Target], drawn: list[tuple[int, int]], outcomes: list[Outcome]) -> str:
    """Return the counts of outcomes by what was read."""
    counts: dict[str, Counter[str]] = {}
    sums: dict[str, float] = {}
    for (row, _), outcome in zip(drawn, outcomes, strict=True):
        target = known[row]
        name = f"{target.name}: {target.file}"
        counts.setdefault(name, Counter())[outcome.kind] += 1
        sums[name] = sums.get(name, 0.0) + outcome.seconds
    total = sum(counts.values(), Counter())
    width = max(map(len, counts))
    lines = [f"{'file':{width}}  {'cases':>6}  " + "  ".join(f"{kind:>13}" for kind in KINDS) + "  seconds"]
    for name, count in [*sorted(counts.items()), ("all", total)]:
        cells = "  ".join(f"{count[kind]:13}" for kind in KINDS)
        lines.append(f"{name:{width}}  {count.total():6}  {cells}  {sums.get(name, sum(sums.values())):7.1f}")
    return "\n".join(lines)


def main() -> int:
    """Run, print the table and what went wrong, most frequent first; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of the name of a target")
    parser.add_argument("--list", action="store_true", help="print every case that went wrong")
    given = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        known = [each for each in targets(Path(folder)) if given.only in f"{each.name}: {each.file}"]
        for target in known:
            sound = outcome_of(target.case(-1, Path(folder) / "sound"))
            if sound.kind != "read":
                raise SystemExit(f"{target.name}, {target.file} is not sound: {sound.text}")
        ready = time.monotonic()
        drawn = draw(known, given.cases, given.seed)
        outcomes = run(known, drawn, Path(folder) / "work")
    print(table(known, drawn, outcomes))
    wrong: dict[tuple[str, str], list[str]] = {}
    for (row, variant), outcome in zip(drawn, outcomes, strict=True):
        if outcome.kind not in ("read", "refused"):
            target = known[row]
            case = f"{target.name}, {target.file}: {target.variants[variant][0]}"
            wrong.setdefault((outcome.kind, outcome.text), []).append(case)
    for (kind, text), cases in sorted(wrong.items(), key=lambda item: -len(item[1])):
        print(f"{len(cases):5}  {kind}: {text} · such as {cases[0]}")
        if given.list:
            print(*(f"         {case}" for case in cases), sep="\n")
    seconds = f"{time.monotonic() - ready:.0f} s after {ready - start:.0f} s of making sound files"
    longest = max(outcome.seconds for outcome in outcomes)
    possible = sum(len(target.variants) for target in known)
    print(f"{len(drawn)} of {possible} cases, seed {given.seed}: {seconds}, the longest {longest:.1f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
