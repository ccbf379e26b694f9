"""A server that is told to stop ends within its grace, whatever it does, and at a second signal at once."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import fluxsmith
import grpc
import safetensors.torch
import torch
from fluxsmith.v1 import encoder_pb2 as pb
from fluxsmith.v1 import encoder_pb2_grpc

from services.common.object_store import ObjectStore
from services.stack import Stack
from tests.integration.conftest import client_of, write_drawings

GRACE_S, SLACK_S = 3.0, 20.0
LATENTS_KEY = "default/large"
CALLS = 8  # as many as wait for the models at a time


@contextmanager
def served(folder: Path, name: str, **settings: str) -> Iterator[Stack]:
    """A store and one service on it."""
    stack = Stack(folder, environment=settings)
    try:
        stack.start_store()
        stack.start_service(name, "")
        address = stack.encoder_address if name == "encoder" else stack.trainer_address
        stack.wait_for_service(name, address)
        yield stack
    finally:
        stack.stop_process(name, signal_number=signal.SIGKILL)
        stack.stop()


@contextmanager
def busy_models(stack: Stack) -> Iterator[None]:
    """Keep the models at work for minutes: pictures of 2048 px are being decoded."""
    data = safetensors.torch.save({"latents": torch.zeros(16, 256, 256)})
    ObjectStore(stack.store_settings).put(LATENTS_KEY, data)
    request = pb.DecodeLatentsRequest(latents_uris=[f"s3://{stack.store_settings.bucket}/{LATENTS_KEY}"])
    with grpc.insecure_channel(stack.encoder_address) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        before_s = cpu_s(stack.processes["encoder"])
        calls = [stub.DecodeLatents.future(request) for _ in range(CALLS)]
        until(lambda: cpu_s(stack.processes["encoder"]) > before_s + 1)
        assert not any(call.done() for call in calls)
        yield


def cpu_s(process: subprocess.Popen[bytes]) -> float:
    """How long a process has computed so far."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def until(happened: Callable[[], bool], *, timeout_s: float = 120) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def seconds_to_the_end(process: subprocess.Popen[bytes], signal_number: int) -> float:
    begin_s = time.monotonic()
    process.send_signal(signal_number)
    process.wait(120)
    return time.monotonic() - begin_s


def test_encoder_ends_within_its_grace_and_the_next_goes_on_with_what_it_had_taken(tmp_path: Path) -> None:
    drawings = tmp_path / "drawings"
    drawings.mkdir()
    write_drawings(drawings, 2)
    with served(tmp_path / "stack", "encoder", FLUXSMITH_ENCODER_STOP_GRACE_S=str(GRACE_S)) as stack:
        encoder = stack.processes["encoder"]
        with client_of(stack) as client, busy_models(stack):
            dataset = client.datasets.create_from_folder(drawings, wait=False)
            assert GRACE_S - 1 < seconds_to_the_end(encoder, signal.SIGTERM) < GRACE_S + SLACK_S
        assert encoder.returncode == 128 + signal.SIGTERM
        assert "not done 3 s after it was told to stop" in stack.log_path("encoder").read_text()
        stack.start_service("encoder", "")
        stack.wait_for_service("encoder", stack.encoder_address)
        with client_of(stack) as client:
            assert client.datasets.wait(dataset.id).state is fluxsmith.DatasetState.READY


def test_second_signal_ends_an_encoder_at_once(tmp_path: Path) -> None:
    with served(tmp_path / "stack", "encoder", FLUXSMITH_ENCODER_STOP_GRACE_S="300") as stack, busy_models(stack):
        encoder = stack.processes["encoder"]
        encoder.send_signal(signal.SIGTERM)
        until(lambda: "stopping" in stack.log_path("encoder").read_text())
        assert seconds_to_the_end(encoder, signal.SIGINT) < SLACK_S
        assert encoder.returncode == 128 + signal.SIGINT


def test_trainer_ends_within_its_grace_though_its_worker_is_frozen(tmp_path: Path) -> None:
    with served(tmp_path / "stack", "trainer", FLUXSMITH_TRAINER_STOP_GRACE_S=str(GRACE_S)) as stack:
        trainer = stack.processes["trainer"]
        until(lambda: bool(workers_of(trainer.pid)))  # the server serves before they are there
        (worker,) = workers_of(trainer.pid)
        os.kill(worker, signal.SIGSTOP)
        try:
            assert GRACE_S - 1 < seconds_to_the_end(trainer, signal.SIGTERM) < GRACE_S + SLACK_S
        finally:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        assert trainer.returncode == 128 + signal.SIGTERM


def workers_of(pid: int) -> list[int]:
    """The workers that a trainer has started, and none of the programs that its libraries call now and then."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            is_child = int(stat.read_text().rpartition(")")[2].split()[1]) == pid
            if is_child and b"services.trainer.worker" in (stat.parent / "cmdline").read_bytes():
                found.append(int(stat.parent.name))
    return found


def test_idle_server_ends_in_order_long_before_its_grace(tmp_path: Path) -> None:
    with served(tmp_path / "stack", "trainer", FLUXSMITH_TRAINER_WORKERS="0") as stack:
        process = stack.processes["trainer"]
        assert seconds_to_the_end(process, signal.SIGTERM) < SLACK_S
        assert process.returncode == 0
