"""What the shell completes: identifiers of jobs and datasets, asked of the services, and the values of options."""

import os
from collections.abc import Callable, Collection
from dataclasses import fields
from enum import StrEnum
from pathlib import Path

import typer

from fluxsmith._settings import Settings, resolve_settings
from fluxsmith.cli.asking import dataset_ids, job_ids
from fluxsmith.errors import InvalidRequest
from fluxsmith.training import JobState, TrainConfig

_UNFINISHED = {state for state in JobState if not state.ended}


def jobs_in(
    states: Collection[JobState], *, alone: bool = True
) -> Callable[[typer.Context, str], list[tuple[str, str]]]:
    """Return what completes a job that is in one of the states; unless `alone` the others follow."""

    def complete(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
        """Return the newest jobs whose identifiers begin so, each with its state and name; none if nobody answers."""
        settings = _settings(context)
        found = [job for job in job_ids(settings) if job.id.startswith(incomplete)] if settings else []
        chosen = [job for job in found if job.state in states]
        others = [] if alone else [job for job in found if job.state not in states]
        return [(job.id, f"{job.state.lower()} {job.name}".strip()) for job in (*chosen, *others)]

    return complete


complete_job = jobs_in(_UNFINISHED, alone=False)
complete_ended = jobs_in([state for state in JobState if state.ended])
complete_unfinished = jobs_in(_UNFINISHED)
complete_pausable = jobs_in([JobState.QUEUED, JobState.RUNNING])
complete_paused = jobs_in([JobState.PAUSED])


def complete_dataset(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return the datasets whose identifiers begin so, each with its name; none if nobody answers."""
    settings = _settings(context)
    return [each for each in dataset_ids(settings) if each[0].startswith(incomplete)] if settings else []


def choices_of(kind: type[StrEnum]) -> Callable[[str], list[str]]:
    """Return what completes the name of a choice."""

    def complete(incomplete: str) -> list[str]:
        return [choice.lower() for choice in kind if choice.lower().startswith(incomplete.lower())]

    return complete


def complete_field(incomplete: str) -> list[str]:
    """Return the fields of the configuration that begin so, each with the `=` that its value follows."""
    return [f"{field.name}=" for field in fields(TrainConfig) if field.name.startswith(incomplete)]


def started_files() -> set[tuple[Path, int]]:
    """Return what shells run when they start, and when each was written: installing completion changes one of them."""
    home = Path(os.environ.get("HOME", ""))  # Path.home() fails for a user without one
    paths = [home / name for name in (".bashrc", ".zshrc")]
    return {(path, path.stat().st_mtime_ns) for path in paths if path.is_file()}


def _settings(context: typer.Context) -> Settings | None:
    """Return the services that the words so far name; None where they cannot be right."""
    given = context.find_root().params
    try:
        return resolve_settings(encoder=given.get("encoder"), trainer=given.get("trainer"), tenant=given.get("tenant"))
    except InvalidRequest:
        return None
