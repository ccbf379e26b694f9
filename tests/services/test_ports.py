"""Ports that are chosen for a program stay free until it listens, however many programs look for some at once."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from services import ports
from services.ports import PortTaken, ReservedPorts, free_ports

CLAIM = "import sys; from services.ports import ReservedPorts; ReservedPorts().claim(int(sys.argv[1]))"
TAKE = "from services.ports import free_ports; print(*free_ports(12), flush=True); input()"


def in_another_process(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)


def test_reserved_port_is_refused_to_other_processes_until_it_is_given_back() -> None:
    reserved = ReservedPorts()
    port = reserved.take()
    assert "reserved by another process" in in_another_process(CLAIM, str(port)).stderr
    reserved.close()
    assert in_another_process(CLAIM, str(port)).returncode == 0


def test_server_listens_on_a_reserved_port_and_does_again_when_it_was_killed() -> None:
    [port] = free_ports(1)
    for _ in range(2):  # the second time beside the connection of the first, which is still ending
        with socket.create_server((ports.HOST, port)) as server, socket.create_connection((ports.HOST, port)):
            server.accept()[0].close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((ports.HOST, port))


def test_port_that_is_served_on_is_in_use() -> None:
    with socket.create_server((ports.HOST, 0)) as server, pytest.raises(PortTaken) as caught:
        ReservedPorts().claim(server.getsockname()[1])
    assert not caught.value.reserved


def test_programs_that_look_at_once_find_different_ports_among_few() -> None:
    few = f"from services import ports; ports.LOWEST, ports.HIGHEST = {ports.HIGHEST - 199}, {ports.HIGHEST}; "
    command = [sys.executable, "-c", few + TAKE]
    programs = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
        for _ in range(8)
    ]
    found = [port for program in programs for port in (program.stdout or sys.stdin).readline().split()]
    for program in programs:
        program.communicate("\n")
    assert len(found) == len(set(found)) == 96


def test_port_and_the_one_beside_it_are_both_reserved() -> None:
    reserved = ReservedPorts()
    port = reserved.take(beside=10_000)
    for number in (port, port + 10_000):
        with pytest.raises(PortTaken):
            ReservedPorts().claim(number)
    reserved.close()


def test_unsuitable_ports_are_passed_over() -> None:
    reserved = ReservedPorts()
    assert reserved.take(suits=lambda port: port % 10 == 7) % 10 == 7
    with pytest.raises(PortTaken):
        reserved.take(suits=lambda _: False)
    reserved.close()
