"""What every command starts from: which services, as which tenant, and where its words go."""

import logging
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import typer
from fluxsmith_text import on_one_line
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment

from fluxsmith._settings import Settings, resolve_settings
from fluxsmith.cli.fitting import at_words
from fluxsmith.client import Client
from fluxsmith.errors import NotFound

# Wide enough that no column of a piped table is cut.
_PIPE_WIDTH = 240
_LISTINGS = {"JOB_NOT_FOUND": "jobs", "DATASET_NOT_FOUND": "datasets"}


class Session:
    """One run of the command. `console` is standard error, for progress; `out` is standard output, for results."""

    def __init__(self, *, encoder: str | None, trainer: str | None, tenant: str | None) -> None:
        self._given = {"encoder": encoder, "trainer": trainer, "tenant": tenant}
        self.console = console_for(to_stderr=True)
        self.out = console_for(to_stderr=False)

    @contextmanager
    def client(self) -> Iterator[Client]:
        """Hold a client of the services named on the command line or in the environment.

        The error for a job or dataset that is not there gets the command that lists those as its remedy.
        """
        given = self._given
        with Client(encoder=given["encoder"], trainer=given["trainer"], tenant=given["tenant"]) as client:
            try:
                yield client
            except NotFound as error:
                if listing := _LISTINGS.get(error.reason):
                    error.remedy = f"List {listing} with: {self.command(listing)}"
                raise

    @property
    def settings(self) -> Settings:
        """Addresses and tenant as the client has them; raises `InvalidRequest` for what cannot be one."""
        given = self._given
        return resolve_settings(encoder=given["encoder"], trainer=given["trainer"], tenant=given["tenant"])

    def command(self, *words: str) -> str:
        """Return the command line that runs `words` on the same services as the same tenant."""
        options = [word for name, value in self._given.items() if value for word in (f"--{name}", value)]
        return shlex.join(["fluxsmith", *options, *words])

    def say(self, text: str) -> None:
        """Print a line on standard error."""
        self.console.print(escape(at_words(text, self.console)), soft_wrap=True)

    def tell(self, text: str) -> None:
        """Print lines on standard output."""
        typer.echo(at_words(text, self.out))


class ConsoleHandler(logging.Handler):
    """Writes log messages to a console, each as a line that stays above a bar."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Write the message alone: a person reads it."""
        self._console.print(escape(at_words(record.getMessage(), self._console)), soft_wrap=True)


class ShownConsole(Console):
    """A console on which what terminals obey is an order only where it is rich's own; in any text it is shown."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        r"""Render as rich does, and write control characters of texts as `\x1b`."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=_shown(segment.text))


def _shown(text: str) -> str:
    return text if text.isprintable() else "\n".join(map(on_one_line, text.split("\n")))


def console_for(*, to_stderr: bool) -> Console:
    """Return the console of standard error or standard output."""
    console = ShownConsole(stderr=to_stderr, highlight=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console
