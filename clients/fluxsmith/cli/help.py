"""How `--help` looks: flags without a type, arguments by their bare names, paragraphs as wide as the terminal."""

import inspect
import re
from collections.abc import Callable
from typing import Any

from typer.core import TyperCommand, TyperGroup, TyperOption


class Command(TyperCommand):
    """A command whose help says `--json` where typer has `--json <bool>`, and `FOLDER` where it has `{FOLDER}`."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options and arguments."""
        return _plain(super().get_params(ctx))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return what follows the command's name in the line on its usage."""
        return [re.sub(r"\{(.+)\}", r"\1", word) for word in super().collect_usage_pieces(ctx)]


class Group(TyperGroup):
    """A group of such commands."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options."""
        return _plain(super().get_params(ctx))

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the commands in the order in which they were added, groups last; typer has them first."""
        return sorted(super().list_commands(ctx), key=lambda name: isinstance(self.commands[name], TyperGroup))


def help_of(command: Callable[..., None]) -> str:
    """Return what a command's docstring says, each paragraph as one line: the terminal has its own width."""
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _plain(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if isinstance(parameter, TyperOption) and parameter.is_flag:
            parameter.metavar = ""  # where the name of a value would be
    return parameters
