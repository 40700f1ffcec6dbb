"""Stage two."""

from hoi.errors import run_program
from hoi.training.train import _command

if __name__ == "__main__":
    run_program(_command)
