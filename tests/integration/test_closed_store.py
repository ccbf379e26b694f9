"""Nobody reads, changes or deletes what a stack keeps, but who has its keys: not a page in a browser, no other user."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import fluxsmith
import grpc
import pytest

from services.common.object_store import ObjectStore
from services.stack import Stack
from services.store_keys import fresh_keys
from tests.integration.listeners import (
    METHODS,
    PATHS,
    SILENCE,
    grpc_code,
    http_status,
    processes_of,
    stranger_tls,
    tcp_ports,
    unix_sockets,
    unix_status,
)

# What the kernel writes for 127.0.0.1, also where a socket takes both kinds of addresses.
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}
REFUSED = {SILENCE, 400, 403, 404}
# Of S3, for whoever watches over it: 200 and nothing else.
ALIVE = {"/status", "/healthz"}

# Started in the data folder, so that no folder around it is what keeps others out.
NOBODY = """
import os, pathlib, socket, sys
os.setgid(65534); os.setgroups([]); os.setuid(65534)
for path in map(pathlib.Path, sys.argv[1:]):
    try:
        if path.is_socket():
            socket.socket(socket.AF_UNIX).connect(str(path))
        else:
            path.read_bytes() if path.is_file() else list(path.iterdir())
    except PermissionError:
        continue
    print(path)
"""


@pytest.fixture
def doors(stack: Stack) -> list[int]:
    """Every TCP port that the stack listens on but those of its own services, which tell no callers apart yet."""
    services = {int(address.rpartition(":")[2]) for address in (stack.encoder_address, stack.trainer_address)}
    found = tcp_ports(processes_of(stack))
    assert {host for host, _ in found} <= LOOPBACK
    assert services < {port for _, port in found}
    return sorted({port for _, port in found} - services)


def s3_port(stack: Stack) -> int:
    return int(stack.store_settings.endpoint.rpartition(":")[2])


def test_no_door_but_s3_answers_a_request_without_keys(stack: Stack, doors: list[int]) -> None:
    assert len(doors) == 10  # master, volume, filer and admin, each with its gRPC, and S3 with its own
    kept = ObjectStore(stack.store_settings).put("t/kept", b"kept").key
    answers = {(port, path): http_status(port, path) for port in doors for path in PATHS}
    alive = {(port, path) for port, path in answers if port == s3_port(stack) and path in ALIVE}
    assert {key: status for key, status in answers.items() if status not in REFUSED and key not in alive} == {}
    for port in doors:
        assert http_status(port, "/fluxsmith/t/kept", method="DELETE") in REFUSED
    assert ObjectStore(stack.store_settings).get(kept) == b"kept"


def test_no_door_opens_to_a_certificate_of_a_strangers_making(doors: list[int], stack: Stack, tmp_path: Path) -> None:
    fresh_keys(tmp_path)
    made = stranger_tls(tmp_path / "certificate.pem", tmp_path / "key.pem")
    for tls in (stranger_tls(), made):
        assert {http_status(port, path, tls=tls) for port in doors for path in PATHS} == {SILENCE}


def test_no_door_answers_grpc_in_plaintext(doors: list[int]) -> None:
    codes = {grpc_code(port, method) for port in doors for method in METHODS}
    assert codes == {grpc.StatusCode.UNAVAILABLE}


def test_unix_sockets_are_their_owners_alone_and_answer_nobody_without_keys(stack: Stack) -> None:
    found = unix_sockets(processes_of(stack))
    assert {str(path) for path in stack.store_sockets()} == found  # and none is abstract
    assert {path: oct(Path(path).stat().st_mode & 0o077) for path in found} == dict.fromkeys(found, "0o0")
    answers = {(path, request): unix_status(path, request) for path in found for request in PATHS}
    alive = {key for key in answers if key[0].endswith("/s3.sock") and key[1] in ALIVE}
    assert {key: status for key, status in answers.items() if status not in REFUSED and key not in alive} == {}


def test_everything_kept_is_its_owners_alone(stack: Stack, client: fluxsmith.Client, ready: str) -> None:
    client.train(ready, rank=2, steps=1).wait(timeout_s=120)
    assert stack.data.stat().st_mode & 0o777 == 0o700
    found = [path for path in stack.data.rglob("*") if not path.is_symlink()]
    assert {path.name for path in found} >= {"jobs.sqlite", "store.log", "key.pem", "store-secret", "lock"}
    assert any(path.suffix == ".vif" for path in found)  # SeaweedFS gives these a mode of its own choice
    deadline_s = time.monotonic() + 10
    while (open_to_others := readable_by_others(found)) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    assert open_to_others == []


def readable_by_others(paths: list[Path]) -> list[Path]:
    return [path for path in paths if path.exists() and path.stat().st_mode & 0o077]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_another_user_reads_no_file_and_reaches_no_socket(stack: Stack, ready: str) -> None:
    paths = [*stack.data.rglob("*"), *map(Path, unix_sockets(processes_of(stack)))]
    inside = [path.relative_to(stack.data) if path.is_relative_to(stack.data) else path for path in paths]
    command = [sys.executable, "-c", NOBODY, ".", *map(str, inside)]
    outcome = subprocess.run(command, cwd=stack.data, capture_output=True, text=True, check=True)
    assert outcome.stdout.splitlines() == []


def test_maintenance_worker_finds_the_store_itself(stack: Stack) -> None:
    jobs = stack.data / "store" / "admin" / "plugin" / "job_types"
    assert (jobs / "vacuum" / "config.json").exists()  # written when the worker has come
    assert "connect" not in stack.log_path("store").read_text().lower()
