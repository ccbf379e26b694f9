"""The trainer's RPCs: protobuf to domain and back, and nothing else. It never touches a model."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import grpc
from fluxsmith.v1 import trainer_pb2 as pb
from fluxsmith.v1 import trainer_pb2_grpc
from fluxsmith_text import quoted
from google.protobuf.timestamp_pb2 import Timestamp

from services.common.base_model import pick_device
from services.common.caller import Caller, caller_from
from services.common.errors import NotFound, NotReady
from services.common.fields import check_length, invalid_field, page_limit, read_duration, require_id
from services.common.object_store import ObjectStore
from services.common.server import MAX_MESSAGE_BYTES
from services.common.settings import ServiceSettings
from services.trainer.adapters.uploads import adapter_upload
from services.trainer.admission import Admission, Asked
from services.trainer.config import TrainConfig
from services.trainer.database.job_store import JobStore
from services.trainer.estimate.estimator import MemoryEstimator
from services.trainer.jobs import Artifact, Job, JobState
from services.trainer.results.job_files import LORA_FILE, job_prefix
from services.trainer.settings import TrainerSettings
from services.trainer.watching import Watching
from services.trainer.wire import (
    artifact_message,
    checkpoint_message,
    config_fields,
    config_message,
    estimate_message,
    event_message,
    job_message,
    timestamp,
)

DEFAULT_LIFETIME, SHORTEST_LIFETIME, LONGEST_LIFETIME = timedelta(hours=1), timedelta(seconds=1), timedelta(days=7)
Context = grpc.aio.ServicerContext[Any, Any]
ChangeRequest = (
    pb.CancelTrainingJobRequest
    | pb.PauseTrainingJobRequest
    | pb.ResumeTrainingJobRequest
    | pb.DeleteTrainingJobRequest
    | pb.CreateCheckpointRequest
)
T = TypeVar("T")


class TrainerServicer(trainer_pb2_grpc.TrainerServiceServicer):
    """TrainerService of the contract. Everything that blocks runs in threads."""

    def __init__(
        self, *, jobs: JobStore, objects: ObjectStore, service: ServiceSettings, settings: TrainerSettings
    ) -> None:
        self._jobs = jobs
        self._objects = objects
        self._service = service
        self._settings = settings
        self._admission = Admission(jobs, objects, service, settings)
        self._estimator = MemoryEstimator(service)
        self._watching = Watching(jobs)

    async def CreateTrainingJob(
        self, request: pb.CreateTrainingJobRequest, context: Context
    ) -> pb.CreateTrainingJobResponse:
        caller = _caller(context)
        check_length("request_id", request.request_id, 64)
        check_length("user_id", request.user_id, 64)
        check_length("display_name", request.display_name, 200)
        asked = Asked(
            user_id=request.user_id,
            display_name=request.display_name,
            dataset_id=request.dataset_id,
            held_out_dataset_id=request.held_out_dataset_id,
            config=config_fields(request.config),
            start_while_encoding=request.start_while_encoding,
            held_out_to_come=request.validate_only and request.held_out_to_come,
            priority=request.priority,
        )
        if request.validate_only:
            await asyncio.to_thread(self._admission.check_only, caller.tenant, asked)
            return pb.CreateTrainingJobResponse()
        create = partial(self._admission.create, caller.tenant, asked, request_id=request.request_id)
        job = await asyncio.to_thread(create)
        return pb.CreateTrainingJobResponse(job=await self._message(job))

    async def GetTrainingJob(self, request: pb.GetTrainingJobRequest, context: Context) -> pb.GetTrainingJobResponse:
        job = await self._job(context, request.job_id)
        return pb.GetTrainingJobResponse(job=await self._message(job))

    async def ListTrainingJobs(
        self, request: pb.ListTrainingJobsRequest, context: Context
    ) -> pb.ListTrainingJobsResponse:
        caller = _caller(context)
        check_length("user_id", request.user_id, 64)
        limit = page_limit(request.page_size)
        before = _position(request.page_token)
        found = await asyncio.to_thread(
            self._jobs.list, caller.tenant, user_id=request.user_id, before=before, limit=limit + 1
        )
        page = list(fitting_page([job_message(job, with_artifacts=False) for job in found[:limit]]))
        last = found[len(page) - 1] if page else None
        token = f"{last.create_time_s!r}/{last.job_id}" if last and len(found) > len(page) else ""
        return pb.ListTrainingJobsResponse(jobs=page, next_page_token=token)

    async def WatchTrainingJob(
        self, request: pb.WatchTrainingJobRequest, context: Context
    ) -> AsyncGenerator[pb.WatchTrainingJobResponse, None]:
        job = await self._job(context, request.job_id)
        if request.after_sequence < 0:
            raise invalid_field("after_sequence", f"is {request.after_sequence}", "Send the last sequence seen, or 0.")
        async with aclosing(self._watching.events(job.job_id, request.after_sequence)) as events:
            async for event in events:
                yield pb.WatchTrainingJobResponse(event=event_message(event))

    async def CancelTrainingJob(
        self, request: pb.CancelTrainingJobRequest, context: Context
    ) -> pb.CancelTrainingJobResponse:
        cancel = partial(self._jobs.cancel, discard_checkpoints=request.discard_checkpoints)
        job = await self._changed(cancel, request, context)
        if request.discard_checkpoints and job.state.ended:  # else its worker does so
            job = await asyncio.to_thread(self._discard_checkpoints, job)
        return pb.CancelTrainingJobResponse(job=await self._message(job))

    async def PauseTrainingJob(
        self, request: pb.PauseTrainingJobRequest, context: Context
    ) -> pb.PauseTrainingJobResponse:
        job = await self._changed(self._jobs.pause, request, context)
        return pb.PauseTrainingJobResponse(job=await self._message(job))

    async def ResumeTrainingJob(
        self, request: pb.ResumeTrainingJobRequest, context: Context
    ) -> pb.ResumeTrainingJobResponse:
        job = await self._changed(self._jobs.resume, request, context)
        return pb.ResumeTrainingJobResponse(job=await self._message(job))

    async def DeleteTrainingJob(
        self, request: pb.DeleteTrainingJobRequest, context: Context
    ) -> pb.DeleteTrainingJobResponse:
        await self._changed(self._delete, request, context)
        return pb.DeleteTrainingJobResponse()

    async def CreateCheckpoint(
        self, request: pb.CreateCheckpointRequest, context: Context
    ) -> pb.CreateCheckpointResponse:
        job = await self._changed(self._jobs.request_checkpoint, request, context)
        return pb.CreateCheckpointResponse(job=await self._message(job))

    async def ListCheckpoints(self, request: pb.ListCheckpointsRequest, context: Context) -> pb.ListCheckpointsResponse:
        found = await asyncio.to_thread(self._jobs.checkpoints, _caller(context).tenant, request.job_id)
        messages = [checkpoint_message(checkpoint, checkpoint.create_time_s) for checkpoint in found]
        removed = await asyncio.to_thread(self._jobs.removed_checkpoints, request.job_id)
        return pb.ListCheckpointsResponse(checkpoints=messages, removed_steps=removed)

    async def CreateDownloadUrl(
        self, request: pb.CreateDownloadUrlRequest, context: Context
    ) -> pb.CreateDownloadUrlResponse:
        lifetime = _lifetime(request)
        job = await self._job(context, request.job_id)
        artifacts = await asyncio.to_thread(self._jobs.artifacts, job.job_id)
        artifact = _artifact(job, artifacts, request.artifact_name or LORA_FILE)
        expire_time = Timestamp()
        expire_time.FromDatetime(datetime.now(UTC) + lifetime)
        url = self._objects.download_url(self._objects.key_of(artifact.uri) or "", lifetime)
        return pb.CreateDownloadUrlResponse(url=url, expire_time=expire_time, artifact=artifact_message(artifact))

    async def CreateAdapterUpload(
        self, request: pb.CreateAdapterUploadRequest, context: Context
    ) -> pb.CreateAdapterUploadResponse:
        tenant = _caller(context).tenant
        upload = await asyncio.to_thread(adapter_upload, self._objects, tenant, request.content_digest)
        return pb.CreateAdapterUploadResponse(
            url=upload.url, uri=upload.uri, expire_time=timestamp(time.time() + upload.lifetime.total_seconds())
        )

    async def EstimateMemory(self, request: pb.EstimateMemoryRequest, context: Context) -> pb.EstimateMemoryResponse:
        if request.model not in pb.EstimatedModel.values():
            raise invalid_field("model", f"is {request.model}", "Use ESTIMATED_MODEL_FLUX_1_DEV, or leave it unset.")
        estimate = partial(
            self._estimator.estimate,
            config_fields(request.config),
            side_px=request.resolution_px,
            for_dev=request.model == pb.ESTIMATED_MODEL_FLUX_1_DEV,
        )
        return estimate_message(await asyncio.to_thread(estimate))

    async def GetCapabilities(
        self, request: pb.TrainerServiceGetCapabilitiesRequest, context: Context
    ) -> pb.TrainerServiceGetCapabilitiesResponse:
        return pb.TrainerServiceGetCapabilitiesResponse(
            version=version("fluxsmith"),
            base_model=Path(self._service.base_model).name,
            device_type=pick_device(self._service.device).type,
            worker_count=self._settings.workers,
            default_config=config_message(TrainConfig()),
        )

    async def _job(self, context: Context, job_id: str) -> Job:
        return await asyncio.to_thread(self._jobs.get, _caller(context).tenant, job_id)

    async def _changed(self, change: Callable[..., T], request: ChangeRequest, context: Context) -> T:
        """Do to a job what a call asks for, once for its `request_id`."""
        caller = _caller(context)
        check_length("request_id", request.request_id, 64)
        return await asyncio.to_thread(change, caller.tenant, request.job_id, request_id=request.request_id)

    async def _message(self, job: Job) -> pb.TrainingJob:
        queued = job.state is JobState.QUEUED
        position = await asyncio.to_thread(self._jobs.queue_position, job) if queued else 0
        return job_message(job, queue_position=position)

    def _delete(self, tenant: str, job_id: str, *, request_id: str) -> None:
        if self._jobs.require_ended(tenant, job_id, request_id=request_id):
            # First: what is left over can be deleted again.
            self._objects.delete_prefix(job_prefix(tenant, job_id))
        self._jobs.delete(tenant, job_id, request_id=request_id)

    def _discard_checkpoints(self, job: Job) -> Job:
        """Remove the checkpoints of an ended job, their objects first."""
        for checkpoint in self._jobs.checkpoints(job.tenant, job.job_id):
            folder, _, _ = (self._objects.key_of(checkpoint.uri) or "").rpartition("/")
            if folder.startswith(job_prefix(job.tenant, job.job_id)):
                self._objects.delete_prefix(f"{folder}/")
        self._jobs.retention.checkpoints_discarded(job.job_id)
        return self._jobs.get(job.tenant, job.job_id)


def fitting_page(jobs: list[pb.TrainingJob]) -> Iterator[pb.TrainingJob]:
    """As many of the jobs, at least one, as a message holds."""
    left_bytes = MAX_MESSAGE_BYTES // 2
    for number, job in enumerate(jobs):
        left_bytes -= job.ByteSize()
        if left_bytes < 0 and number:
            return
        yield job


def _caller(context: Context) -> Caller:
    return caller_from(context.invocation_metadata() or ())


def _lifetime(request: pb.CreateDownloadUrlRequest) -> timedelta:
    """How long an address is to serve, in whole seconds, as the store counts them."""
    if not request.HasField("lifetime"):
        return DEFAULT_LIFETIME
    asked = request.lifetime
    lifetime = read_duration("lifetime", asked.seconds, asked.nanos, least=SHORTEST_LIFETIME, most=LONGEST_LIFETIME)
    return timedelta(seconds=int(lifetime.total_seconds()))


def _artifact(job: Job, artifacts: Mapping[str, Artifact], name: str) -> Artifact:
    if name in artifacts:
        return artifacts[name]
    published = f"its files are {', '.join(sorted(artifacts))}" if artifacts else "it has no files"
    message = f"job {job.job_id!r} is {job.state} and has no file {quoted(name[:200])}: {published}"
    choice = "Name one of its files" if artifacts else ""
    if job.state.ended:
        raise NotFound(message, reason="ARTIFACT_NOT_FOUND", remedy=f"{choice or 'Train again'}.")
    wait = "wait until the job has published this one"
    remedy = f"{choice}, or {wait}." if choice else f"{wait.capitalize()}."
    raise NotReady(message, reason="ARTIFACT_NOT_FOUND", remedy=remedy)


def _position(token: str) -> tuple[float, str] | None:
    if not token:
        return None
    time_s, _, job_id = token.partition("/")
    try:
        require_id("job", job_id)
        if not math.isfinite(float(time_s)) or repr(float(time_s)) != time_s:
            raise ValueError(time_s)
        return float(time_s), job_id
    except (ValueError, NotFound) as error:
        raise invalid_field("page_token", f"is {token[:80]!r}", "Send next_page_token as it came.") from error
