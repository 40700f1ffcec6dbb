"""The main job in one go: teacher cache, students, result table. What is finished already is not done again."""

from __future__ import annotations

import importlib
import time

from hoi.cli.command_line import stage_config
from hoi.errors import run_program

STAGES = {"teacher cache": "hoi.cache.build.run", "train": "hoi.training.train", "evaluate": "hoi.evaluation.evaluate"}


def _command() -> None:
    config = stage_config("Runs the three stages on one pipeline file, by default the embedded world's.")
    seconds: dict[str, float] = {}
    for name in STAGES:
        print(f"\n== {name.replace('_', ' ')} ==", flush=True)
        start = time.monotonic()
        report = importlib.import_module(name).main(config)
        print(report, flush=True)
        seconds[name] = time.monotonic() - start
    spent = " + ".join(f"{name.replace('_', ' ')} {value:.0f} s" for name, value in seconds.items())
    print(f"\n{spent} = {sum(seconds.values()):.0f} s")


if __name__ == "__main__":
    run_program(_command)
