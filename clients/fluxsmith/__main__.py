"""Runs the command line as `python -m fluxsmith`."""

from fluxsmith_command import main

if __name__ == "__main__":
    main()
