"""Compare two workers with one: shards of the world in the pool of stage one, both pools warm.

    python -m benchmarks.workers [--rounds 3] [--shards 8] [--images 64]

Each pool builds all shards once before it is measured, so that its workers have loaded their models. The ratio needs
two free cores. A worker on a CPU keeps to its threads; the second ratio also binds the one worker, with dask's threads,
to one core.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from contextlib import ExitStack
from functools import partial

from benchmarks.side_by_side import ratio_table, run_in_turn
from hoi.cache.build.pool import Pool, Task, open_pool
from hoi.cache.build.worker import OwnModel, build_shard
from hoi.cache.plan import plan_split
from hoi.config import PipelineConfig, load_config

CONFIG = "pipeline.yaml"
NUM_ROUNDS = 3
NUM_SHARDS = 8
"""Even, so that two workers finish together."""
IMAGES_PER_SHARD = 64
WAYS = {"1 worker": (1, False), "1 worker on 1 core": (1, True), "2 workers": (2, False)}
"""Number of workers, and whether they are bound to one core."""


def measure(
    num_rounds: int = NUM_ROUNDS, num_shards: int = NUM_SHARDS, images_per_shard: int = IMAGES_PER_SHARD
) -> str:
    """Return the ratio table."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        ways = {}
        for name, (number, on_one_core) in WAYS.items():
            config = load_config(
                CONFIG,
                [
                    f"cache.folder={folder}/{name}",
                    "cache.scheduler=local",
                    f"cache.workers={number}",
                    f"cache.images_per_shard={images_per_shard}",
                    f"dataset.splits={{train: {num_shards * images_per_shard}}}",
                ],
            )
            cores = os.sched_getaffinity(0)
            # Workers inherit the cores of the process that starts them.
            os.sched_setaffinity(0, {min(cores)} if on_one_core else cores)
            pool = stack.enter_context(open_pool(config.cache))
            os.sched_setaffinity(0, cores)
            ways[name] = partial(build_all, pool, config)
        rounds = run_in_turn(ways, num_rounds)
    *ones, two = WAYS
    title = f"{num_shards} shards of {images_per_shard} images of the world, {len(os.sched_getaffinity(0))} cores"
    return ratio_table(title, rounds, [(one, two) for one in ones])


def build_all(pool: Pool, config: PipelineConfig) -> None:
    """Build every shard of the training split again."""
    plan, config_json = plan_split(config, "train"), config.model_dump_json()
    rest = (config_json, str(plan.folder), "", OwnModel())
    tasks = [Task(shard.split, shard.name, build_shard, (shard, *rest)) for shard in plan.shards]
    for outcome in pool.run(tasks):
        if outcome.error is not None:
            raise RuntimeError(outcome.error)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=NUM_ROUNDS)
    parser.add_argument("--shards", type=int, default=NUM_SHARDS)
    parser.add_argument("--images", type=int, default=IMAGES_PER_SHARD)
    given = parser.parse_args()
    print(measure(given.rounds, given.shards, given.images))
    print(f"load in the last minute: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
