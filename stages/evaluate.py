"""Stage three: students → scored triplets → average precision. Only here are the labels of the evaluated split read.

    make eval [CONFIG=FILE] [section.key=value ...]               or: hoi eval [--config FILE] ...

`hoi.evaluation.evaluate.evaluate` puts everything through the same evaluator:

1. Open the evaluated split and the trained students, each with the fingerprint of the cache that it learned from.
2. Score: `RunEvaluator` turns baselines (direct CLIP, as it is and tuned), students and their branches into triplets
   (`score_triplets`) and grades them by the data set's official rule.
3. Compare by paired bootstraps over images, and write results.json, per_class.json, summary.json and audit.json.

Without annotations it reports how often students and teacher agree.
"""

import sys

from hoi.cli import run_verb
from hoi.errors import run_program

if __name__ == "__main__":
    run_program(lambda: run_verb(["eval", *sys.argv[1:]]))
