"""Endpoints of a job that is there: its state, its events as they happen, its end, its file."""

import re
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import asdict
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Response
from fluxsmith import AsyncJobHandle, Event, FluxsmithError, errors
from pydantic_core import to_json
from sse_starlette import EventSourceResponse, ServerSentEvent

from gateway import problems
from gateway.callers import Caller
from gateway.examples import EVENTS
from gateway.schemas import DownloadLink, Job, Jobs
from gateway.training import DATASET_NAME

_GIVEN_NAME = re.compile(rf"{DATASET_NAME} [0-9a-f]{{16}}")

router = APIRouter(prefix="/jobs", tags=["jobs"])

JobId = Annotated[str, Path(description="As told when the job was created.", max_length=100)]


@router.get("")
async def list_jobs(
    client: Caller,
    user_id: Annotated[str | None, Query(min_length=1, description="Only jobs for this user.")] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Most jobs told.")] = 20,
) -> Jobs:
    """The tenant's jobs, newest first."""
    found: list[Job] = []
    async with aclosing(client.jobs(user_id=user_id)) as jobs:
        async for job in jobs:
            found.append(Job.of(job.snapshot))
            if len(found) == limit:
                break
    return Jobs(jobs=found)


@router.get("/{job_id}")
async def get_job(job_id: JobId, client: Caller) -> Job:
    """A job as it is now. What the trainer warned of is told by its events."""
    return Job.of((await client.job(job_id)).snapshot)


@router.post("/{job_id}/cancel")
async def cancel_job(job_id: JobId, client: Caller) -> Job:
    """Stop a job for good, within seconds."""
    return Job.of(await (await client.job(job_id)).cancel())


@router.post("/{job_id}/pause")
async def pause_job(job_id: JobId, client: Caller) -> Job:
    """Have a job write a checkpoint and free its GPU."""
    return Job.of(await (await client.job(job_id)).pause())


@router.post("/{job_id}/resume")
async def resume_job(job_id: JobId, client: Caller) -> Job:
    """Queue a paused job again, to go on from its checkpoint."""
    return Job.of(await (await client.job(job_id)).resume())


@router.delete("/{job_id}", status_code=HTTPStatus.NO_CONTENT)
async def delete_job(job_id: JobId, client: Caller) -> None:
    """Remove an ended job with its files, and the pictures that were sent for it."""
    job = await client.job(job_id)
    await job.delete()
    with suppress(errors.NotFound):  # an equal request may have shared it
        dataset = await client.datasets.get(job.snapshot.dataset_id)
        if _GIVEN_NAME.fullmatch(dataset.name):  # another is its maker's
            await client.datasets.delete(dataset)


@router.get("/{job_id}/download")
async def download_link(
    job_id: JobId,
    client: Caller,
    artifact_name: Annotated[str, Query(description="A file of the job.")] = "lora.safetensors",
) -> DownloadLink:
    """An address from which a file of the job, by default its LoRA, can be fetched for an hour."""
    job = await client.job(job_id)
    try:
        link = await job.download_link(artifact_name=artifact_name)
    except errors.FailedPrecondition as error:
        if not job.snapshot.state.ended:
            raise  # it may still come
        raise errors.NotFound(error.message, reason=error.reason, remedy=error.remedy) from error
    return DownloadLink(
        url=link.url,
        expire_time=link.expire_time,
        size_bytes=link.artifact.size_bytes,
        content_digest=link.artifact.content_digest,
    )


@router.get(
    "/{job_id}/events",
    response_class=EventSourceResponse,
    responses={
        200: {"description": "Events until the job has ended", "content": {"text/event-stream": {"example": EVENTS}}},
        204: {"description": "The job has ended and every event was told: do not connect again."},
    },
)
async def watch_job(
    job_id: JobId,
    client: Caller,
    last_event_id: Annotated[int, Header(ge=0, lt=2**63, description="Goes on after this event.")] = 0,
) -> Response:
    """A job's events from the first, then as they happen, as server-sent events; the stream ends with the job.

    Browsers send Last-Event-ID by themselves when they connect again: no event is lost or told twice.
    """
    job = await client.job(job_id)
    if job.snapshot.state.ended and job.snapshot.last_sequence <= last_event_id:
        return Response(status_code=HTTPStatus.NO_CONTENT)  # what makes a browser's EventSource stop
    return EventSourceResponse(_told(job, last_event_id), ping=15)


async def _told(job: AsyncJobHandle, last_event_id: int) -> AsyncIterator[ServerSentEvent]:
    """Yield events by their names, such as `steps_completed`; a failure comes as the event `problem` and ends it."""
    try:
        async with aclosing(job.watch(after_sequence=last_event_id)) as events:
            async for event in events:
                data = to_json(asdict(event), inf_nan_mode="null").decode()  # JSON has no number for NaN
                yield ServerSentEvent(id=str(event.sequence), event=_name(event), data=data)
    except FluxsmithError as error:
        told = problems.problem_of(error, job_id=job.id)
        yield ServerSentEvent(event="problem", data=told.model_dump_json(exclude_defaults=True))


def _name(event: Event) -> str:
    """The event's name in the contract: `StepsCompleted` is `steps_completed`, `JobWarning` is `warning`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(event).__name__).lower().removeprefix("job_")
