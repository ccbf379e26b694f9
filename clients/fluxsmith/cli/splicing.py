"""Options that several values of a command are made of, kept apart from the command that takes those values."""

import functools
import inspect
from collections.abc import Callable, Collection
from copy import copy
from typing import Annotated, Any, get_args

Command = Callable[..., None]


def in_place_of(
    name: str, read: Callable[..., object], *, shown: Collection[str] | None = None
) -> Callable[[Command], Command]:
    """Return a decorator: the command gets the options of `read` for its parameter `name`, which gets their value.

    All of them are taken; help shows those of the parameters `shown`, or all.
    """
    shared = {
        option: parameter if shown is None or option in shown else _hidden(parameter)
        for option, parameter in inspect.signature(read).parameters.items()
    }

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


def _hidden(parameter: inspect.Parameter) -> inspect.Parameter:
    """Return the option as one that help leaves out."""
    kind, option = get_args(parameter.annotation)
    unseen = copy(option)
    unseen.hidden = True
    return parameter.replace(annotation=Annotated[kind, unseen])
