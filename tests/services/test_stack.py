"""The embedded stack: one a folder, its secret kept, and a clear word when a part does not start."""

from __future__ import annotations

import os
import signal
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import HealthServicer

from services.common.object_store import ObjectStore
from services.stack import Stack, StackError


def test_folder_has_one_stack_at_a_time(tmp_path: Path) -> None:
    first = Stack(tmp_path)
    with pytest.raises(StackError, match=f"process {os.getpid()}"):
        Stack(tmp_path)
    first.stop()
    Stack(tmp_path).stop()


def test_secret_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    secrets = []
    for _ in range(2):
        stack = Stack(tmp_path)
        secrets.append(stack.store_settings.secret_key.get_secret_value())
        stack.stop()
    assert secrets[0] == secrets[1]
    assert stat.S_IMODE((tmp_path / "store-secret").stat().st_mode) == 0o600


def test_what_was_stored_is_there_the_next_time(tmp_path: Path) -> None:
    for turn in range(2):
        stack = Stack(tmp_path)
        try:
            stack.start_store()
            store = ObjectStore(stack.store_settings)
            if turn == 0:
                store.put("t/a", b"kept")
            assert store.get("t/a") == b"kept"
        finally:
            stack.stop()


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGKILL])
def test_store_leaves_no_socket_behind(tmp_path: Path, signal_number: int) -> None:
    stack = Stack(tmp_path / ("long" * 30))  # a socket's whole path may have 107 bytes
    stack.start_store()
    sockets = stack.store_sockets()
    assert [path for path in sockets if not path.is_socket()] == []
    stack.stop_process("store", signal_number=signal_number)
    assert [path for path in sockets if path.is_socket()] == []
    stack.stop()


def test_part_that_does_not_start_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    stack = Stack(tmp_path)
    stack.start_service("decoder", stack.encoder_address)
    with pytest.raises(StackError, match=r"the decoder ended with code 1; its log is .*decoder\.log") as caught:
        stack.wait_for_service("decoder", stack.encoder_address)
    stack.stop()
    assert "No module named services.decoder" in str(caught.value)


def test_port_that_is_taken_is_named_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with (
            pytest.raises(StackError, match=f"127.0.0.1:{port} is taken .*--trainer-port"),
            Stack(tmp_path, trainer_port=port),
        ):
            pass
    assert not (tmp_path / "logs").exists()


def test_port_of_a_running_service_is_told_as_such(tmp_path: Path) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with (
            pytest.raises(StackError, match=f"{port} is taken by a running fluxsmith service; .*--encoder-port"),
            Stack(tmp_path, encoder_port=port),
        ):
            pass
    finally:
        server.stop(None)


def test_port_is_claimed_before_its_service_has_it(tmp_path: Path) -> None:
    first = Stack(tmp_path / "first")
    port = int(first.encoder_address.rpartition(":")[2])
    with pytest.raises(StackError, match=f"{port} is taken by another stack; .*--trainer-port"):
        Stack(tmp_path / "second", trainer_port=port)
    first.stop()
    Stack(tmp_path / "second", trainer_port=port).stop()
