"""What the shell completes from the service: identifiers of jobs."""

import typer

from fluxsmith._settings import resolve_settings
from fluxsmith.cli.asking import job_ids
from fluxsmith.errors import InvalidRequest


def complete_job(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return the newest jobs whose identifiers begin so, each with its state and name; none if nobody answers."""
    given = context.find_root().params
    try:
        settings = resolve_settings(encoder=None, trainer=given.get("trainer"), tenant=given.get("tenant"))
    except InvalidRequest:
        return []
    return [job for job in job_ids(settings) if job[0].startswith(incomplete)]
