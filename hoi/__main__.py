"""Run `python -m hoi VERB`."""

from hoi.cli import main

if __name__ == "__main__":
    main()
