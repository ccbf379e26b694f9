"""Ports on loopback that stay free until the program they were chosen for listens, whoever else looks for some."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable
from contextlib import suppress

HOST = "127.0.0.1"
# Nothing is ever served here, so that a port has no connections that are still ending: they would refuse the mark.
MARK_HOST = "127.0.0.2"
LOWEST, HIGHEST = 10_000, 32_767  # few systems give these to connections
TRIES = 1000


class PortTaken(Exception):
    """A port cannot be had: reserved by another process (`reserved`), or in use."""

    def __init__(self, port: int, *, reserved: bool) -> None:
        super().__init__(f"port {port} is {'reserved by another process' if reserved else 'in use'}")
        self.port = port
        self.reserved = reserved


class ReservedPorts:
    """Ports that no other process is given, from when they are taken until `close`, or the end of this process.

    A reservation is a socket that is bound and does not listen. Linux lets a program that sets SO_REUSEADDR, as servers
    do, listen on its port all the same, also again and again. It refuses the port to a second reservation, and gives it
    to no connection.
    """

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def take(self, *, beside: int = 0, suits: Callable[[int], bool] = lambda _: True) -> int:
        """Reserve a port that was free and `suits`; with `beside`, the port that much higher as well.

        Raises `PortTaken` when there is none.
        """
        port = 0
        for _ in range(TRIES):
            port = LOWEST + secrets.randbelow(HIGHEST + 1 - beside - LOWEST)  # draws from nobody's seeded generator
            if not suits(port):
                continue
            with suppress(PortTaken):
                for number in {port, port + beside}:
                    self._reserve(number, in_use_before=False)
                return port
        raise PortTaken(port, reserved=False)

    def claim(self, port: int) -> int:
        """Reserve this port and return it; raises `PortTaken`."""
        self._reserve(port, in_use_before=True)
        return port

    def close(self) -> None:
        """Give all of them back."""
        while self._sockets:
            self._sockets.pop().close()

    def keep(self) -> None:
        """Hold all of them until this process ends."""
        while self._sockets:
            self._sockets.pop().detach()

    def _reserve(self, port: int, *, in_use_before: bool) -> None:
        """Bind both sockets of a reservation; connections that are still ending are allowed with `in_use_before`."""
        mark = _bound(MARK_HOST, port, beside_ending_connections=False)
        if mark is None:
            raise PortTaken(port, reserved=True)
        hold = _bound(HOST, port, beside_ending_connections=in_use_before)
        if hold is None:
            mark.close()
            raise PortTaken(port, reserved=False)
        self._sockets += [mark, hold]


def free_ports(count: int) -> list[int]:
    """So many different TCP ports on loopback, reserved for programs of this process until it ends."""
    ports = ReservedPorts()
    taken = [ports.take() for _ in range(count)]
    ports.keep()
    return taken


def _bound(host: str, port: int, *, beside_ending_connections: bool) -> socket.socket | None:
    """A socket bound to the port, beside which a server may listen; None when it cannot be bound."""
    bound = socket.socket()
    if beside_ending_connections:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError:
        bound.close()
        return None
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return bound
