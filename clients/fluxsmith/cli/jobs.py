"""The commands about jobs under way or ended: `watch`, `pause`, `resume`, `cancel`, `checkpoint`, `download`."""

import time
from pathlib import Path
from typing import Annotated

import typer

from fluxsmith.cli.display import Display, display_for
from fluxsmith.cli.session import Session
from fluxsmith.cli.text import report_lines, size_text
from fluxsmith.errors import Unavailable
from fluxsmith.events import StateChanged
from fluxsmith.jobs import JobHandle
from fluxsmith.training import JobState, TrainingJob

_QUEUE_INTERVAL_S = 2.0

Job = Annotated[str, typer.Argument(metavar="JOB", help="The job, as `fluxsmith jobs` lists it.")]


def follow(job: JobHandle, display: Display, session: Session) -> TrainingJob:
    """Show the job's events until it has ended; return it, or raise `JobFailed` or `JobCancelled`.

    Ctrl-C leaves the job alone, says how to come back and exits with 130.
    """
    back, stop = session.command("watch", job.id), session.command("cancel", job.id)
    try:
        # From the oldest event there is: those of jobs that ended long ago are removed.
        for event in job.watch(after_sequence=max(job.snapshot.first_sequence - 1, 0)):
            display.event(event)
            if isinstance(event, StateChanged) and event.state is JobState.QUEUED:
                _show_queue(job, display)
        return job.wait()
    except KeyboardInterrupt:
        display.close()
        session.say(f"job {job.id} goes on; come back with: {back}   or stop it with: {stop}")
        raise typer.Exit(130) from None
    except Unavailable:
        display.close()
        session.say(f"job {job.id} is not lost; come back with: {back}")
        raise


def _show_queue(job: JobHandle, display: Display) -> None:
    """Show how the job moves up until a worker has it; no event tells of that."""
    try:
        while job.refresh().state is JobState.QUEUED:
            display.queued(job.snapshot.queue_position)
            time.sleep(_QUEUE_INTERVAL_S)
    except Unavailable:
        return  # the stream of events knows how to wait for the service


def watch(context: typer.Context, job_id: Job) -> None:
    """Show the progress of a job from its beginning until it has ended."""
    session: Session = context.obj
    with session.client() as client:
        job = client.job(job_id)
        with display_for(session.console) as display:
            finished = follow(job, display, session)
    typer.echo("\n".join(report_lines(finished, command=session.command)))
    typer.echo(f"Fetch the file with: {session.command('download', job_id)}")


def pause(context: typer.Context, job_id: Job) -> None:
    """Checkpoint a job and free its GPU; `resume` lets it go on."""
    session: Session = context.obj
    with session.client() as client:
        paused = client.job(job_id).pause()
    _say_state(paused)


def resume(context: typer.Context, job_id: Job) -> None:
    """Queue a paused job again, to go on from its checkpoint."""
    session: Session = context.obj
    with session.client() as client:
        resumed = client.job(job_id).resume()
    _say_state(resumed)


def cancel(
    context: typer.Context,
    job_id: Job,
    *,
    discard_checkpoints: Annotated[
        bool, typer.Option("--discard-checkpoints", help="Remove its checkpoints too; else they stay with the job.")
    ] = False,
) -> None:
    """Stop a job for good."""
    session: Session = context.obj
    with session.client() as client:
        stopped = client.job(job_id).cancel(discard_checkpoints=discard_checkpoints)
    _say_state(stopped)


def checkpoint(context: typer.Context, job_id: Job) -> None:
    """Ask for a checkpoint of a running job after the step that it is in."""
    session: Session = context.obj
    with session.client() as client:
        client.job(job_id).checkpoint()
    typer.echo(f"a checkpoint of job {job_id} is being written; see it with: {session.command('checkpoints', job_id)}")


def _say_state(job: TrainingJob) -> None:
    typer.echo(f"job {job.id} is {job.state.lower()}")


def download(  # a command's options are its parameters
    context: typer.Context,
    job_id: Job,
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="Where to write it. (default JOB.safetensors, or the file's own name)"),
    ] = None,
    *,
    artifact: Annotated[
        str,
        typer.Option(metavar="NAME", help="Another file, as `fluxsmith files` or `checkpoints` lists it."),
    ] = "",
    everything: Annotated[
        bool, typer.Option("--all", help="Every file of the job; FILE is a folder then. (default one called JOB)")
    ] = False,
) -> None:
    """Fetch the LoRA of a job, or other files."""
    session: Session = context.obj
    if artifact and everything:
        raise typer.BadParameter("--artifact and --all exclude each other", param_hint="'--all'")
    target = file or Path(job_id if everything else artifact.rpartition("/")[2] or f"{job_id}.safetensors")
    with session.client() as client:
        job = client.job(job_id)
        if not everything:
            _show_file(job.download(target, artifact_name=artifact), fetched=True)
        elif not job.download_all(target, on_file=_show_file):
            session.say("No files yet.")


def _show_file(path: Path, fetched: bool) -> None:
    typer.echo(f"{path} ({size_text(path.stat().st_size) if fetched else 'unchanged'})")
