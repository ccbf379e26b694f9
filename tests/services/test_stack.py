"""The embedded stack: one a folder, its secret kept, and a clear word when a part does not start."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import HealthServicer

from services.common.object_store import ObjectStore
from services.embedded_store import has_no_stranger
from services.ports import free_ports
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
    try:
        stack.start_store()
        sockets = stack.store_sockets()
        while not all(path.is_socket() for path in sockets):  # the last is made after S3 serves
            time.sleep(0.05)
        stack.stop_process("store", signal_number=signal_number)
        assert [path for path in sockets if path.is_socket()] == []
    finally:
        stack.stop()


def test_part_that_does_not_start_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    stack = Stack(tmp_path)
    stack.start_service("decoder", stack.encoder_address)
    with pytest.raises(StackError, match=r"the decoder ended with code 1; its log is .*decoder\.log") as caught:
        stack.wait_for_service("decoder", stack.encoder_address)
    stack.stop()
    assert "No module named services.decoder" in str(caught.value)


def test_part_that_ends_is_named_at_once_while_another_is_awaited(tmp_path: Path) -> None:
    stack = Stack(tmp_path)
    stack.processes["encoder"] = subprocess.Popen(["sleep", "60"])  # noqa: S607 - stands for one that loads its model
    stack.start_service("decoder", stack.encoder_address)
    try:
        with pytest.raises(StackError, match="the decoder ended with code 1"):
            stack.wait_for_service("encoder", stack.encoder_address)
    finally:
        stack.stop()


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


def test_stores_that_start_at_once_all_start_and_keep_apart(tmp_path: Path) -> None:
    stacks = [Stack(tmp_path / str(number)) for number in range(4)]
    try:
        with ThreadPoolExecutor(len(stacks)) as pool:
            list(pool.map(Stack.start_store, stacks))
        for number, stack in enumerate(stacks):
            ObjectStore(stack.store_settings).put("t/a", f"{number}".encode())
        assert [ObjectStore(stack.store_settings).get("t/a") for stack in stacks] == [b"0", b"1", b"2", b"3"]
    finally:
        for stack in stacks:
            stack.stop_process("store", signal_number=signal.SIGKILL)
            stack.stop()


def test_killed_stack_leaves_a_folder_and_sockets_that_the_next_one_puts_right(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from services.stack import Stack; "
        "stack = Stack(Path(sys.argv[1])); stack.start_store(); "
        "from services.common.object_store import ObjectStore; "
        "ObjectStore(stack.store_settings).put('t/a', b'kept'); print(*stack.store_sockets()); "
        "stack.processes['store'].kill(); stack.processes['store'].wait(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    left = [Path(path) for path in killed.stdout.split()]
    assert [path for path in left if not path.is_socket()] == []
    stack = Stack(tmp_path)
    stack.start_store()
    assert ObjectStore(stack.store_settings).get("t/a") == b"kept"
    stack.stop()
    assert [path for path in left if path.exists()] == []


def test_folder_that_was_open_to_others_is_tightened(tmp_path: Path) -> None:
    Stack(tmp_path).stop()
    (tmp_path / "logs").mkdir()
    (tmp_path / "jobs.sqlite").touch()
    (tmp_path / "not-ours").touch(0o644)
    (tmp_path / "logs" / "link").symlink_to(tmp_path / "not-ours")
    for path in (tmp_path, *tmp_path.glob("[!n]*")):
        path.chmod(0o755)
    Stack(tmp_path).stop()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path, *tmp_path.iterdir())}
    assert {name for name, mode in modes.items() if mode & 0o077} == {"not-ours"}


def test_file_that_the_store_opens_to_others_is_tightened_while_it_runs(tmp_path: Path) -> None:
    stack = Stack(tmp_path)
    try:
        (tmp_path / "store").mkdir()
        (written := tmp_path / "store" / "1.vif").touch()
        written.chmod(0o644)
        deadline_s = time.monotonic() + 10
        while stat.S_IMODE(written.stat().st_mode) != 0o600 and time.monotonic() < deadline_s:
            time.sleep(0.05)
        assert stat.S_IMODE(written.stat().st_mode) == 0o600
    finally:
        stack.stop()


def test_folder_that_cannot_be_made_private_is_refused_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StackError, match="choose a folder of your own"):
        Stack(tmp_path / "file" / "data")


def test_store_that_is_frozen_is_stopped_in_bounded_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.stack.STORE_STOP_S", 0.5)
    stack = Stack(tmp_path)
    stack.start_store()
    process = stack.processes["store"]
    process.send_signal(signal.SIGSTOP)
    stack.stop()
    assert process.returncode == -signal.SIGKILL


def test_name_of_a_socket_that_another_user_has_taken_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    [port] = free_ports(1)
    assert has_no_stranger(port)
    with socket.socket(socket.AF_UNIX) as taken:
        path = f"/tmp/seaweedfs-filer-grpc-{port}.sock"  # noqa: S108 - where SeaweedFS puts it
        taken.bind(path)
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        assert not has_no_stranger(port)
        Path(path).unlink()
