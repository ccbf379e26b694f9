"""The faulty network does what it is told, and nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import urllib3

from tests.faults.proxy import FaultProxy, Faults

DATA = bytes(range(256)) * 1024


class Echo(BaseHTTPRequestHandler):
    """Answers PUT with the body it got; GET /chunked in chunks; GET /until-closed without a length."""

    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append(body)  # type: ignore[attr-defined]
        self._answer(body)

    def do_GET(self) -> None:
        if self.path == "/chunked":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n")
        elif self.path == "/until-closed":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"all there is")
            self.close_connection = True
        else:
            self._answer(DATA)

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "12345")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class QuietServer(ThreadingHTTPServer):
    """To which a reset connection is no news."""

    def handle_error(self, request: object, client_address: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    """A real HTTP server; `got` has the bodies that came whole."""
    server = QuietServer(("127.0.0.1", 0), Echo)
    server.got = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def proxy(server: ThreadingHTTPServer) -> Iterator[FaultProxy]:
    """The proxy before the server."""
    with FaultProxy(upstream=f"127.0.0.1:{server.server_port}", seed=3) as proxy:
        yield proxy


@pytest.fixture
def http(proxy: FaultProxy) -> urllib3.HTTPConnectionPool:
    """A client with one connection that is kept, and no patience."""
    return urllib3.connection_from_url(f"http://{proxy.endpoint}", maxsize=1, retries=False, timeout=5)


def differing_bits(a: bytes, b: bytes) -> int:
    """How many bits differ between two strings of one length."""
    assert len(a) == len(b)
    return sum((x ^ y).bit_count() for x, y in zip(a, b, strict=True))


def test_good_network_changes_nothing_on_a_connection_of_many_requests(
    http: urllib3.HTTPConnectionPool, proxy: FaultProxy
) -> None:
    assert http.request("PUT", "/a", body=DATA).data == DATA
    assert http.request("GET", "/chunked").data == b"hello world"
    assert http.request("HEAD", "/a").status == 200
    assert http.request("PUT", "/a", body=b"").data == b""
    assert http.request("GET", "/until-closed").data == b"all there is"
    assert (http.num_connections, proxy.requests, dict(proxy.done)) == (1, 5, {})


def test_one_bit_is_flipped_on_the_way_up(http: urllib3.HTTPConnectionPool, proxy: FaultProxy) -> None:
    proxy.faults = Faults(flip_up=1.0)
    assert differing_bits(http.request("PUT", "/a", body=DATA).data, DATA) == 1
    assert proxy.done == {"flip_up": 1}


@pytest.mark.parametrize(
    ("path", "sent"), [("/a", DATA), ("/chunked", b"hello world"), ("/until-closed", b"all there is")]
)
def test_one_bit_is_flipped_on_the_way_down(
    http: urllib3.HTTPConnectionPool, proxy: FaultProxy, path: str, sent: bytes
) -> None:
    proxy.faults = Faults(flip_down=1.0)
    assert differing_bits(http.request("GET", path).data, sent) == 1
    assert proxy.done == {"flip_down": 1}


def test_body_is_cut_on_the_way_down_where_it_was_told(http: urllib3.HTTPConnectionPool, proxy: FaultProxy) -> None:
    proxy.faults = Faults(cut_down=1.0, cut_after_bytes=100_000)
    response = http.request("GET", "/a", preload_content=False)
    with pytest.raises(urllib3.exceptions.ProtocolError, match="100000 bytes read"):
        response.read()


def test_body_is_cut_on_the_way_up(
    http: urllib3.HTTPConnectionPool, proxy: FaultProxy, server: ThreadingHTTPServer
) -> None:
    proxy.faults = Faults(cut_up=1.0)
    with pytest.raises((urllib3.exceptions.ProtocolError, OSError)):
        http.request("PUT", "/a", body=DATA)
    assert all(len(body) < len(DATA) for body in server.got)  # type: ignore[attr-defined]
    assert proxy.done == {"cut_up": 1}


@pytest.mark.parametrize(("fault", "arrives"), [(Faults(refuse=1.0), False), (Faults(drop_answer=1.0), True)])
def test_connection_is_reset_before_or_after_the_server_has_done_it(
    http: urllib3.HTTPConnectionPool, proxy: FaultProxy, server: ThreadingHTTPServer, fault: Faults, arrives: bool
) -> None:
    proxy.faults = fault
    with pytest.raises(urllib3.exceptions.ProtocolError):
        http.request("PUT", "/a", body=b"x")
    assert server.got == [b"x"] * arrives  # type: ignore[attr-defined]


def test_hanging_server_never_answers_and_a_good_network_afterwards_does(
    http: urllib3.HTTPConnectionPool, proxy: FaultProxy
) -> None:
    proxy.faults = Faults(hang=1.0)
    with pytest.raises(urllib3.exceptions.ReadTimeoutError):
        http.request("PUT", "/a", body=b"x", timeout=0.3)
    proxy.faults = Faults()
    assert http.request("PUT", "/a", body=b"x").data == b"x"


def test_slow_network_takes_its_time_both_ways(http: urllib3.HTTPConnectionPool, proxy: FaultProxy) -> None:
    proxy.faults = Faults(bytes_per_s=2 * len(DATA) / 0.5)
    began_s = time.monotonic()
    assert http.request("PUT", "/a", body=DATA).data == DATA
    assert time.monotonic() - began_s >= 0.5


def test_faults_strike_only_what_they_are_meant_for(http: urllib3.HTTPConnectionPool, proxy: FaultProxy) -> None:
    proxy.faults = Faults(flip_down=1.0, only="^GET")
    assert http.request("PUT", "/a", body=DATA).data == DATA
    assert http.request("GET", "/a").data != DATA


def test_network_is_good_again_after_so_many_strikes(http: urllib3.HTTPConnectionPool, proxy: FaultProxy) -> None:
    proxy.faults = Faults(flip_down=1.0, times=2)
    assert [http.request("GET", "/a").data == DATA for _ in range(4)] == [False, False, True, True]


def test_same_seed_strikes_the_same_requests(server: ThreadingHTTPServer) -> None:
    def struck() -> list[bool]:
        with FaultProxy(upstream=f"127.0.0.1:{server.server_port}", seed=7) as proxy:
            proxy.faults = Faults(flip_down=0.5)
            pool = urllib3.connection_from_url(f"http://{proxy.endpoint}", retries=False)
            return [pool.request("GET", "/a").data != DATA for _ in range(12)]

    first = struck()
    assert first == struck()
    assert True in first
    assert False in first


def test_severed_connections_end_in_the_middle(http: urllib3.HTTPConnectionPool, proxy: FaultProxy) -> None:
    proxy.faults = Faults(bytes_per_s=1e5)
    response = http.request("GET", "/a", preload_content=False)
    proxy.sever()
    with pytest.raises(urllib3.exceptions.ProtocolError):
        response.read()
    proxy.faults = Faults()
    assert http.request("GET", "/a").data == DATA
