"""What callers may do to jobs, over real gRPC with the client library, while the test itself is the worker."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import fluxsmith
import grpc
import pytest
from fluxsmith import JobState, errors
from fluxsmith.v1 import trainer_pb2 as pb
from fluxsmith.v1 import trainer_pb2_grpc

from services.common.cache import manifest_key
from services.common.object_store import ObjectStore
from services.common.server import SERVER_OPTIONS, interceptors
from services.common.settings import ServiceSettings
from services.trainer.config import TrainConfig
from services.trainer.database.job_store import JobStore
from services.trainer.jobs import Artifact, Checkpoint, DatasetReference, Job, NewJob, Progress
from services.trainer.jobs import JobState as StoredState
from services.trainer.results.job_files import LORA_FILE, job_prefix, put_file
from services.trainer.servicer import TrainerServicer
from services.trainer.settings import TrainerSettings
from tests.services.trainer.data.test_references import DATASET, point

SETTINGS = TrainerSettings(max_user_jobs=2)
FAILED = StoredState.FAILED
NEW = NewJob(dataset=DatasetReference(dataset_id="ds-1"), config=TrainConfig(steps=9), user_id="ada")


@pytest.fixture
def address(job_store: JobStore, store: ObjectStore, service_settings: ServiceSettings) -> Iterator[str]:
    """Where the RPCs are served, from a thread of this process."""
    servicer = TrainerServicer(jobs=job_store, objects=store, service=service_settings, settings=SETTINGS)
    loop = asyncio.new_event_loop()
    ports: list[int] = []
    started, stop = threading.Event(), asyncio.Event()

    async def serve() -> None:
        server = grpc.aio.server(interceptors=interceptors(), options=SERVER_OPTIONS)
        trainer_pb2_grpc.add_TrainerServiceServicer_to_server(servicer, server)
        ports.append(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        started.set()
        await stop.wait()
        await server.stop(None)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    started.wait()
    yield f"127.0.0.1:{ports[0]}"
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


@pytest.fixture
def client(address: str, tenant: str) -> Iterator[fluxsmith.Client]:
    with fluxsmith.Client(encoder=address, trainer=address, tenant=tenant) as client:
        yield client


@pytest.fixture
def stub(address: str) -> Iterator[trainer_pb2_grpc.TrainerServiceStub]:
    with grpc.insecure_channel(address) as channel:
        yield trainer_pb2_grpc.TrainerServiceStub(channel)


def claim(jobs: JobStore) -> Job:
    job = jobs.claims.claim("w", lease_s=60, max_attempts=3)
    assert job
    return job


def checkpointed(jobs: JobStore, store: ObjectStore, tenant: str, step: int = 5) -> Job:
    """A job that a worker has, with a checkpoint and a published file."""
    jobs.create(tenant, NEW)
    job = claim(jobs)
    folder = f"{job_prefix(tenant, job.job_id)}checkpoints/{step:06}-{job.epoch}/"
    manifest = store.put(f"{folder}manifest.json", b"{}")
    lora = store.put(f"{folder}{LORA_FILE}", b"LoRA so far")
    file = Artifact(
        artifact_name=f"checkpoints/{step:06}-{job.epoch}/{LORA_FILE}",
        uri=store.uri(lora.key),
        size_bytes=lora.size_bytes,
        content_digest=lora.digest,
    )
    written = Checkpoint(
        checkpoint_id=f"{step:06}-{job.epoch}",
        step=step,
        uri=store.uri(manifest.key),
        manifest_digest=manifest.digest,
        size_bytes=13,
        lora=file,
        held_out_loss=0.5,
    )
    jobs.claims.add_checkpoint(job, written)
    put_file(store, job, "metrics.csv", b"step,loss")
    return job


def objects(store: ObjectStore, job: Job) -> set[str]:
    """Names of what lies in the store for a job."""
    return {key.rpartition("/")[2] for key in store.keys(job_prefix(job.tenant, job.job_id))}


def test_job_that_waits_is_paused_and_resumed_at_once(
    client: fluxsmith.Client, job_store: JobStore, tenant: str
) -> None:
    job = client.job(job_store.create(tenant, NEW).job_id)
    assert job.pause().state is JobState.PAUSED
    assert job.pause().state is JobState.PAUSED
    assert job.resume().state is JobState.QUEUED
    assert job.cancel().state is JobState.CANCELLED
    with pytest.raises(errors.FailedPrecondition) as caught:
        job.resume()
    assert caught.value.reason == "JOB_ENDED"


def test_running_job_is_pausing_until_its_worker_has_let_go(
    client: fluxsmith.Client, job_store: JobStore, store: ObjectStore, tenant: str
) -> None:
    held = checkpointed(job_store, store, tenant)
    job = client.job(held.job_id)
    assert job.pause().state is JobState.PAUSING
    job_store.claims.park(held, Progress(step=5, total_steps=9))
    assert (job.refresh().state, job.snapshot.checkpoint_step) == (JobState.PAUSED, 5)


def test_late_repetition_of_a_pause_does_not_pause_again(
    stub: trainer_pb2_grpc.TrainerServiceStub, job_store: JobStore
) -> None:
    job_id = job_store.create("default", NEW).job_id
    pause = pb.PauseTrainingJobRequest(job_id=job_id, request_id="p")
    assert stub.PauseTrainingJob(pause).job.state == pb.TRAINING_JOB_STATE_PAUSED
    stub.ResumeTrainingJob(pb.ResumeTrainingJobRequest(job_id=job_id, request_id="r"))
    assert stub.PauseTrainingJob(pause).job.state == pb.TRAINING_JOB_STATE_QUEUED


def test_quota_is_told_with_whose_it_is_and_what_to_do(
    client: fluxsmith.Client, store: ObjectStore, tenant: str
) -> None:
    point(store, tenant, DATASET)
    store.put(manifest_key(tenant, "0" * 64), b"")
    first = client.train(DATASET, steps=1, user_id="ada", priority=7)
    assert client.train(DATASET, steps=1, user_id="ada").snapshot.queue_position == 1
    with pytest.raises(errors.QuotaExceeded, match="2 are allowed") as caught:
        client.train(DATASET, steps=1, user_id="ada")
    assert (caught.value.reason, caught.value.subject) == ("USER_QUOTA", "user:ada")
    assert caught.value.remedy
    first.cancel()
    assert client.train(DATASET, steps=1, user_id="ada", priority=-7).snapshot.priority == -7


@pytest.mark.parametrize(
    "method", ["CancelTrainingJob", "PauseTrainingJob", "ResumeTrainingJob", "DeleteTrainingJob", "CreateCheckpoint"]
)
def test_every_change_looks_at_its_request_id_and_its_job(
    stub: trainer_pb2_grpc.TrainerServiceStub, job_store: JobStore, method: str
) -> None:
    call, message = getattr(stub, method), getattr(pb, f"{method}Request")
    for job_id, request_id, code in (
        ("job-none", "", grpc.StatusCode.NOT_FOUND),
        (job_store.create("default", NEW).job_id, "x" * 65, grpc.StatusCode.INVALID_ARGUMENT),
        (job_store.create("others", NEW).job_id, "", grpc.StatusCode.NOT_FOUND),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call(message(job_id=job_id, request_id=request_id))
        assert caught.value.code() is code


def test_checkpoint_is_wanted_of_a_running_job_only(client: fluxsmith.Client, job_store: JobStore, tenant: str) -> None:
    job = client.job(job_store.create(tenant, NEW).job_id)
    with pytest.raises(errors.FailedPrecondition) as caught:
        job.checkpoint()
    assert caught.value.reason == "JOB_NOT_RUNNING"
    held = claim(job_store)
    assert job.checkpoint().state is JobState.RUNNING
    assert job_store.claims.heartbeat(held, Progress(step=0, total_steps=9), lease_s=60).checkpoint


def test_checkpoints_are_listed_and_told_alike(
    client: fluxsmith.Client, job_store: JobStore, store: ObjectStore, tenant: str
) -> None:
    held = checkpointed(job_store, store, tenant)
    job = client.job(held.job_id)
    [found] = job.checkpoints()
    job_store.claims.finish(held, FAILED)
    [told] = [event for event in job.watch() if isinstance(event, fluxsmith.CheckpointWritten)]
    assert (found.step, found.held_out_loss, found.lora) == (5, 0.5, told.checkpoint.lora)
    assert told.checkpoint.id == found.id == "000005-1"


def test_lora_of_a_checkpoint_is_downloaded_by_its_name(
    client: fluxsmith.Client, job_store: JobStore, store: ObjectStore, tenant: str, tmp_path: Path
) -> None:
    job = client.job(checkpointed(job_store, store, tenant).job_id)
    [checkpoint] = job.checkpoints()
    target = tmp_path / "so-far.safetensors"
    assert job.download(target, artifact_name=checkpoint.lora.artifact_name).read_bytes() == b"LoRA so far"
    for name in ("checkpoints/000099-1/lora.safetensors", "checkpoints/000005-1/manifest.json"):
        with pytest.raises(errors.FailedPrecondition):
            job.download(target, artifact_name=name)


def test_file_that_an_ended_job_does_not_have_is_not_found(
    client: fluxsmith.Client, job_store: JobStore, store: ObjectStore, tenant: str, tmp_path: Path
) -> None:
    held = checkpointed(job_store, store, tenant)
    job = client.job(held.job_id)
    with pytest.raises(errors.FailedPrecondition, match="wait until the job has published this one"):
        job.download(tmp_path / "x", artifact_name="report.html")
    job_store.claims.finish(held, FAILED)
    with pytest.raises(errors.NotFound, match="is FAILED and has no file"):
        job.download(tmp_path / "x", artifact_name="report.html")
    with pytest.raises(errors.JobFailed):
        job.download(tmp_path / "x")


def test_cancelling_keeps_checkpoints_unless_they_are_to_go(
    client: fluxsmith.Client, job_store: JobStore, store: ObjectStore, tenant: str
) -> None:
    held = checkpointed(job_store, store, tenant)
    job = client.job(held.job_id)
    job.pause()
    job_store.claims.park(held, Progress(step=5, total_steps=9))
    job.cancel()
    assert objects(store, held) == {"manifest.json", LORA_FILE, "metrics.csv"}
    assert job.cancel(discard_checkpoints=True).checkpoint_step == 0
    assert objects(store, held) == {"metrics.csv"}
    assert job.checkpoints() == []


def test_checkpoints_of_a_job_that_a_worker_has_are_left_to_it(
    client: fluxsmith.Client, job_store: JobStore, store: ObjectStore, tenant: str
) -> None:
    held = checkpointed(job_store, store, tenant)
    assert client.job(held.job_id).cancel(discard_checkpoints=True).state is JobState.CANCELLING
    assert objects(store, held) == {"manifest.json", LORA_FILE, "metrics.csv"}


def test_deleting_again_changes_nothing_and_leaves_nothing(
    client: fluxsmith.Client, job_store: JobStore, store: ObjectStore, tenant: str
) -> None:
    held = checkpointed(job_store, store, tenant)
    job = client.job(held.job_id)
    with pytest.raises(errors.FailedPrecondition):
        job.delete()
    job_store.claims.finish(held, FAILED)
    for _ in range(2):
        job.delete()
        assert objects(store, held) == set()
    with pytest.raises(errors.NotFound):
        job.refresh()


def test_memory_is_estimated_over_the_wire(stub: trainer_pb2_grpc.TrainerServiceStub) -> None:
    answer = stub.EstimateMemory(pb.EstimateMemoryRequest(model=pb.ESTIMATED_MODEL_FLUX_1_DEV))
    assert answer.peak_bytes == sum(part.bytes for part in answer.parts)
    assert answer.device_bytes == 0


def test_unknown_model_is_refused(stub: trainer_pb2_grpc.TrainerServiceStub) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        stub.EstimateMemory(pb.EstimateMemoryRequest(model=9))  # type: ignore[arg-type]  # as a newer client sends it
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
