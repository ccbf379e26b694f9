"""The commands about one job: `watch`, `pause`, `resume`, `cancel`, `delete`, `checkpoint`, `download`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from fluxsmith_text import on_one_line

from fluxsmith.cli.completion import (
    complete_ended,
    complete_job,
    complete_pausable,
    complete_paused,
    complete_unfinished,
)
from fluxsmith.cli.display import JsonDisplay, display_for
from fluxsmith.cli.following import follow
from fluxsmith.cli.output import output_file
from fluxsmith.cli.session import Session
from fluxsmith.cli.text import better_line, fetch_lines, job_json, removed_text, report_lines, size_text, to_json
from fluxsmith.errors import JobCancelled, JobFailed, NotFound
from fluxsmith.training import TrainingJob


def _job(complete: Callable[..., list[tuple[str, str]]]) -> Any:
    return typer.Argument(metavar="JOB", help="The job, as `fluxsmith jobs` lists it.", autocompletion=complete)


Job = Annotated[str, _job(complete_job)]
AsJson = Annotated[bool, typer.Option("--json", help="Print the job as JSON.")]


def watch(
    context: typer.Context,
    job_id: Job,
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print each event as a line of JSON, and the ended job as the last one.")
    ] = False,
) -> None:
    """Show the progress of a job from its beginning until it has ended."""
    session: Session = context.obj
    with session.client() as client:
        job = client.job(job_id)
        with JsonDisplay() if as_json else display_for(session.console) as display:
            finished = follow(job, display, session)
    if as_json:
        typer.echo(job_json(finished))
        return
    lines = [*report_lines(finished, command=session.command), *fetch_lines(finished, session.command)]
    session.tell("\n".join(lines))


def pause(context: typer.Context, job_id: Annotated[str, _job(complete_pausable)], *, as_json: AsJson = False) -> None:
    """Checkpoint a job and free its GPU; `resume` lets it go on."""
    session: Session = context.obj
    with session.client() as client:
        paused = client.job(job_id).pause()
    _say_state(paused, as_json=as_json)


def resume(context: typer.Context, job_id: Annotated[str, _job(complete_paused)], *, as_json: AsJson = False) -> None:
    """Queue a paused job again, to go on from its checkpoint."""
    session: Session = context.obj
    with session.client() as client:
        resumed = client.job(job_id).resume()
    _say_state(resumed, as_json=as_json)


def cancel(
    context: typer.Context,
    job_id: Annotated[str, _job(complete_unfinished)],
    *,
    discard_checkpoints: Annotated[
        bool, typer.Option("--discard-checkpoints", help="Remove its checkpoints too; else they stay with the job.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Stop a job for good."""
    session: Session = context.obj
    with session.client() as client:
        stopped = client.job(job_id).cancel(discard_checkpoints=discard_checkpoints)
    _say_state(stopped, as_json=as_json)


def delete(context: typer.Context, job_id: Annotated[str, _job(complete_ended)]) -> None:
    """Remove an ended job with its events, checkpoints and files. Deleting again changes nothing."""
    session: Session = context.obj
    with session.client() as client:
        try:
            job = client.job(job_id)
        except NotFound:
            client.delete_job(job_id)  # raises for one that never was
            session.tell(f"job {job_id} was deleted before")
            return
        checkpoints = job.checkpoints()
        job.delete()
    session.tell(f"job {job_id} is deleted, with {removed_text(job.snapshot, checkpoints)}")


def checkpoint(context: typer.Context, job_id: Job) -> None:
    """Ask for a checkpoint of a running job after the step that it is in."""
    session: Session = context.obj
    with session.client() as client:
        client.job(job_id).checkpoint()
    listing = session.command("checkpoints", job_id)
    session.tell(f"a checkpoint of job {job_id} is being written; see it with: {listing}")


def _say_state(job: TrainingJob, *, as_json: bool) -> None:
    typer.echo(to_json(job) if as_json else on_one_line(f"job {job.id} is {job.state.lower()}"))


def download(  # a command's options are its parameters
    context: typer.Context,
    job_id: Job,
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="Where to write it. (default JOB.safetensors, or the file's own name)"),
    ] = "",
    *,
    artifact: Annotated[
        str,
        typer.Option(metavar="NAME", help="Another file, as `fluxsmith files` or `checkpoints` lists it."),
    ] = "",
    everything: Annotated[
        bool, typer.Option("--all", help="Every file of the job; FILE is a folder then. (default one called JOB)")
    ] = False,
) -> None:
    """Fetch the LoRA of a job, that of its last step, or other files.

    `lora-best.safetensors` is the LoRA of the best step by the held-out loss.
    """
    session: Session = context.obj
    if artifact and everything:
        raise typer.BadParameter("--artifact and --all exclude each other", param_hint="'--all'")
    given = Path(file) if everything or not file else output_file(file)
    target = given if file else Path(job_id if everything else artifact.rpartition("/")[2] or f"{job_id}.safetensors")
    with session.client() as client:
        job = client.job(job_id)
        if not everything:
            try:
                path = job.download(target, artifact_name=artifact)
            except (JobFailed, JobCancelled) as error:
                _say_what_is_left(error.job, session)
                raise
            _show_file(path, fetched=True)
            if not artifact and (better := better_line(job.snapshot, session.command)):
                session.say(better)
        elif not job.download_all(target, on_file=_show_file):
            session.say("No files yet.")


def _show_file(path: Path, fetched: bool) -> None:
    typer.echo(on_one_line(f"{path} ({size_text(path.stat().st_size) if fetched else 'unchanged'})"))


def _say_what_is_left(job: TrainingJob, session: Session) -> None:
    if job.checkpoint_step:
        listing = session.command("checkpoints", job.id)
        session.say(f"job {job.id} has checkpoints, each with its LoRA; list them with: {listing}")
