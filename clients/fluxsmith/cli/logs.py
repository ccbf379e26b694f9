"""`fluxsmith logs`: what happened to a job, with times; or what a service of `fluxsmith up` has logged."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from fluxsmith_text import on_one_line

from fluxsmith.cli.checkout import require_checkout
from fluxsmith.cli.completion import complete_job
from fluxsmith.cli.session import Session
from fluxsmith.cli.text import event_json, event_line, failure_lines
from fluxsmith.errors import NotFound
from fluxsmith.events import Event, StepsCompleted
from fluxsmith.jobs import JobHandle
from fluxsmith.training import JobState

_POLL_S = 0.5


class Service(StrEnum):
    """A part of the stack that writes a log."""

    ENCODER = "encoder"
    TRAINER = "trainer"
    STORE = "store"


def logs(  # a command's options are its parameters
    context: typer.Context,
    job_id: Annotated[
        str | None,
        typer.Argument(
            metavar="JOB",
            help="The job, as `fluxsmith jobs` lists it.",
            show_default=False,
            autocompletion=complete_job,
        ),
    ] = None,
    *,
    service: Annotated[
        Service | None,
        typer.Option(
            metavar="NAME", help="In place of a job: encoder, trainer (with its workers) or store of `fluxsmith up`."
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what comes, until the job has ended.")
    ] = False,
    steps: Annotated[bool, typer.Option("--steps", help="The losses of steps too.")] = False,
    lines: Annotated[
        int, typer.Option(min=1, metavar="N", show_default=False, help="Of a service: so many last lines. (default 50)")
    ] = 50,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the stack. (default data/ in the checkout)")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Of a job: print each event as a line of JSON.")] = False,
) -> None:
    """Show what happened to a job: states, warnings, measurements, files, and why it failed. Or a service's log."""
    session: Session = context.obj
    if (job_id is None) is (service is None):
        which = "give a job, or a service with --service"
        raise typer.BadParameter(which if service is None else f"{which}, not both", param_hint="'JOB'")
    if service:
        _show_service(service, data, lines=lines, follow=follow)
        return
    with session.client() as client:
        job = client.job(job_id or "")
        for event in events_of(job, follow=follow):
            if steps or not isinstance(event, StepsCompleted):
                typer.echo(event_json(event)) if as_json else session.tell(event_line(event))
        if not as_json and job.refresh().state is JobState.FAILED:
            session.tell("\n".join(failure_lines(job.snapshot)))


def events_of(job: JobHandle, *, follow: bool) -> Iterator[Event]:
    """Yield the job's events from the oldest that is kept: those there are, or with `follow` all until its end."""
    last = job.snapshot.last_sequence
    if not last:
        return
    for event in job.watch(after_sequence=max(job.snapshot.first_sequence - 1, 0)):
        yield event
        if not follow and event.sequence >= last:
            return


def _show_service(service: Service, data: Path | None, *, lines: int, follow: bool) -> None:
    folder = data or require_checkout("give the folder that the stack runs on to --data") / "data"
    path = folder / "logs" / f"{service}.log"
    if not path.is_file():
        raise NotFound(
            f"there is no log {path}.",
            reason="LOG_NOT_FOUND",
            remedy="Start the stack with `fluxsmith up`, or give the folder that it runs on to --data.",
        )
    with path.open(errors="replace") as log:
        _echo(deque(log, maxlen=lines))
        while follow:
            _echo(log)
            time.sleep(_POLL_S)


def _echo(lines: Iterable[str]) -> None:
    for line in lines:
        end = "\n" if line.endswith("\n") else ""
        typer.echo(on_one_line(line.removesuffix("\n")) + end, nl=False)
