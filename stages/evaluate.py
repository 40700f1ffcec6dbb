"""Stage three."""

import sys

from hoi.cli import main

if __name__ == "__main__":
    main(["eval", *sys.argv[1:]])
