"""The command `fluxsmith`, a thin shell over the client library."""

from fluxsmith.cli.app import main

__all__ = ["main"]
