"""A gateway on a port of its own, for tests of what happens on the connection."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from gateway.app import create_app
from gateway.settings import GatewaySettings


@contextmanager
def serving(settings: GatewaySettings) -> Iterator[tuple[str, int]]:
    """Host and port of a gateway that runs in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(create_app(settings), log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield listening.getsockname()
        finally:
            server.should_exit = True
            thread.join()
