"""Stage two."""

import sys

from hoi.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
