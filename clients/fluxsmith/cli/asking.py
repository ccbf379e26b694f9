"""Small questions that the command asks the services itself: is one there, which jobs, where a file can be fetched."""

from __future__ import annotations  # the stubs of grpc are generic in their types only

from dataclasses import dataclass

import grpc

from fluxsmith._http import is_loopback
from fluxsmith._settings import Settings
from fluxsmith._wire_jobs import read_job
from fluxsmith.training import JobState
from fluxsmith.v1 import encoder_pb2, trainer_pb2
from fluxsmith.v1.encoder_pb2_grpc import EncoderServiceStub
from fluxsmith.v1.trainer_pb2_grpc import TrainerServiceStub

PATIENCE_S = 3.0
COMPLETION_S = 1.0
"""A person waits for each completion."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a service says of itself."""

    version: str
    base_model: str
    facts: str
    """Of how it runs, for people."""


def encoder_answer(address: str) -> Answer | None:
    """Return what the encoder says; None when it does not answer."""
    with _channel(address) as channel:
        try:
            request = encoder_pb2.EncoderServiceGetCapabilitiesRequest()
            told = EncoderServiceStub(channel).GetCapabilities(request, timeout=PATIENCE_S)
        except grpc.RpcError:
            return None
    return Answer(version=told.version, base_model=told.base_model, facts=f"T5 in {told.t5_precision}")


def trainer_answer(address: str) -> Answer | None:
    """Return what the trainer says; None when it does not answer."""
    with _channel(address) as channel:
        try:
            request = trainer_pb2.TrainerServiceGetCapabilitiesRequest()
            told = TrainerServiceStub(channel).GetCapabilities(request, timeout=PATIENCE_S)
        except grpc.RpcError:
            return None
    return Answer(
        version=told.version,
        base_model=told.base_model,
        facts=f"{told.worker_count} {'worker' if told.worker_count == 1 else 'workers'} on {told.device_type}",
    )


@dataclass(frozen=True, kw_only=True)
class KnownJob:
    """What is offered of a job while its identifier is typed."""

    id: str
    state: JobState
    name: str


def job_ids(settings: Settings) -> list[KnownJob]:
    """Return the tenant's newest jobs; none when nobody answers in time."""
    with _channel(settings.trainer) as channel:
        try:
            request = trainer_pb2.ListTrainingJobsRequest(page_size=50)
            page = TrainerServiceStub(channel).ListTrainingJobs(
                request, timeout=COMPLETION_S, metadata=_metadata(settings)
            )
        except grpc.RpcError:
            return []
    return [KnownJob(id=job.job_id, state=read_job(job).state, name=job.display_name) for job in page.jobs]


def dataset_ids(settings: Settings) -> list[tuple[str, str]]:
    """Return datasets of the tenant, each with its name; none when nobody answers in time."""
    with _channel(settings.encoder) as channel:
        try:
            request = encoder_pb2.ListDatasetsRequest(page_size=50)
            page = EncoderServiceStub(channel).ListDatasets(request, timeout=COMPLETION_S, metadata=_metadata(settings))
        except grpc.RpcError:
            return []
    return [(dataset.dataset_id, dataset.display_name) for dataset in page.datasets]


def file_address(settings: Settings, job_id: str, artifact_name: str) -> str:
    """Return an address that a browser opens for an hour; empty when nobody answers."""
    with _channel(settings.trainer) as channel:
        try:
            request = trainer_pb2.CreateDownloadUrlRequest(job_id=job_id, artifact_name=artifact_name)
            answer = TrainerServiceStub(channel).CreateDownloadUrl(
                request, timeout=PATIENCE_S, metadata=_metadata(settings)
            )
        except grpc.RpcError:
            return ""
    return answer.url


def _channel(address: str) -> grpc.Channel:
    proxied = 0 if is_loopback(address.rpartition(":")[0]) else 1
    return grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", proxied)])


def _metadata(settings: Settings) -> tuple[tuple[str, str], ...]:
    return (("fluxsmith-tenant", settings.tenant),)
