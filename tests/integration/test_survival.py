"""Whatever is killed, nothing that was acknowledged is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fluxsmith
import pytest
from fluxsmith import DatasetState, JobState, StepsCompleted, read_folder

from services.stack import Stack
from tests.integration.conftest import client_of, learnt, write_drawings


def test_a_client_killed_in_mid_stream_loses_nothing(stack: Stack, client: fluxsmith.Client, tmp_path: Path) -> None:
    folder = write_drawings(tmp_path, 4, shade=11)
    command = [
        sys.executable,
        "-m",
        "fluxsmith",
        "--encoder",
        stack.encoder_address,
        "--trainer",
        stack.trainer_address,
    ]
    process = subprocess.Popen(
        [*command, "train", str(folder), "--steps", "60", "--rank", "2", "--user", "killed"], stdout=subprocess.PIPE
    )
    job = wait_for_job(client, user_id="killed")
    events = []
    for event in job.watch():
        events.append(event)
        if isinstance(event, StepsCompleted):
            break
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
    events += job.watch(after_sequence=events[-1].sequence)
    assert job.refresh().state is JobState.SUCCEEDED
    steps = [step.step for event in events if isinstance(event, StepsCompleted) for step in event.steps]
    assert steps == list(range(1, 61))


def test_a_killed_worker_loses_its_job_to_the_next(own_stack: Stack, drawings: Path, tmp_path: Path) -> None:
    with client_of(own_stack) as client:
        dataset = client.datasets.create_from_folder(drawings)
        undisturbed = learnt(client.train(dataset, rank=2, steps=40, seed=3), tmp_path)
        job = client.train(dataset, rank=2, steps=40, seed=3)
        for event in job.watch():
            if isinstance(event, StepsCompleted):
                os.kill(child_of(own_stack, "trainer"), signal.SIGKILL)
                break
        assert learnt(job, tmp_path) == undisturbed
        assert job.refresh().attempt == 2


def test_a_killed_trainer_takes_no_job_with_it(own_stack: Stack, drawings: Path) -> None:
    with client_of(own_stack) as client:
        dataset = client.datasets.create_from_folder(drawings)
        job = client.train(dataset, rank=2, steps=30)
        for event in job.watch():
            if isinstance(event, StepsCompleted):
                break
        own_stack.stop_process("trainer", signal_number=signal.SIGKILL)
        own_stack.start_service("trainer", own_stack.trainer_address)
        own_stack.wait_for_service("trainer", own_stack.trainer_address)
        assert job.wait(timeout_s=150).state is JobState.SUCCEEDED


def test_a_killed_encoder_goes_on_where_it_was(own_stack: Stack, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    write_drawings(folder, 60)
    with client_of(own_stack) as client:
        dataset = client.datasets.create()
        client.datasets.upload(dataset, read_folder(folder))
        client.datasets.encode(dataset)
        for seen in client.datasets.watch(dataset):
            if seen.encoded_count > 5:
                own_stack.stop_process("encoder", signal_number=signal.SIGKILL)
                break
        own_stack.start_service("encoder", own_stack.encoder_address)
        own_stack.wait_for_service("encoder", own_stack.encoder_address)
        finished = client.datasets.wait(dataset)
    assert finished.state is DatasetState.READY
    assert finished.encoded_count == 60
    assert finished.cached_count > 5


def test_a_store_that_is_down_is_said_and_nothing_is_lost(own_stack: Stack, drawings: Path) -> None:
    with client_of(own_stack) as client:
        dataset = client.datasets.create_from_folder(drawings)
        port_kept = own_stack.store_settings
        own_stack.stop_process("store", signal_number=signal.SIGKILL)
        with pytest.raises(fluxsmith.errors.Unavailable) as raised:
            client.train(dataset, steps=1)
        assert raised.value.reason == "STORE_UNAVAILABLE"
        assert "store" in raised.value.remedy
        own_stack.start_store()
        assert own_stack.store_settings == port_kept
        client.train(dataset, rank=2, steps=1).wait(timeout_s=120)


def wait_for_job(client: fluxsmith.Client, *, user_id: str) -> fluxsmith.JobHandle:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for job in client.jobs(user_id=user_id):
            return job
        time.sleep(0.05)
    raise AssertionError("no job appeared")


def child_of(stack: Stack, name: str) -> int:
    """Process identifier of the one child of a server."""
    parent = stack.processes[name].pid
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    found = [int(child) for child in children] or [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/stat")
        if path.read_text().rpartition(")")[2].split()[1] == str(parent)
    ]
    assert len(found) == 1
    return found[0]
