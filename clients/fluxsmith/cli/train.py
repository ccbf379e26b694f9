"""`fluxsmith train`: from a folder to a LoRA file."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from fluxsmith._adapter_upload import check_adapter
from fluxsmith._arguments import MOST_USER_CHARACTERS, name_of
from fluxsmith._best import better_file
from fluxsmith._folder import folder_name, read_folder, skipping
from fluxsmith.cli import options
from fluxsmith.cli.chosen import choose
from fluxsmith.cli.config_options import with_config_options
from fluxsmith.cli.data_options import with_data_options
from fluxsmith.cli.display import Display, display_for
from fluxsmith.cli.following import follow
from fluxsmith.cli.output import check_target, default_target, with_suffix
from fluxsmith.cli.session import Session
from fluxsmith.cli.text import Fetched, problem_lines, report_lines, to_json
from fluxsmith.client import Client
from fluxsmith.data import Dataset
from fluxsmith.encoding import EncodingOptions
from fluxsmith.errors import FluxsmithError
from fluxsmith.jobs import JobHandle
from fluxsmith.training import TrainConfig

SUFFIX = ".safetensors"


@with_data_options
@with_config_options
def train(  # noqa: PLR0913  # a command's options are its parameters
    context: typer.Context,
    folder: options.Folder,
    *,
    config: TrainConfig,
    warm_start: options.WarmStart = "",
    held_out: options.HeldOut = None,
    data: EncodingOptions,
    start_early: options.StartEarly = False,
    name: options.Name = "",
    user: options.User = "",
    priority: options.Priority = 0,
    output: options.Output = None,
    as_json: options.AsJson = False,
) -> None:
    """Train a LoRA on a folder of captioned images and write it to a file.

    The LoRA of the best step by the held-out loss, where that is not the last, is written beside it as NAME-best. With
    nothing else given, length, previews and what to measure on are chosen by the pictures, and told. Interrupted
    with Ctrl-C, the job goes on; `fluxsmith watch` comes back to it.
    """
    session: Session = context.obj
    target = with_suffix(output, SUFFIX) if output else default_target(folder_name(folder), SUFFIX)
    _check_names(name, user)
    _check(config, target=target, warm_start=warm_start, held_out=held_out, start_early=start_early)
    config, choices = _chosen(config, folder, data, held_out=held_out, start_early=start_early)
    with session.client() as client:
        with display_for(session.console) as display:
            for line in choices:
                display.note(line)
            with _told_if_interrupted(display, session, "nothing was queued; what was sent stays", "datasets"):
                client.check_services()
                if warm_start:
                    config = dataclasses.replace(config, warm_start_uri=_stored(client, warm_start, display))
                client.validate(
                    config, held_out=held_out is not None, start_while_encoding=start_early, priority=priority
                )
                # First, since it must be READY for any job, even for one that starts early.
                measured = _encode(client, held_out, _as_measured(data), display) if held_out else None
                dataset = _encode(client, folder, data, display, wait=not start_early)
            with _told_if_interrupted(display, session, "the job may have been queued nevertheless", "jobs"):
                job = client.submit(
                    dataset,
                    config,
                    held_out=measured,
                    user_id=user,
                    name=name or folder_name(folder),
                    start_while_encoding=start_early,
                    priority=priority,
                )
            display.note(f"job {job.id}")
            finished = follow(job, display, session)
            if start_early:  # only now it is known what was wrong with the samples
                _note_problems(client.datasets.get(dataset.id), display)
        file, best = _download(job, target, session), _download_better(job, target, session)
    if as_json:
        paths = {"output": str(target), "output_best": str(best.path) if best else None}
        typer.echo(to_json({**vars(finished), **paths}))
    else:
        session.tell("\n".join(report_lines(finished, file=file, best=best, command=session.command)))


def _check(config: TrainConfig, *, target: Path, warm_start: str, held_out: Path | None, start_early: bool) -> None:
    """Raise `BadParameter` or `InvalidRequest` for what would be told only once the images are encoded."""
    check_target(target)
    if warm_start and not _is_address(warm_start):
        check_adapter(Path(warm_start))
    if start_early and config.epochs is not None:
        raise typer.BadParameter("it needs --steps in place of --epochs", param_hint="'--start-early'")
    if held_out and config.held_out_share:
        raise typer.BadParameter("it takes the place of --held-out; give one of them", param_hint="'--held-out-share'")
    if config.early_stopping_patience and not (held_out or config.held_out_share):
        raise typer.BadParameter("it needs --held-out or --held-out-share", param_hint="'--early-stop'")


def _check_names(name: str, user: str) -> None:
    """Raise `InvalidRequest` for what the job could not be called by."""
    name_of(name, "--name")
    name_of(user, "--user", most=MOST_USER_CHARACTERS)


def _chosen(
    config: TrainConfig, folder: Path, data: EncodingOptions, *, held_out: Path | None, start_early: bool
) -> tuple[TrainConfig, list[str]]:
    """Return what `choose` makes of the folder; faults of either folder are told before anything is sent."""
    if held_out:
        read_folder(held_out, **skipping(data))
    resolutions = max(1, len(data.resolutions_px))
    pictures = read_folder(folder, **skipping(data))
    return choose(config, pictures, resolutions=resolutions, measured=held_out is not None, early=start_early)


@contextmanager
def _told_if_interrupted(display: Display, session: Session, left: str, listing: str) -> Iterator[None]:
    """Say on Ctrl-C what is left behind, and the command that lists it."""
    try:
        yield
    except KeyboardInterrupt:
        display.close()
        session.say(f"interrupted: {left}; list it with: {session.command(listing)}")
        raise


def _is_address(warm_start: str) -> bool:
    return "://" in warm_start


def _stored(client: Client, warm_start: str, display: Display) -> str:
    """Return the address of the LoRA to begin with, in the object store from now on if it was a file."""
    if _is_address(warm_start):
        return warm_start
    uri = client.upload_adapter(warm_start)
    display.note(f"uploaded {warm_start}")
    return uri


def _as_measured(data: EncodingOptions) -> EncodingOptions:
    """Return the options for images to measure on: one plain view of each."""
    return dataclasses.replace(data, flip=None, random_crops=None)


def _encode(client: Client, folder: Path, data: EncodingOptions, display: Display, *, wait: bool = True) -> Dataset:
    on_progress = display.dataset(folder_name(folder))
    dataset = client.datasets.create_from_folder(folder, options=data, wait=wait, on_progress=on_progress)
    if wait:
        _note_problems(dataset, display)
    return dataset


def _note_problems(dataset: Dataset, display: Display) -> None:
    for line in problem_lines(dataset):
        display.note(line)


def _download_better(job: JobHandle, target: Path, session: Session) -> Fetched | None:
    """Fetch the best step's LoRA beside the last step's, where that is another."""
    if not (better := better_file(job.snapshot)):
        return None
    return _download(job, target.with_name(f"{target.stem}-best{SUFFIX}"), session, better)


def _download(job: JobHandle, target: Path, session: Session, artifact_name: str = "") -> Fetched:
    file = Fetched(path=target, replaced=target.exists())
    try:
        job.download(target, artifact_name=artifact_name)
    except (FluxsmithError, KeyboardInterrupt):
        which = ["--artifact", artifact_name] if artifact_name else []
        again = session.command("download", job.id, str(target), *which)
        session.say(f"job {job.id} has succeeded; fetch its file with: {again}")
        raise
    return file
