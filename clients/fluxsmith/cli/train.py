"""`fluxsmith train`: from a folder to a LoRA file."""

from pathlib import Path

import typer

from fluxsmith._folder import folder_name, read_folder
from fluxsmith.cli import options
from fluxsmith.cli.display import Display, display_for
from fluxsmith.cli.jobs import follow
from fluxsmith.cli.session import Session
from fluxsmith.cli.text import report_lines, to_json
from fluxsmith.client import Client
from fluxsmith.data import Dataset
from fluxsmith.errors import FluxsmithError, InvalidRequest
from fluxsmith.jobs import JobHandle
from fluxsmith.training import TrainConfig


def train(  # noqa: PLR0913  # a command's options are its parameters
    context: typer.Context,
    folder: options.Folder,
    *,
    steps: options.Steps = None,
    epochs: options.Epochs = None,
    rank: options.Rank = None,
    alpha: options.Alpha = None,
    learning_rate: options.LearningRate = None,
    batch_size: options.BatchSize = None,
    seed: options.Seed = None,
    held_out: options.HeldOut = None,
    resolution: options.Resolution = None,
    flip: options.Flip = False,
    name: options.Name = "",
    user: options.User = "",
    output: options.Output = None,
    as_json: options.AsJson = False,
) -> None:
    """Train a LoRA on a folder of captioned images and write it to a file.

    Interrupted with Ctrl-C, the job goes on; `fluxsmith watch` comes back to it.
    """
    session: Session = context.obj
    target = output or Path(f"{folder_name(folder)}.safetensors")
    _check_target(target)
    for source in filter(None, (folder, held_out)):
        read_folder(source)  # faults of either are told before anything is sent
    config = TrainConfig(
        rank=rank,
        alpha=alpha,
        learning_rate=learning_rate,
        batch_size=batch_size,
        steps=steps,
        epochs=epochs,
        seed=seed,
    )
    with session.client() as client:
        client.check_services()
        with display_for(session.console) as display:
            dataset = _encode(client, folder, display, flip=flip, resolution_px=resolution)
            measured = _encode(client, held_out, display, resolution_px=resolution) if held_out else None
            job = client.submit(dataset, config, held_out=measured, user_id=user, name=name or folder_name(folder))
            display.note(f"job {job.id}")
            finished = follow(job, display, session)
        _download(job, target, session)
    if as_json:
        typer.echo(to_json({**vars(finished), "output": str(target)}))
    else:
        typer.echo("\n".join(report_lines(finished, written=target)))


def _encode(
    client: Client, folder: Path, display: Display, *, resolution_px: int | None, flip: bool = False
) -> Dataset:
    on_progress = display.dataset(folder_name(folder))
    return client.datasets.create_from_folder(folder, flip=flip, resolution_px=resolution_px, on_progress=on_progress)


def _download(job: JobHandle, target: Path, session: Session) -> None:
    try:
        job.download(target)
    except (FluxsmithError, KeyboardInterrupt):
        again = session.command("download", job.id, str(target))
        session.say(f"job {job.id} has succeeded; fetch its file with: {again}")
        raise


def _check_target(target: Path) -> None:
    """Raise `InvalidRequest` now for a file that could not be written once the training is over."""
    if target.is_dir() or not target.parent.is_dir():
        problem = "is a folder" if target.is_dir() else "is in a folder that does not exist"
        raise InvalidRequest(f"the output {target} {problem}.", reason="TARGET_UNWRITABLE", remedy="Name another file.")
