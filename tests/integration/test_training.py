"""A folder of pictures goes in, a LoRA comes out."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import fluxsmith
import safetensors.torch
from fluxsmith import JobState, StateChanged, StepsCompleted, ValidationCompleted
from PIL import Image

from services.stack import Stack
from tests.integration.conftest import client_of, learnt, write_drawings


def test_a_folder_becomes_a_lora(client: fluxsmith.Client, drawings: Path, tmp_path: Path) -> None:
    dataset = client.datasets.create_from_folder(drawings)
    job = client.train(dataset, rank=4, alpha=8, steps=6, batch_size=4, learning_rate=1e-3, user_id="ann")
    result = job.wait(timeout_s=120).result
    file = job.download(tmp_path / "lora.safetensors")
    assert result is not None
    assert hashlib.sha256(file.read_bytes()).hexdigest() == result.lora_digest
    tensors = safetensors.torch.load_file(file)
    assert any(name.endswith("lora_B.weight") and tensor.abs().max() > 0 for name, tensor in tensors.items())
    assert job.refresh().user_id == "ann"


def test_events_are_gapless_and_tell_the_whole_run(client: fluxsmith.Client, ready: str) -> None:
    job = client.train(ready, held_out=ready, rank=2, steps=5, batch_size=5, validation_interval_steps=2)
    events = list(job.watch())
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    steps = [step.step for event in events if isinstance(event, StepsCompleted) for step in event.steps]
    assert steps == [1, 2, 3, 4, 5]
    assert [event.step for event in events if isinstance(event, ValidationCompleted)] == [0, 2, 4, 5]
    states = [event.state for event in events if isinstance(event, StateChanged)]
    assert states == [JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED]


def test_watching_from_the_middle_repeats_nothing(client: fluxsmith.Client, ready: str) -> None:
    job = client.train(ready, rank=2, steps=3, batch_size=5)
    every = list(job.watch())
    assert list(job.watch(after_sequence=3)) == every[3:]


def test_the_same_job_gives_the_same_tensors(client: fluxsmith.Client, ready: str, tmp_path: Path) -> None:
    jobs = [client.train(ready, rank=2, steps=4, batch_size=3, seed=7) for _ in range(2)]
    assert learnt(jobs[0], tmp_path) == learnt(jobs[1], tmp_path)


def test_the_base_stays_loaded_between_jobs(client: fluxsmith.Client, ready: str, stack: Stack) -> None:
    client.train(ready, rank=2, steps=1).wait(timeout_s=120)
    client.train(ready, rank=2, steps=1).wait(timeout_s=120)
    assert stack.log_path("trainer").read_text().count("resident on") == 1


def test_encoding_again_does_no_model_work(client: fluxsmith.Client, drawings: Path) -> None:
    client.datasets.create_from_folder(drawings)
    again = client.datasets.create_from_folder(drawings, name="the same pictures")
    assert again.cached_count == again.sample_count == 10


def test_tenants_do_not_see_each_other(client: fluxsmith.Client, stack: Stack, ready: str) -> None:
    with client_of(stack, tenant="somebody-else") as other:
        assert ready not in {dataset.id for dataset in other.datasets.list()}
        assert not list(other.jobs())


def test_a_running_job_is_cancelled_within_a_second(client: fluxsmith.Client, ready: str) -> None:
    job = client.train(ready, rank=2, steps=100_000)
    for event in job.watch():
        if isinstance(event, StepsCompleted):
            break
    asked_s = time.monotonic()
    job.cancel()
    last = list(job.watch())[-1]
    assert isinstance(last, StateChanged)
    assert last.state is JobState.CANCELLED
    assert time.monotonic() - asked_s < 10  # generous: the machine may be busy
    assert job.cancel().state is JobState.CANCELLED


def test_pictures_of_several_shapes_train_in_one_job(client: fluxsmith.Client, tmp_path: Path) -> None:
    write_drawings(tmp_path, 3, shade=40)
    for number, size in enumerate([(96, 40), (40, 96), (200, 100)]):
        Image.new("RGB", size, (9, 200, 20 * number)).save(tmp_path / f"wide-{number}.png")
        (tmp_path / f"wide-{number}.txt").write_text("a green field")
    dataset = client.datasets.create_from_folder(tmp_path)
    buckets = 4  # 64 x 64, 96 x 32, 32 x 96 and 80 x 32 px: each gives one batch an epoch
    assert client.train(dataset, rank=2, epochs=2, batch_size=4).wait(timeout_s=120).step == 2 * buckets
