"""Endpoints that begin a training: one waits for the LoRA, one answers with the job at once."""

import asyncio
import hashlib
from contextlib import aclosing, suppress
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse
from fluxsmith import (
    AsyncClient,
    AsyncJobHandle,
    CaptionedImage,
    Dataset,
    DatasetState,
    FluxsmithError,
    errors,
    events,
)

from gateway import problems
from gateway.bodies import DESCRIBED, TrainBody, forget_body
from gateway.callers import Caller
from gateway.schemas import Job, JobWarning, TrainRequest, TrainResponse

DATASET_NAME = "train-lora"  # a space and 16 hexadecimal digits follow, in the names that the gateway gives

# What a dataset answers while another request with the same key sends or encodes the same samples.
_MADE_MEANWHILE = {"DATASET_ENCODING", "DATASET_CHANGED", "DATASET_NOT_READY"}
_TRIES = 10

router = APIRouter(tags=["training"])

IdempotencyKey = Annotated[
    str | None,
    Header(
        pattern=r"^[!-~]{1,64}$",
        description="Chosen by the caller for one wish: sent again, the request finds the same job.",
    ),
]


@router.post("/train-lora", response_model=TrainResponse, openapi_extra=DESCRIBED)
async def train_lora(
    request: Request, body: TrainBody, client: Caller, idempotency_key: IdempotencyKey = None
) -> TrainResponse | JSONResponse:
    """Train a LoRA and answer when it is done, which takes as long as the training.

    A caller that hangs up loses nothing: the job goes on, and the same request with the same Idempotency-Key waits for
    it again.
    """
    job = await _submit(client, body, idempotency_key)
    forget_body(request, body)
    try:
        warnings = await _warnings(job)
        result = await job.result()
    except FluxsmithError as error:
        return problems.respond(problems.problem_of(error, job_id=job.id))
    return TrainResponse(model_url=result.lora_uri, job_id=job.id, warnings=warnings)


@router.post("/jobs", status_code=HTTPStatus.ACCEPTED, openapi_extra=DESCRIBED)
async def create_job(
    response: Response, body: TrainBody, client: Caller, idempotency_key: IdempotencyKey = None
) -> Job:
    """Queue a training and answer with its job once the pictures are encoded, which takes seconds."""
    job = await _submit(client, body, idempotency_key)
    response.headers["Location"] = f"/jobs/{job.id}"
    return Job.of(job.snapshot)


async def _warnings(job: AsyncJobHandle) -> list[JobWarning]:
    """Wait for the job's end and return what the trainer warned of until then."""
    removed = max(job.snapshot.first_sequence - 1, 0)
    async with aclosing(job.watch(after_sequence=removed)) as told:
        return [
            JobWarning(reason=event.reason, message=event.message)
            async for event in told
            if isinstance(event, events.JobWarning)
        ]


async def _submit(client: AsyncClient, body: TrainRequest, key: str | None) -> AsyncJobHandle:
    """Make a dataset of the samples and queue a job on it; with the same `key` both are those from before.

    What is wrong with the configuration is told before anything is uploaded.
    """
    await client.validate(body.training_params)
    images = [
        CaptionedImage(name=f"train_data[{number}]", captions=(sample.description,), content=sample.image)
        for number, sample in enumerate(body.train_data)
    ]
    # With other samples the name is another one, and so the encoder refuses the same key.
    digest = await asyncio.to_thread(_digest, images, body.trigger_word)
    dataset = await client.datasets.create(name=f"{DATASET_NAME} {digest}", request_id=key)
    try:
        return await _queue(client, dataset, images, body, key)
    except FluxsmithError as error:
        # One that was there in another state than OPEN may be that of a job. Sent again with its key, a request goes on
        # with what is there, unless no job can come of it.
        if key is None or (dataset.state is DatasetState.OPEN and _is_final(error)):
            with suppress(FluxsmithError):
                await client.datasets.delete(dataset)
        raise


async def _queue(
    client: AsyncClient, dataset: Dataset, images: list[CaptionedImage], body: TrainRequest, key: str | None
) -> AsyncJobHandle:
    """Encode the images and queue the job, side by side with other requests that have the same key."""
    for tries_left in reversed(range(_TRIES)):
        try:
            if key is None or tries_left < _TRIES - 1:  # first, a key is told what it made, without the images
                await _encode(client, dataset, images, body.trigger_word)
            return await client.submit(dataset, body.training_params, user_id=str(body.user_id), request_id=key)
        except errors.FailedPrecondition as error:
            if key is None or error.reason not in _MADE_MEANWHILE or not tries_left:
                raise
            dataset = await client.datasets.get(dataset.id)
    raise AssertionError("unreachable")


def _is_final(error: FluxsmithError) -> bool:
    """Whether no job comes of the dataset: it was refused, or its key has made one that is gone."""
    return isinstance(error, errors.InvalidRequest | errors.DatasetFailed) or error.reason == "JOB_DELETED"


async def _encode(client: AsyncClient, dataset: Dataset, images: list[CaptionedImage], trigger_word: str) -> None:
    """Return once the images are encoded; what another request has begun is waited for."""
    if dataset.state in {DatasetState.OPEN, DatasetState.FAILED}:
        await client.datasets.upload(dataset, images)
        await client.datasets.encode(dataset, trigger_word=trigger_word)
    await client.datasets.wait(dataset)


def _digest(images: list[CaptionedImage], trigger_word: str) -> str:
    digest = hashlib.sha256(trigger_word.encode())
    for image in images:
        for part in (image.read(), image.captions[0].encode()):
            digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:16]
