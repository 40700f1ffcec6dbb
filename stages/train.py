"""Stage two: shards → batches → students. No image, detector or teacher is opened.

    make train [CONFIG=FILE] [section.key=value ...]              or: hoi train [--config FILE] ...

`hoi.training.train.train_students` trains every student of the pipeline file with every seed:

1. Open: `open_training_split` takes a complete cache of these settings only; `open_source` reads its batches.
2. Train what is not finished: `train_run` builds the student of its method (`build_student`) and `fit` runs epochs and
   steps; losses compare its branches with the teacher's scores, or with labels for `supervision: labels` alone.
3. Keep: a checkpoint after every few epochs, so that an interrupted run goes on to the same weights.

`torchrun --nproc_per_node=N -m hoi train` does the same with N processes.
"""

import sys

from hoi.cli import run_verb
from hoi.errors import run_program

if __name__ == "__main__":
    run_program(lambda: run_verb(["train", *sys.argv[1:]]))
