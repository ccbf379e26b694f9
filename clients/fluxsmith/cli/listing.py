"""The commands that list: `jobs`, `checkpoints` and `files`."""

import json
from contextlib import suppress
from itertools import islice
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from fluxsmith.artifacts import Artifact
from fluxsmith.checkpoints import Checkpoint
from fluxsmith.cli.fitting import fitted
from fluxsmith.cli.jobs import Job
from fluxsmith.cli.session import Session
from fluxsmith.cli.text import duration_text, removed_checkpoints_text, size_text, time_text, to_json
from fluxsmith.errors import NotFound
from fluxsmith.training import JobState, TrainingJob

_MOST_PLACES = 50
_USUAL_LIMIT = 50

AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON list.")]


def jobs(
    context: typer.Context,
    user: Annotated[str | None, typer.Option(metavar="USER", help="Only jobs for this user of your product.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="So many at most. (default 50; with --json all)")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    session: Session = context.obj
    most = limit or (None if as_json else _USUAL_LIMIT)
    with session.client() as client:
        handles = client.jobs(user_id=user)
        listed = list(islice(handles, most))
        is_cut = most is not None and next(handles, None) is not None
        queued = [job for job in listed if job.snapshot.state is JobState.QUEUED]
        for job in queued[-_MOST_PLACES:]:  # the oldest of them; a listing does not tell places
            with suppress(NotFound):  # deleted since
                job.refresh()
        found = [job.snapshot for job in listed]
    if as_json:
        rows = json.loads(to_json(found))
        for row in rows:  # a listing has no files: none is not what it says
            (row["result"] or {}).pop("artifacts", None)
        typer.echo(to_json(rows))
    elif found:
        session.out.print(fitted(_jobs_table(found), session.out))
        if is_cut:
            session.say(_more_text(len(found), user, session))
    else:
        session.say("No jobs yet.")


def checkpoints(context: typer.Context, job_id: Job, as_json: AsJson = False) -> None:
    """List the checkpoints of a job, newest first; `fluxsmith download --artifact` fetches the LoRA of each."""
    session: Session = context.obj
    with session.client() as client:
        job = client.job(job_id)
        found, removed = job.checkpoints(), job.removed_checkpoints()
    if as_json:
        typer.echo(to_json(found))
        return
    if found:
        session.out.print(fitted(_checkpoints_table(found), session.out))
    else:
        session.say("No checkpoints." if job.snapshot.state.ended else "No checkpoints yet.")
    if removed:
        session.say(removed_checkpoints_text(job.snapshot, removed))


def files(context: typer.Context, job_id: Job, as_json: AsJson = False) -> None:
    """List the files of a job, for `fluxsmith download --artifact`; with --json their addresses too."""
    session: Session = context.obj
    with session.client() as client:
        found = client.job(job_id).artifacts()
    if as_json:
        typer.echo(to_json(found))
    elif found:
        session.out.print(fitted(_files_table(found), session.out))
    else:
        session.say("No files yet.")


def _files_table(found: list[Artifact]) -> Table:
    table = empty_table("name", "size")
    for artifact in found:
        table.add_row(escape(artifact.artifact_name), size_text(artifact.size_bytes))
    return table


def _checkpoints_table(found: list[Checkpoint]) -> Table:
    table = empty_table("LoRA", "step", "held-out loss", "checkpoint size", "written")
    for checkpoint in found:
        table.add_row(
            escape(checkpoint.lora.artifact_name),
            str(checkpoint.step),
            "" if checkpoint.held_out_loss is None else f"{checkpoint.held_out_loss:.4f}",
            size_text(checkpoint.size_bytes),
            time_text(checkpoint.create_time),
        )
    return table


def _more_text(shown: int, user: str | None, session: Session) -> str:
    """Return that there are more jobs, how many nobody has counted, and the command that shows the next of them."""
    words = ["jobs", *(["--user", user] if user else []), "--limit", str(10 * shown)]
    return f"the newest {shown} are shown, and there are more; see them with: {session.command(*words)}"


def _jobs_table(found: list[TrainingJob]) -> Table:
    table = empty_table("job", "state", "step", "left", "created", "held-out loss", "user", "name")
    for job in found:
        table.add_row(
            job.id,
            _state_cell(job),
            f"{job.step} of {job.total_steps}" if job.total_steps else "",
            "" if job.time_left_s is None else duration_text(job.time_left_s),
            time_text(job.create_time),
            _held_out_cell(job),
            escape(job.user_id),
            escape(job.name),
        )
    return table


def _state_cell(job: TrainingJob) -> str:
    if job.state is JobState.QUEUED and job.queue_position:
        return f"queued, {job.queue_position} ahead"
    return job.state.lower()


def _held_out_cell(job: TrainingJob) -> str:
    result = job.result
    if result is None or result.held_out_loss_base is None or result.held_out_loss_lora is None:
        return ""
    best, loss = result.best_step, result.held_out_loss_best
    if loss is None or best == job.step:
        return f"{result.held_out_loss_base:.4f} to {result.held_out_loss_lora:.4f}"
    return f"{result.held_out_loss_base:.4f} to {loss:.4f} at step {best}"


def empty_table(first: str, *others: str) -> Table:
    """Return an empty table whose first column, the identifier, is never cut."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, no_wrap=True, overflow="fold")
    for title in others:
        table.add_column(title)
    return table
