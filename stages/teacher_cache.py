"""Stage one."""

import sys

from hoi.cli import main

if __name__ == "__main__":
    main(["teacher-cache", *sys.argv[1:]])
