"""The link to the encoder: what it brings, and that a worker never waits long for an encoder that is away."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest
from fluxsmith.v1 import encoder_pb2 as pb
from fluxsmith.v1 import encoder_pb2_grpc

from services.ports import free_ports
from services.trainer import encoder_link
from services.trainer.encoder_link import EncoderAway, EncoderLink

GONE_S = encoder_link.EMBED_S / 2  # it takes a second or five, and a call that waited for an answer a minute
DIGEST = "a" * 64
Context = grpc.ServicerContext


class Echo(encoder_pb2_grpc.EncoderServiceServicer):
    """Answers with what it was asked for, and by whom; `odd` is not read, and `slow` waits until it is let go."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()

    def EncodePrompts(self, request: pb.EncodePromptsRequest, context: Context) -> pb.EncodePromptsResponse:  # noqa: N802
        tenant = str(dict(context.invocation_metadata())["fluxsmith-tenant"])
        if "slow" in request.captions:
            self.goes_on.wait(60)
        references = [reference(f"{tenant}/{caption}") for caption in request.captions]
        warnings = [f"{caption!r}: T5 does not read it" for caption in request.captions if caption == "odd"]
        return pb.EncodePromptsResponse(embeddings=references, warnings=warnings)


def reference(key: str) -> pb.ObjectReference:
    return pb.ObjectReference(uri=f"s3://b/{key}", content_digest=DIGEST, size_bytes=7)


@contextmanager
def served(address: str) -> Iterator[None]:
    """The echo at an address."""
    server, echo = grpc.server(ThreadPoolExecutor(4)), Echo()  # type: ignore[abstract]  # the rest is UNIMPLEMENTED
    encoder_pb2_grpc.add_EncoderServiceServicer_to_server(echo, server)
    server.add_insecure_port(address)
    server.start()
    try:
        yield
    finally:
        echo.goes_on.set()
        server.stop(0).wait()


@pytest.fixture
def address() -> str:
    """Where nothing listens yet."""
    return f"127.0.0.1:{free_ports(1)[0]}"


@pytest.fixture
def link(address: str) -> Iterator[EncoderLink]:
    with EncoderLink(address, "mine") as link:
        yield link


def test_references_come_in_order_for_the_links_tenant(link: EncoderLink, address: str) -> None:
    with served(address):
        found = link.embed(["one", "", "three"])
    assert [one.uri for one in found] == ["s3://b/mine/one", "s3://b/mine/", "s3://b/mine/three"]
    assert {(one.content_digest, one.size_bytes) for one in found} == {(DIGEST, 7)}


def test_what_the_encoder_does_not_read_is_passed_on(link: EncoderLink, address: str) -> None:
    told: list[str] = []
    with served(address):
        link.embed(["odd"], warn=told.extend)
    assert told == ["'odd': T5 does not read it"]


def test_where_nothing_listens_is_told_within_seconds(link: EncoderLink, address: str) -> None:
    begin_s = time.monotonic()
    with pytest.raises(EncoderAway, match="does not answer") as caught:
        link.embed(["a"])
    assert time.monotonic() - begin_s < GONE_S
    assert "127.0.0.1" not in caught.value.line  # which the job's owner sees
    assert address in caught.value.log_line
    assert "FLUXSMITH_TRAINER_ENCODER_ADDRESS" in caught.value.remedy


def test_what_accepts_and_says_nothing_is_told_within_seconds(link: EncoderLink, address: str) -> None:
    begin_s = time.monotonic()
    with socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))), pytest.raises(EncoderAway):
        link.embed(["a"])
    assert time.monotonic() - begin_s < GONE_S


def test_an_encoder_that_comes_back_is_found_by_the_same_link(link: EncoderLink, address: str) -> None:
    with pytest.raises(EncoderAway):
        link.embed(["a"])
    for _ in range(2):
        with served(address):
            assert len(link.embed(["a"])) == 1
    with pytest.raises(EncoderAway):
        link.embed(["a"])


def test_an_encoder_that_restarts_meanwhile_is_waited_for(link: EncoderLink, address: str) -> None:
    with served(address):
        link.embed(["a"])
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(link.embed, ["a"])
        time.sleep(0.1)
        with served(address):
            assert len(asked.result()) == 1


def test_an_encoder_that_is_too_slow_is_given_up(
    link: EncoderLink, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_link, "EMBED_S", 0.3)
    with served(address), pytest.raises(EncoderAway, match="too slow"):
        link.embed(["slow"])


def test_what_is_raised_while_waiting_ends_the_call_at_once(address: str) -> None:
    begin_s = time.monotonic()

    def check() -> None:
        if time.monotonic() - begin_s > 0.3:
            raise InterruptedError

    link = EncoderLink(address, "mine", while_waiting=check)
    with served(address), link, pytest.raises(InterruptedError):  # an answer would come with the end of this block
        link.embed(["slow"])


def test_a_server_that_is_no_encoder_is_told(link: EncoderLink, address: str) -> None:
    with served(address), pytest.raises(EncoderAway, match="UNIMPLEMENTED"):
        link.decode(["s3://b/mine/latents"])
