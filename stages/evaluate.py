"""Stage three."""

from hoi.errors import run_program
from hoi.evaluation.evaluate import _command

if __name__ == "__main__":
    run_program(_command)
