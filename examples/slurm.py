"""Run stage one with one SLURM job per worker, by dask-jobqueue (`pip install dask-jobqueue`; tried with 0.9).

    python examples/slurm.py --config hico.yaml --jobs 8 --queue gpu [--account NAME] [section.key=value ...]

Run it where the workers can reach this machine, in the folder they are to start in. Jobs may start, end and be
preempted one by one. `--show` prints the job script alone.
"""

from __future__ import annotations

import argparse

from dask_jobqueue import SLURMCluster

from hoi.cache.build.run import build_cache
from hoi.config import load_config
from hoi.errors import run_program


def build() -> None:
    """Submit the jobs, wait for the first worker, and build; the jobs end with it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="pipeline.yaml")
    parser.add_argument("--jobs", type=int, default=4, help="workers, each with one GPU (default: %(default)s)")
    parser.add_argument("--queue")
    parser.add_argument("--account")
    parser.add_argument("--walltime", default="08:00:00")
    parser.add_argument("--interface", help="network of the cluster, such as ib0")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    given = parser.parse_args()
    threads = load_config(given.config, given.overrides).cache.threads
    with SLURMCluster(
        queue=given.queue,
        account=given.account,
        walltime=given.walltime,
        interface=given.interface,
        # One process that runs one task at a time; the other cores decode images.
        processes=1,
        cores=1,
        job_cpu=6,
        memory="32GB",
        job_extra_directives=["--gpus=1"],
        job_script_prologue=[f"export OMP_NUM_THREADS={threads}"],
        worker_extra_args=["--memory-limit", "0", "--no-dashboard"],
        scheduler_options={"dashboard_address": None},
    ) as cluster:
        if given.show:
            print(cluster.job_script())
            return
        cluster.scale(jobs=given.jobs)
        cluster.wait_for_workers(1)
        address = f"cache.scheduler={cluster.scheduler_address}"
        print(build_cache(load_config(given.config, [*given.overrides, address])))


if __name__ == "__main__":
    run_program(build)
