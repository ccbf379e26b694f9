"""The commands about jobs under way or ended: `watch`, `cancel`, `download`."""

from pathlib import Path
from typing import Annotated

import typer

from fluxsmith.cli.display import Display, display_for
from fluxsmith.cli.session import Session
from fluxsmith.cli.text import report_lines, size_text
from fluxsmith.errors import Unavailable
from fluxsmith.jobs import JobHandle
from fluxsmith.training import TrainingJob

Job = Annotated[str, typer.Argument(metavar="JOB", help="The job, as `fluxsmith jobs` lists it.")]


def follow(job: JobHandle, display: Display, session: Session) -> TrainingJob:
    """Show the job's events until it has ended; return it, or raise `JobFailed` or `JobCancelled`.

    Ctrl-C leaves the job alone, says how to come back and exits with 130.
    """
    back, stop = session.command("watch", job.id), session.command("cancel", job.id)
    try:
        for event in job.watch():
            display.event(event)
        return job.wait()
    except KeyboardInterrupt:
        display.close()
        session.say(f"job {job.id} goes on; come back with: {back}   or stop it with: {stop}")
        raise typer.Exit(130) from None
    except Unavailable:
        display.close()
        session.say(f"job {job.id} is not lost; come back with: {back}")
        raise


def watch(context: typer.Context, job_id: Job) -> None:
    """Show the progress of a job from its beginning until it has ended."""
    session: Session = context.obj
    with session.client() as client:
        job = client.job(job_id)
        with display_for(session.console) as display:
            finished = follow(job, display, session)
    typer.echo("\n".join(report_lines(finished, command=session.command)))
    typer.echo(f"Fetch the file with: {session.command('download', job_id)}")


def cancel(context: typer.Context, job_id: Job) -> None:
    """Stop a job for good."""
    session: Session = context.obj
    with session.client() as client:
        stopped = client.job(job_id).cancel()
    typer.echo(f"job {stopped.id} is {stopped.state.lower()}")


def download(  # a command's options are its parameters
    context: typer.Context,
    job_id: Job,
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="Where to write it. (default JOB.safetensors, or the file's own name)"),
    ] = None,
    *,
    artifact: Annotated[
        str, typer.Option(metavar="NAME", help="Another file of the job, as `fluxsmith files` lists it.")
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
