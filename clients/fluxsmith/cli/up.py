"""`fluxsmith up`: object store, encoder and trainer on this machine, from a checkout of the source."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from fluxsmith.cli.checkout import environment_of, python_of, require_checkout

# Ctrl-C ends it quietly while its modules are imported; main() gives the signal its usual meaning again.
_STACK = """
import signal, sys
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
from services.stack import main
sys.exit(main())
"""


def up(
    *,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for everything that is kept. (default data/ in the checkout)"),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="FLUX.1 in diffusers' layout. ($FLUXSMITH_BASE_MODEL, else the small flux-tiny)"
        ),
    ] = None,
    encoder_port: Annotated[
        int, typer.Option(min=1, max=65535, metavar="PORT", help="(default 7401)", show_default=False)
    ] = 7401,
    trainer_port: Annotated[
        int, typer.Option(min=1, max=65535, metavar="PORT", help="(default 7402)", show_default=False)
    ] = 7402,
) -> None:
    """Run store, encoder and trainer here in the foreground, from a checkout. Ctrl-C stops them all; the data stay."""
    source = require_checkout()
    python = python_of(source)
    words = ["--encoder-port", str(encoder_port), "--trainer-port", str(trainer_port)]
    words += ["--data", str(data.resolve())] if data else []
    environment = environment_of(source)
    if base_model:
        environment["FLUXSMITH_BASE_MODEL"] = _placed(base_model, environment)
    sys.stdout.flush()
    # In this process's place, so that Ctrl-C and SIGTERM reach the stack, which stops its parts in order.
    os.execve(python, [str(python), "-c", _STACK, *words], environment)  # noqa: S606 - our own command


def _placed(base_model: str, environment: Mapping[str, str]) -> str:
    """Return the folder as the services find it, which run elsewhere, or the hub's identifier as it is.

    Raises `BadParameter` for what is neither; the services would blame the environment, seconds later.
    """
    if Path(base_model).is_dir():
        return str(Path(base_model).resolve())
    if environment.get("FLUXSMITH_BASE_MODEL_REVISION"):
        return base_model
    problem = f"{base_model!r} is not a folder; a hub identifier needs its commit in FLUXSMITH_BASE_MODEL_REVISION"
    raise typer.BadParameter(problem, param_hint="'--base-model'")
