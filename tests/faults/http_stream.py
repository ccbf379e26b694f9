"""Enough of HTTP/1.1 to know where heads and bodies are on a connection that carries many of them (RFC 9112)."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass

CHUNK_BYTES = 64 * 1024
HEAD_LIMIT_BYTES = 1 << 20


class Severed(Exception):
    """The connection has ended, by a fault or by either side."""


@dataclass(frozen=True, kw_only=True)
class Body:
    """How long a body is: `size_bytes`, or chunk by chunk, or (neither) until the connection ends."""

    size_bytes: int | None = None
    chunked: bool = False


NO_BODY = Body(size_bytes=0)


@dataclass(frozen=True, kw_only=True)
class Head:
    """First line and headers of a request or a response, as they came."""

    raw: bytes

    @property
    def first_line(self) -> str:
        """`PUT /bucket/key HTTP/1.1`, or `HTTP/1.1 200 OK`."""
        return self.raw.split(b"\r\n", 1)[0].decode("latin-1")

    @property
    def interim(self) -> bool:
        """Whether this is a response before the response, such as 100 Continue."""
        return self.first_line.split(" ")[1].startswith("1")

    def body(self, *, asked_by: Head | None = None) -> Body:
        """The body that follows; `asked_by` is the request when this is a response."""
        headers = dict(line.lower().split(b":", 1) for line in self.raw.split(b"\r\n")[1:] if b":" in line)
        status = self.first_line.split(" ")[1]
        if asked_by and (asked_by.first_line.startswith("HEAD ") or status in ("204", "304")):
            return NO_BODY
        if headers.get(b"transfer-encoding", b"").strip() == b"chunked":
            return Body(chunked=True)
        if b"content-length" in headers:
            return Body(size_bytes=int(headers[b"content-length"]))
        return Body() if asked_by else NO_BODY


class HttpStream:
    """One direction of a connection, read in order. Raises `Severed` when it ends where it should not."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._ahead = b""

    def wait(self) -> bool:
        """Wait for the first byte; False when the connection ends before it."""
        return bool(self._ahead) or self._more()

    def head(self) -> Head | None:
        """The next head, or None when the connection ends before it."""
        while b"\r\n\r\n" not in self._ahead:
            if len(self._ahead) > HEAD_LIMIT_BYTES or not self._more():
                return None
        raw, self._ahead = self._ahead.split(b"\r\n\r\n", 1)
        return Head(raw=raw + b"\r\n\r\n")

    def pieces(self, body: Body) -> Iterator[tuple[bytes, bool]]:
        """What a body consists of, piece by piece, each with whether it is content (and not the size of a chunk)."""
        if not body.chunked:
            for piece in self._content(body.size_bytes):
                yield piece, True
            return
        size = -1
        while size != 0:
            line = self._line()
            size = int(line.split(b";")[0], 16)
            yield line, False
            for piece in self._content(size):
                yield piece, True
            yield self._line(), False  # trailers are not in use here: the last chunk is followed by one empty line

    def discard(self) -> None:
        """Read what has come and forget it."""
        self._ahead = b""
        if not self._more():
            raise Severed

    def send(self, data: bytes) -> None:
        """Write to the other end."""
        self.connection.sendall(data)

    def _content(self, size_bytes: int | None) -> Iterator[bytes]:
        left = size_bytes
        while left is None or left > 0:
            if not self._ahead and not self._more():
                if left is None:
                    return
                raise Severed
            piece = self._ahead[: CHUNK_BYTES if left is None else min(CHUNK_BYTES, left)]
            self._ahead = self._ahead[len(piece) :]
            left = None if left is None else left - len(piece)
            yield piece

    def _line(self) -> bytes:
        while b"\r\n" not in self._ahead:
            if not self._more():
                raise Severed
        line, self._ahead = self._ahead.split(b"\r\n", 1)
        return line + b"\r\n"

    def _more(self) -> bool:
        data = self.connection.recv(CHUNK_BYTES)
        self._ahead += data
        return bool(data)
