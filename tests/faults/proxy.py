"""A faulty network: a proxy between an HTTP client and its server that refuses, stalls, cuts and flips bits.

    with FaultProxy(upstream="127.0.0.1:9000", seed=1) as proxy:
        client = connect(proxy.endpoint)
        proxy.faults = Faults(flip_up=1.0)  # from the next request on
        ...
        proxy.faults = Faults()             # a good network again

It reads just enough of HTTP/1.1 to tell bodies from headers, and one request after the other on each connection.
"""

from __future__ import annotations

import contextlib
import random
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import NoReturn

from tests.faults.http_stream import Body, Head, HttpStream, Severed

POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What goes wrong from now on. The first seven are probabilities per request, 0 to 1; at most one strikes."""

    refuse: float = 0.0
    """The connection is reset before the request has come through."""
    hang: float = 0.0
    """The request is taken and never answered, for as long as this fault is on or the client waits."""
    cut_up: float = 0.0
    """The connection ends in the middle of the request's body."""
    cut_down: float = 0.0
    """The connection ends in the middle of the response's body."""
    flip_up: float = 0.0
    """One bit of the request's body is turned round."""
    flip_down: float = 0.0
    """One bit of the response's body is turned round."""
    drop_answer: float = 0.0
    """The server does what it was asked to; the connection is reset before its answer has come through."""

    cut_after_bytes: int | None = None
    """Bytes of the body that pass before a cut; None means somewhere in the middle."""
    delay_s: float = 0.0
    """Wait before each 64 KiB, both ways."""
    bytes_per_s: float = 0.0
    """Bandwidth of each connection; 0 means all there is."""
    times: int = 0
    """How many requests are struck before the network is good again; 0 means all that come."""
    only: str = ""
    """Regular expression that the request line (`PUT /bucket/key HTTP/1.1`) must have for a fault to strike."""


STRIKING = ("refuse", "hang", "cut_up", "cut_down", "flip_up", "flip_down", "drop_answer")


class FaultProxy:
    """Context manager around the proxy. Listens on loopback; `done` counts what it did, `requests` what came."""

    def __init__(self, *, upstream: str, seed: int = 0) -> None:
        host, port = upstream.rsplit(":", 1)
        self._faults = Faults()
        self._struck = 0
        self.done: Counter[str] = Counter()
        self.requests = 0
        self._upstream = (host, int(port))
        self._random = random.Random(seed)  # noqa: S311
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._open: set[socket.socket] = set()
        self._acceptor = threading.Thread(target=self._accept, name="fault-proxy", daemon=True)

    @property
    def faults(self) -> Faults:
        """What goes wrong now."""
        return self._faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        with self._lock:
            self._faults, self._struck = faults, 0

    @property
    def endpoint(self) -> str:
        """Host and port to connect to instead of the server's."""
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> FaultProxy:
        self._acceptor.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._listener.close()
        self.sever()
        self._acceptor.join(5)

    def sever(self) -> None:
        """End all connections that are open now."""
        with self._lock:
            for connection in self._open:
                _finish(connection)

    def _accept(self) -> None:
        self._listener.settimeout(POLL_S)
        while not self._ending.is_set():
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), name="fault-connection", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError, Severed, ValueError, IndexError), self._kept(client):
            up = HttpStream(client)
            if not up.wait():  # the server is not bothered by a connection that is never used
                return
            with self._kept(socket.create_connection(self._upstream)) as server:
                down = HttpStream(server)
                while (request := up.head()) is not None and self._exchange(request, up, down):
                    pass

    def _exchange(self, request: Head, up: HttpStream, down: HttpStream) -> bool:
        """One request and its response; whether the connection can carry another."""
        faults = self.faults
        fault = self._draw(request, faults)
        if fault == "refuse":
            self._strike(fault, up, down)
        if fault == "hang":
            self._hang(faults, up)
        down.send(request.raw)
        with contextlib.suppress(OSError):  # a server may answer before it has read all, and close
            self._relay(request.body(), up, down, fault if fault.endswith("_up") else "", faults)
        while (response := down.head()) is not None and response.interim:
            up.send(response.raw)
        if response is None:
            return False
        if fault == "drop_answer":
            self._strike(fault, up, down)
        up.send(response.raw)
        body = response.body(asked_by=request)
        self._relay(body, down, up, fault if fault.endswith("_down") else "", faults)
        return body != Body()

    def _draw(self, request: Head, faults: Faults) -> str:
        """The fault that strikes this request, or nothing."""
        with self._lock:
            self.requests += 1
            if not re.search(faults.only, request.first_line):
                return ""
            if faults.times and self._struck >= faults.times:
                return ""
            drawn = self._random.random()
            for name in STRIKING:
                drawn -= getattr(faults, name)
                if drawn < 0:
                    self._struck += 1
                    return name
        return ""

    def _relay(self, body: Body, source: HttpStream, sink: HttpStream, fault: str, faults: Faults) -> None:
        """Carry a body over, struck once at most. Sizes of chunks pass untouched."""
        sent, strike_at = 0, -1
        for piece, is_content in source.pieces(body):
            self._slow_down(len(piece), faults)
            if is_content and fault and strike_at < 0:
                strike_at = self._somewhere(fault, faults, body.size_bytes or len(piece))
            if is_content and sent <= strike_at < sent + len(piece):
                at = strike_at - sent
                if fault.startswith("cut"):
                    sink.send(piece[:at])
                    self._strike(fault, source, sink)
                self._count(fault)
                sink.send(self._flipped(piece, at))
            else:
                sink.send(piece)
            sent += len(piece) if is_content else 0

    def _somewhere(self, fault: str, faults: Faults, size_bytes: int) -> int:
        if fault.startswith("cut") and faults.cut_after_bytes is not None:
            return min(faults.cut_after_bytes, size_bytes - 1)
        with self._lock:
            return self._random.randrange(size_bytes)

    def _flipped(self, piece: bytes, at: int) -> bytes:
        with self._lock:
            bit = 1 << self._random.randrange(8)
        return piece[:at] + bytes([piece[at] ^ bit]) + piece[at + 1 :]

    def _slow_down(self, size_bytes: int, faults: Faults) -> None:
        wait_s = faults.delay_s + (size_bytes / faults.bytes_per_s if faults.bytes_per_s else 0.0)
        if wait_s:
            self._count("slow")
            self._ending.wait(wait_s)

    def _hang(self, faults: Faults, up: HttpStream) -> NoReturn:
        self._count("hang")
        up.connection.settimeout(POLL_S)
        while self.faults is faults and not self._ending.is_set():
            with contextlib.suppress(TimeoutError):
                up.discard()
        raise Severed

    def _strike(self, fault: str, *streams: HttpStream) -> NoReturn:
        end = _finish if fault.startswith("cut") else _reset
        self._count(fault)
        for stream in streams:
            end(stream.connection)
        raise Severed

    def _count(self, fault: str) -> None:
        with self._lock:
            self.done[fault] += 1

    @contextlib.contextmanager
    def _kept(self, connection: socket.socket) -> Iterator[socket.socket]:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a body follows its head at once
        with self._lock:
            self._open.add(connection)
        try:
            yield connection
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()


def _finish(connection: socket.socket) -> None:
    """End a connection in good order: what was sent arrives."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _reset(connection: socket.socket) -> None:
    """End a connection at once, by RST."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RD)
