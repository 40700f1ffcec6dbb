"""Stage one."""

from hoi.cache.build.run import _command
from hoi.errors import run_program

if __name__ == "__main__":
    run_program(_command)
