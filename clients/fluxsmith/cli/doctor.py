"""`fluxsmith doctor`: looks at the client, the running services and, from a checkout, at this machine."""

import json
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

import fluxsmith
from fluxsmith.cli.asking import Answer, encoder_answer, trainer_answer
from fluxsmith.cli.checkout import checkout, environment_of, python_of
from fluxsmith.cli.estimate import fit_text
from fluxsmith.cli.fitting import at_words
from fluxsmith.cli.session import Session
from fluxsmith.cli.text import to_json
from fluxsmith.errors import FluxsmithError
from fluxsmith.training import TrainConfig

_MACHINE_S = 180.0  # torch from a cold disk; a store or database that does not answer


class State(StrEnum):
    """How bad it is."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


_STYLES = {State.OK: "green", State.WARN: "yellow", State.FAIL: "bold red"}


@dataclass(frozen=True, kw_only=True)
class Check:
    """What was found, and what to do where there is something."""

    name: str
    state: State
    found: str
    remedy: str = ""


def doctor(
    context: typer.Context,
    *,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder that `fluxsmith up` is to use. (default data/ in the checkout)"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as a JSON list.")] = False,
) -> None:
    """Check client, services and, from a checkout, this machine; say what to do. Exits with 1 if a check failed."""
    session: Session = context.obj
    found = []
    for check in _checks(session, data):
        found.append(check)
        if not as_json:
            _show(check, session)
    if as_json:
        typer.echo(to_json(found))
    if any(check.state is State.FAIL for check in found):
        raise typer.Exit(1)


def _checks(session: Session, data: Path | None) -> Iterator[Check]:
    python = f"Python {platform.python_version()}"
    yield Check(name="client", state=State.OK, found=f"fluxsmith {fluxsmith.__version__}, {python}")
    settings = session.settings
    encoder, trainer = encoder_answer(settings.encoder), trainer_answer(settings.trainer)
    yield _service("encoder", settings.encoder, encoder)
    yield _service("trainer", settings.trainer, trainer)
    if encoder and trainer and encoder.base_model != trainer.base_model:
        yield Check(
            name="base model",
            state=State.FAIL,
            found=f"the encoder holds {encoder.base_model}, the trainer {trainer.base_model}",
            remedy="Set FLUXSMITH_BASE_MODEL of both to the same folder.",
        )
    if trainer:
        yield _memory(session)
    answering = {name for name, answer in (("encoder", encoder), ("trainer", trainer)) if answer}
    ports = {f"port of {name}" for name in answering}  # where they run already, whichever those are
    yield from (check for check in _machine(data) if check.name not in ports)


def _service(name: str, address: str, answer: Answer | None) -> Check:
    if answer is None:
        remedy = f"Start the services with `fluxsmith up` in a checkout, or name another address with --{name}."
        return Check(name=name, state=State.FAIL, found=f"{address} does not answer", remedy=remedy)
    found = f"{address}, version {answer.version}, {answer.base_model}, {answer.facts}"
    if answer.version != fluxsmith.__version__:
        remedy = f"This client is {fluxsmith.__version__}; install the same version on both sides."
        return Check(name=name, state=State.WARN, found=found, remedy=remedy)
    return Check(name=name, state=State.OK, found=found)


def _memory(session: Session) -> Check:
    try:
        with session.client() as client:
            estimate = client.estimate_memory(TrainConfig())
    except FluxsmithError as error:
        return Check(
            name="memory of trainer", state=State.WARN, found=f"no estimate: {error.message}", remedy=error.remedy
        )
    fits = not estimate.device_bytes or estimate.device_bytes >= estimate.recommended_bytes
    remedy = "" if fits else f"See what would need less: {session.command('estimate')}"
    found = f"a job with the default settings at 1024 px: {fit_text(estimate)}".rstrip(".")
    return Check(name="memory of trainer", state=State.OK if fits else State.WARN, found=found, remedy=remedy)


def _machine(data: Path | None) -> Iterator[Check]:
    """Yield what the services' own doctor finds here; from outside of a checkout there is nothing to look at."""
    source = checkout()
    if source is None:
        return
    try:
        command = [str(python_of(source)), "-m", "services.doctor", "--json"]
    except FluxsmithError as error:
        yield Check(name="machine", state=State.FAIL, found=error.message, remedy=error.remedy)
        return
    command += ["--data", str(data.resolve())] if data else []
    try:
        told = subprocess.run(  # noqa: S603 - our own command
            command, env=environment_of(source), capture_output=True, text=True, timeout=_MACHINE_S, check=False
        )
        rows = json.loads(told.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        remedy = f"See what it says: cd {source} && python -m services.doctor"
        yield Check(name="machine", state=State.FAIL, found="the services' own doctor did not answer", remedy=remedy)
        return
    yield from (Check(**{**row, "state": State(row["state"])}) for row in rows)


def _show(check: Check, session: Session) -> None:
    words = [f"{check.state:<4}  {check.name}: {check.found.rstrip('.')}.", check.remedy]
    line = Text(at_words(" ".join(filter(None, words)), session.out))
    line.stylize(_STYLES[check.state], 0, len(check.state))
    session.out.print(line, soft_wrap=True)
