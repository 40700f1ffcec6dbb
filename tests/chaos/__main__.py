"""Everything that can die or go wrong around a cache and what is made of it, counted: `make chaos`.

    python -m tests.chaos [NAME ...]

About ten minutes on two cores. Every case starts in an empty folder and ends with a cache, or with results of another
verb, that are to the byte what an undisturbed run gives. What this machine does not permit (mounts, network namespaces)
is skipped by name.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

# Before tqdm is imported; the drivers that are started inherit it.
os.environ["TQDM_DISABLE"] = "1"

# Imported here, before anything is forked: a killed driver's successor then starts in milliseconds.
from tests.chaos.builds import NotHere, kill_drivers, kill_drivers_with_workers, kill_workers
from tests.chaos.conditions import CONDITIONS
from tests.chaos.faults import FAULTS
from tests.chaos.machines import CASES
from tests.chaos.verbs import CASES as VERBS

SEED = 0
WIDTH = 220


def cases() -> dict[str, Callable[[Path], object]]:
    """Return the cases by name; 50 kills in all."""
    kills = {
        "kill_drivers": partial(kill_drivers, number=30, seed=SEED),
        "kill_drivers_with_workers": partial(kill_drivers_with_workers, number=3, seed=SEED),
        "kill_workers": partial(kill_workers, number=17, seed=SEED),
    }
    return {**kills, **VERBS, **{case.__name__: case for case in (*FAULTS, *CONDITIONS, *CASES)}}


def main(names: list[str]) -> int:
    """Run the named cases, or all; return the exit code."""
    results: dict[str, list[str]] = {"ok": [], "FAILED": [], "skipped": []}
    begin = time.monotonic()
    chosen = {name: case for name, case in cases().items() if not names or name in names}
    for name, case in chosen.items():
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
            try:
                said, result = str(case(Path(folder))), "ok"
            except NotHere as error:
                said, result = str(error), "skipped"
            except (AssertionError, TimeoutError) as error:
                said, result = str(error), "FAILED"
        results[result].append(name)
        shown = said.replace(folder, "FOLDER")
        shown = shown if result == "FAILED" or len(shown) <= WIDTH else shown[: WIDTH - 3] + "..."
        print(f"{result:8}{name} · {time.monotonic() - start:.1f} s · {shown}", flush=True)
    counts = ", ".join(f"{len(found)} {result}" for result, found in results.items() if found)
    print(f"{len(chosen)} cases: {counts} · {time.monotonic() - begin:.0f} s · seed {SEED}")
    return 1 if results["FAILED"] or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
