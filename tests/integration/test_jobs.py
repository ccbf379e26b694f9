"""Jobs under way are paused, resumed, checkpointed and cancelled; a request that is repeated acts once."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import fluxsmith
import grpc
from fluxsmith import CheckpointWritten, JobHandle, JobState, StateChanged, StepsCompleted
from fluxsmith.v1 import trainer_pb2 as pb
from fluxsmith.v1 import trainer_pb2_grpc

from services.stack import Stack
from tests.integration.conftest import client_of, learnt

CALLS = 1000


def first_steps(job: JobHandle) -> None:
    """Wait until the job has done some."""
    for event in job.watch():
        if isinstance(event, StepsCompleted):
            return


def until(job: JobHandle, state: JobState) -> None:
    """Wait until the job is in the state."""
    for event in job.watch(after_sequence=job.snapshot.last_sequence):
        if isinstance(event, StateChanged) and event.state is state:
            return


def test_a_job_that_was_paused_makes_the_same_tensors(client: fluxsmith.Client, ready: str, tmp_path: Path) -> None:
    config = fluxsmith.TrainConfig(rank=2, steps=40, seed=5)
    undisturbed = learnt(client.submit(ready, config), tmp_path)
    job = client.submit(ready, config)
    first_steps(job)
    before = job.pause()
    assert before.state in {JobState.PAUSING, JobState.PAUSED}
    until(job, JobState.PAUSED)
    paused = job.refresh()
    assert (paused.state, paused.step) == (JobState.PAUSED, paused.checkpoint_step)
    assert 0 < paused.checkpoint_step < 40
    job.resume()
    assert learnt(job, tmp_path) == undisturbed
    steps = [step.step for event in job.watch() if isinstance(event, StepsCompleted) for step in event.steps]
    assert steps == list(range(1, 41))


def test_a_checkpoint_is_written_when_asked_for_and_can_be_used(
    client: fluxsmith.Client, ready: str, tmp_path: Path
) -> None:
    job = client.train(ready, rank=2, steps=100_000, held_out=ready, validation_interval_steps=100_000)
    first_steps(job)
    job.checkpoint()
    written = next(event for event in job.watch() if isinstance(event, CheckpointWritten)).checkpoint
    assert [checkpoint.id for checkpoint in job.checkpoints()] == [written.id]
    assert job.refresh().checkpoint_step == written.step
    file = job.download(tmp_path / "so-far.safetensors", artifact_name=written.lora.artifact_name)
    assert file.stat().st_size == written.lora.size_bytes
    begun = client.train(ready, rank=2, steps=1, warm_start_uri=written.lora.uri)
    assert begun.wait(timeout_s=120).state is JobState.SUCCEEDED
    job.cancel(discard_checkpoints=True)
    assert list(job.watch())[-1].state is JobState.CANCELLED  # type: ignore[attr-defined]
    assert job.checkpoints() == []


def test_time_left_and_progress_are_told_while_a_job_runs(client: fluxsmith.Client, ready: str) -> None:
    job = client.train(ready, rank=2, steps=100_000)
    first_steps(job)
    while job.refresh().time_left_s is None:
        assert job.snapshot.state is JobState.RUNNING
    assert job.snapshot.progress_time is not None
    job.cancel()
    assert list(job.watch())
    assert job.refresh().time_left_s is None
    assert job.snapshot.progress_time is None


def test_a_thousand_calls_with_one_request_id_make_one_job(stack: Stack, ready: str) -> None:
    request = pb.CreateTrainingJobRequest(
        request_id="once", user_id="thousand", dataset_id=ready, config=pb.TrainConfig(steps=1, rank=2)
    )

    async def create() -> Counter[str]:
        async with grpc.aio.insecure_channel(stack.trainer_address) as channel:
            stub: Any = trainer_pb2_grpc.TrainerServiceStub(channel)
            answers = await asyncio.gather(*(stub.CreateTrainingJob(request, timeout=60) for _ in range(CALLS)))
        return Counter(answer.job.job_id for answer in answers)

    made = asyncio.run(create())
    assert list(made.values()) == [CALLS]
    with client_of(stack) as client:
        assert {job.id for job in client.jobs(user_id="thousand")} == set(made)
