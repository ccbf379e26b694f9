"""Runs the command line as `python -m fluxsmith`."""

from fluxsmith.cli import main

if __name__ == "__main__":
    main()
