"""Everything that the processes of a stack listen on, and what it answers to somebody without keys."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc

from services.stack import Stack
from tests.chaos.stand import children_of

LISTENING_TCP, LISTENING_UNIX = "0A", "00010000"
# Whoever asks reads and deletes everything with these in a SeaweedFS as it comes.
PATHS = (
    "/",
    "/status",
    "/metrics",
    "/dir/status",
    "/buckets/fluxsmith/?limit=20",
    "/fluxsmith/?list-type=2",
    "/col/delete?collection=fluxsmith",
    "/ui/index.html",
)
STRANGER = {"Origin": "http://evil.example", "Host": "evil.example", "Accept": "application/json"}
METHODS = (
    "/master_pb.Seaweed/Statistics",
    "/volume_server_pb.VolumeServer/VolumeServerStatus",
    "/filer_pb.SeaweedFiler/GetFilerConfiguration",
    "/iam_pb.SeaweedIdentityAccessManagement/ListUsers",
)
SILENCE = 0  # instead of an HTTP status: the connection ended without an answer


def processes_of(stack: Stack) -> set[int]:
    """The stack's processes and all below them."""
    found, new = set[int](), {process.pid for process in stack.processes.values()}
    while new:
        found |= new
        new = {child for pid in new for child in children_of(pid)}
    return found


def tcp_ports(pids: set[int]) -> set[tuple[str, int]]:
    """Addresses (as the kernel writes them) and ports that these processes listen on."""
    inodes = set(_inodes(pids))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING_TCP and fields[9] in inodes:
                host, _, port = fields[1].rpartition(":")
                found.add((host, int(port, 16)))
    return found


def unix_sockets(pids: set[int]) -> set[str]:
    """Paths that these processes listen on; abstract names begin with @."""
    inodes = _inodes(pids)
    found = set()
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if fields[3] == LISTENING_UNIX and fields[6] in inodes:
            path = fields[7] if len(fields) > 7 else "@"
            found.add(path if path.startswith("@") else str(Path(f"/proc/{inodes[fields[6]]}/cwd").resolve() / path))
    return found


def _inodes(pids: set[int]) -> dict[str, int]:
    """Sockets that these processes have open, with one that has it."""
    return {
        link.removeprefix("socket:[").removesuffix("]"): pid
        for pid in pids
        for link in _open_files(pid)
        if link.startswith("socket:[")
    }


def _open_files(pid: int) -> Iterator[str]:
    for path in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            yield str(path.readlink())
        except OSError:  # closed while we looked
            continue


def http_status(port: int, path: str, *, method: str = "GET", tls: ssl.SSLContext | None = None) -> int:
    """How a port of loopback answers a stranger's request."""
    connection: http.client.HTTPConnection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    if tls is not None:
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=tls)
    try:
        connection.request(method, path, headers=STRANGER)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return SILENCE
    finally:
        connection.close()


def unix_status(path: str, request: str) -> int:
    """How a socket's file answers a stranger's request."""
    folder = os.open(Path(path).parent, os.O_PATH)  # by way of which a path of any length has less than 107 bytes
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        try:
            connection.connect(f"/proc/self/fd/{folder}/{Path(path).name}")
        finally:
            os.close(folder)
        headers = "".join(f"{name}: {value}\r\n" for name, value in STRANGER.items())
        connection.sendall(f"GET {request} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n".encode())
        try:
            answer = connection.recv(4096)
        except OSError:
            return SILENCE
    return int(answer.split()[1]) if answer.startswith(b"HTTP/1.") else SILENCE


def grpc_code(port: int, method: str) -> grpc.StatusCode:
    """How a port of loopback answers a call in plaintext."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            call: Callable[..., object] = channel.unary_unary(method)
            call(b"", timeout=5)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return grpc.StatusCode.OK


def stranger_tls(certificate: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """A client that believes any server, with a certificate of its own making or none."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if certificate:
        context.load_cert_chain(certificate, key)
    return context
