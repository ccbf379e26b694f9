"""The command `fluxsmith`, a thin shell over the client library."""

from fluxsmith_command import main

__all__ = ["main"]
