"""Stage two."""

import sys

from hoi.cli import run_verb
from hoi.errors import run_program

if __name__ == "__main__":
    run_program(lambda: run_verb(["train", *sys.argv[1:]]))
