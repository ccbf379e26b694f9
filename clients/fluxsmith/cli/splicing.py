"""Options that several values of a command are made of, kept apart from the command that takes those values."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

Command = Callable[..., None]


def in_place_of(name: str, read: Callable[..., object]) -> Callable[[Command], Command]:
    """Return a decorator: the command gets the options of `read` for its parameter `name`, which gets their value."""
    shared = inspect.signature(read).parameters

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def with_options(**given: Any) -> None:
            values = {option: given.pop(option) for option in shared}
            command(**{name: read(**values)}, **given)

        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(command).parameters.values():
            parameters += shared.values() if parameter.name == name else [parameter]
        with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
        with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return with_options

    return decorate
