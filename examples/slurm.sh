#!/usr/bin/env bash
# Stage one as one SLURM job: scheduler, one worker per GPU, and the driver.
#
#   sbatch examples/slurm.sh PIPELINE.yaml [section.key=value ...]
#
# Submit it in the folder in which the command would run; the environment is taken from there (.venv). Adapt the lines
# below to your cluster. When the time is over, submit it again: finished shards are kept.
#
#SBATCH --job-name=teacher-cache
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=6
#SBATCH --mem-per-cpu=5G
#SBATCH --time=08:00:00
#SBATCH --output=teacher-cache-%j.log

set -euo pipefail
config=${1:?usage: sbatch examples/slurm.sh PIPELINE.yaml [section.key=value ...]}
shift
python=.venv/bin/python
address=tcp://$(hostname):$((20000 + SLURM_JOB_ID % 20000))

"$python" -m dask scheduler --host "$(hostname)" --port "${address##*:}" --no-dashboard &
# srun does not take the job's --cpus-per-task over by itself (Slurm 22.05 and later).
srun --kill-on-bad-exit=0 --cpus-per-task="$SLURM_CPUS_PER_TASK" "$python" -m dask worker "$address" \
    --nthreads 1 --memory-limit 0 --no-dashboard --local-directory "${TMPDIR:-/tmp}" &
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

"$python" -m hoi teacher-cache --config "$config" "cache.scheduler=$address" "$@"
