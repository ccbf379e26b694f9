"""The command's entry point: global options, the table of commands, and what becomes of errors."""

import logging
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import fluxsmith
from fluxsmith.cli import datasets
from fluxsmith.cli.completion import started_files
from fluxsmith.cli.contact_sheet import contact_sheet
from fluxsmith.cli.doctor import doctor
from fluxsmith.cli.estimate import estimate
from fluxsmith.cli.fitting import at_words
from fluxsmith.cli.help import Command, Group, help_of
from fluxsmith.cli.jobs import cancel, checkpoint, delete, download, pause, resume, watch
from fluxsmith.cli.listing import checkpoints, files, jobs
from fluxsmith.cli.logs import logs
from fluxsmith.cli.session import ConsoleHandler, Session, console_for
from fluxsmith.cli.text import error_json, error_line
from fluxsmith.cli.train import train
from fluxsmith.cli.up import up
from fluxsmith.errors import (
    AlreadyExists,
    DatasetFailed,
    DeadlineExceeded,
    FailedPrecondition,
    FluxsmithError,
    InvalidRequest,
    LimitExceeded,
    NotFound,
    Unavailable,
)

_OK, _FAILED, _BAD_INPUT, _UNREACHABLE, _INTERRUPTED = 0, 1, 2, 3, 130

_EPILOG = (
    "Exit codes: 0 done; 1 the job or a service failed; 2 bad usage or bad input; 3 a service cannot be reached; "
    "130 interrupted."
)

app = typer.Typer(
    help="Train LoRAs for FLUX.1 on a folder of captioned images.",
    epilog=_EPILOG,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command, panel in (
    *((each, "Train") for each in (train, contact_sheet, estimate)),
    *((each, "Jobs") for each in (jobs, watch, logs, pause, resume, cancel, delete)),
    *((each, "What a job made") for each in (files, checkpoint, checkpoints, download)),
    *((each, "Services") for each in (up, doctor)),
):
    app.command(cls=Command, help=help_of(command), rich_help_panel=panel)(command)
app.add_typer(datasets.group, name="datasets", rich_help_panel="Train")


def run(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code; an error is one line on standard error, of JSON with `--json`."""
    command = typer.main.get_command(app)
    before = started_files()
    try:
        code = command.main(args=list(arguments) or ["--help"], prog_name="fluxsmith", standalone_mode=False)
        sys.stdout.flush()  # a full disk is told here, not after the end
    except FluxsmithError as error:
        error.remedy = error.remedy.replace("skip_bad_samples=True", "--skip-bad")
        explained = _explained(error, arguments)
        if "--json" in arguments:
            typer.echo(error_json(error, explained), err=True)
        else:
            _echo_error(explained)
        return exit_code(error)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        command_path = context.command_path if context else "fluxsmith"
        _echo_error(f"{_said(error)} See {command_path} --help.")
        return _BAD_INPUT
    except SystemExit:  # typer's way out of its own options
        for path, _ in started_files() - before:
            typer.echo(f"It is loaded by {path}, which was changed for that.")
        raise
    except (KeyboardInterrupt, typer.Abort):
        return _INTERRUPTED
    except UnicodeEncodeError as error:
        _echo_error(f"{error.object!r} cannot be sent or shown: it is not {error.encoding}.")
        return _BAD_INPUT
    except OSError as error:  # every file that is named has an error of its own
        _echo_error(f"{error.filename or 'standard output'} cannot be written: {error.strerror}.")
        return _FAILED
    return code if isinstance(code, int) else _OK


def _echo_error(text: str) -> None:
    typer.echo(at_words(error_line(text), console_for(to_stderr=True)), err=True)


def _explained(error: FluxsmithError, arguments: Sequence[str]) -> str:
    """Return the error with its remedy; for a service that an option named, with one that names the option."""
    options = {word.partition("=")[0] for word in arguments}
    for service in ("encoder", "trainer"):
        message = error.message
        if error.reason == "SERVICE_UNREACHABLE" and f"the {service} " in message and f"--{service}" in options:
            return f"{message} Start a service there, or give another address to --{service}."
    return str(error)


def _said(error: typer.TyperException) -> str:
    """Return the sentence on what is wrong with the words of the command; typer tells of choices in pydantic's way."""
    text = error.format_message().replace(": Value error, ", ": ")
    return text if text.endswith("?") else f"{text.rstrip('.')}."


def exit_code(error: FluxsmithError) -> int:
    """Return the exit code that tells a script what kind of error this is."""
    if isinstance(error, Unavailable | DeadlineExceeded):
        return _UNREACHABLE
    if isinstance(error, InvalidRequest | NotFound | AlreadyExists | FailedPrecondition | LimitExceeded):
        return _BAD_INPUT
    if isinstance(error, DatasetFailed) and error.dataset.bad_samples:
        return _BAD_INPUT
    return _FAILED


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fluxsmith {fluxsmith.__version__}")
        raise typer.Exit


@app.callback(cls=Group)
def _global_options(
    context: typer.Context,
    encoder: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="The encoder. ($FLUXSMITH_ENCODER, else 127.0.0.1:7401)"),
    ] = None,
    trainer: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="The trainer. ($FLUXSMITH_TRAINER, else 127.0.0.1:7402)"),
    ] = None,
    tenant: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose datasets and jobs. ($FLUXSMITH_TENANT, else default)")
    ] = None,
    version: Annotated[  # noqa: ARG001  # its callback does the work
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    session = Session(encoder=encoder, trainer=trainer, tenant=tenant)
    context.obj = session
    # The library warns here while it waits for a service that is away; through the console, so as not to cut the bar.
    logging.basicConfig(level=logging.WARNING, handlers=[ConsoleHandler(session.console)], force=True)
