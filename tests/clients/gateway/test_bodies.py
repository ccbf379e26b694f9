"""Bodies that were made to cost much are refused before they do, and others are answered meanwhile."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from time import monotonic
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from fluxsmith.v1 import trainer_pb2 as pb
from gateway.app import create_app
from gateway.examples import RED_DOT_PNG
from gateway.json_shape import MAX_BYTES_BETWEEN, JsonShape, TooDeep, TooManyEntries, TooMuchBetween
from gateway.settings import GatewaySettings
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.clients.gateway.serving import serving
from tests.clients.recording import Recorder

BODY: dict[str, Any] = {"train_data": [{"image": RED_DOT_PNG, "description": "a dot"}], "user_id": 7}
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def web() -> Iterator[TestClient]:
    with TestClient(create_app(GatewaySettings())) as web:
        yield web


def test_samples_without_end_are_refused_before_they_are_read(web: TestClient) -> None:
    for entry in ("{}", "[]", "1", '""'):
        content = b'{"user_id": 1, "train_data": [' + b",".join([entry.encode()] * 300_000) + b"]}"
        answer = web.post("/jobs", content=content, headers=JSON)
        assert (answer.status_code, answer.json()["reason"]) == (413, "TOO_MANY_ENTRIES")
        assert len(answer.content) < 1000


def test_a_few_samples_too_many_are_counted(web: TestClient) -> None:
    answer = web.post("/jobs", json=BODY | {"train_data": BODY["train_data"] * 101})
    assert (answer.status_code, answer.json()["reason"]) == (413, "TOO_MANY_SAMPLES")
    assert "101 samples" in answer.json()["detail"]


def test_the_largest_request_that_is_allowed_is_not_too_many_entries(web: TestClient) -> None:
    parameters = {
        "preview_prompts": ["a, b, " * 300] * 16,
        "rank_pattern": {f"block.{number}": 8 for number in range(100)},
    }
    samples = [{"image": RED_DOT_PNG, "description": 'a "dot", '.ljust(2000, ",")}] * 100
    # All of it is right but the user, so that no service is asked.
    answer = web.post("/jobs", json={"train_data": samples, "training_params": parameters, "user_id": "u" * 65})
    assert [one["field"] for one in answer.json()["violations"]] == ["body.user_id"]


@pytest.mark.parametrize(("count", "told"), [(30, 20), (3000, 1)])
def test_faults_are_told_up_to_twenty_and_counted_besides(web: TestClient, count: int, told: int) -> None:
    answer = web.post("/jobs", json=BODY | {"training_params": {f"learning_rat{number}": 1 for number in range(count)}})
    problem = answer.json()
    assert (answer.status_code, len(problem["violations"])) == (422, told)
    assert problem.get("more_violations", 0) == (count - 20 if told == 20 else 0)
    expected = "did you mean learning_rate" if told == 20 else f"has {count} parameters"
    assert expected in problem["violations"][-1]["description"]


def test_no_answer_is_as_long_as_what_was_wrong(web: TestClient) -> None:
    for parameters in ({"x" * 100_000: 1}, {"rank_pattern": {"y" * 100_000: 0}}, {"optimizer": "z" * 100_000}):
        answer = web.post("/jobs", json=BODY | {"training_params": parameters})
        assert answer.status_code == 422
        assert len(answer.content) < 5000


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"preview_prompts": [1] * 8000}, "8000 prompts are given; give 16 at most"),
        ({"preview_prompts": ["a" * 2001]}, "a prompt has 2001 characters; use 2000 at most"),
        ({"rank_pattern": {f"a{number}": "x" for number in range(2000)}}, "2000 patterns are given; give 100 at most"),
        ({"rank_pattern": {"a" * 201: "x"}}, "a pattern has 201 characters; use 200 at most"),
        ({"target_regex": "a" * 1001}, "it has 1001 characters; use 1000 at most"),
        ({"warm_start_uri": "a" * 1001}, "it has 1001 characters; use 1000 at most"),
    ],
)
def test_too_many_or_too_long_is_one_fault_whatever_the_entries_are(
    web: TestClient, parameters: dict[str, Any], told: str
) -> None:
    answer = web.post("/jobs", json=BODY | {"training_params": parameters | {"rank": 0}}).json()
    (name,) = parameters
    assert {one["field"].rpartition(".")[2]: one["description"] for one in answer["violations"]} == {
        name: told,
        "rank": "0 is out of range: 1 to 512",
    }


@pytest.mark.parametrize("caption", ["a" * 32_769, "ü" * 16_385, "\x1b" * 32_769, " " * 32_769])
def test_a_caption_that_is_too_long_is_told_before_anything_else_of_it(web: TestClient, caption: str) -> None:
    sample = BODY["train_data"][0] | {"description": caption}
    answer = web.post("/jobs", json=BODY | {"train_data": [sample]})
    assert (answer.status_code, answer.json()["reason"]) == (422, "CAPTION_TOO_LONG")
    (told,) = answer.json()["violations"]
    assert told["field"] == "body.train_data.0.description"
    assert "use 32768 at most" in told["description"]


def test_the_text_of_a_caption_of_60_mb_is_not_looked_at(web: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[int] = []

    def look(text: str, **_: bool) -> str:
        looked_at.append(len(text))
        return ""

    for name in ("fault_of", "is_blank"):
        monkeypatch.setattr(f"gateway.schemas.{name}", look)
        monkeypatch.setattr(f"fluxsmith._samples.{name}", look)
    sample = BODY["train_data"][0] | {"description": "a" * 60_000_000}
    assert web.post("/jobs", json=BODY | {"train_data": [sample]}).json()["reason"] == "CAPTION_TOO_LONG"
    assert max(looked_at, default=0) < 100


def test_spaces_and_digits_without_end_are_refused_before_they_are_read(web: TestClient) -> None:
    for content in (b" " * 2 * MAX_BYTES_BETWEEN + b"{}", b"1." + b"1" * 2 * MAX_BYTES_BETWEEN):
        answer = web.post("/jobs", content=content, headers=JSON)
        assert (answer.status_code, answer.json()["reason"]) == (413, "TOO_MANY_ENTRIES")


@given(
    st.recursive(
        st.none() | st.integers() | st.text(alphabet='ab"\\,[]{}: \n\u00e9') | st.booleans(),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text(alphabet='a"\\,', max_size=3), inner, max_size=4)
        ),
        max_leaves=12,
    ),
    st.lists(st.integers(1, 5), min_size=1, max_size=30),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_entries_are_counted_however_the_body_is_cut(value: object, cuts: list[int]) -> None:
    content = json.dumps(value, ensure_ascii=False).encode()
    shape = JsonShape(max_entries=10_000)
    rest = content
    for number in range(len(content)):
        size = cuts[number % len(cuts)]
        shape.feed(rest[:size])
        rest = rest[size:]
    assert shape.entries == entries_of(value)


def entries_of(value: object) -> int:
    """Texts and names, the commas between entries, and the brackets that open."""
    match value:
        case str():
            return 1
        case list():
            return 1 + max(0, len(value) - 1) + sum(map(entries_of, value))
        case dict():
            return 1 + max(0, len(value) - 1) + len(value) + sum(map(entries_of, value.values()))
    return 0


@pytest.mark.parametrize(
    ("piece", "error"),
    [(b"[" * 17, TooDeep), (b'"' * 64, TooManyEntries), (b"," * 64, TooManyEntries), (b" " * 2**21, TooMuchBetween)],
)
def test_what_is_no_json_is_bounded_all_the_same(piece: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        JsonShape(max_entries=20).feed(piece)


def test_health_is_told_while_a_large_body_is_read() -> None:
    sample = {"image": "A" * 48_000_000, "description": "a dot"}
    content = json.dumps({"train_data": [sample], "user_id": "u" * 65}).encode()
    waits: list[float] = []
    with serving(GatewaySettings()) as (host, port), ThreadPoolExecutor(1) as other:
        url = f"http://{host}:{port}"
        refused = other.submit(httpx.post, f"{url}/jobs", content=content, headers=JSON, timeout=60)
        while not refused.done():
            asked = monotonic()
            assert httpx.get(f"{url}/healthz", timeout=60).is_success
            waits.append(monotonic() - asked)
    assert refused.result().status_code == 422
    # One that waited for as long as all others together waited for the body.
    assert max(waits) < sum(waits) / 2


def received(connection: socket.socket, *, until: bytes) -> bytes:
    """What comes until that does, or the end: headers and body may come apart."""
    answer = b""
    while until not in answer and (more := connection.recv(4096)):
        answer += more
    return answer


def test_bodies_over_what_all_may_hold_are_sent_away_until_there_is_room() -> None:
    limits = GatewaySettings(max_body_bytes=2000, max_bytes_under_way=2000)
    with serving(limits) as address, begun(address, length=1500, sent=b" " * 1000) as first:
        url = f"http://{address[0]}:{address[1]}/jobs"
        while not (busy := httpx.post(url, content=b" " * 1500, headers=JSON)).is_server_error:
            assert busy.status_code == 400
        assert (busy.status_code, busy.json()["reason"], busy.headers["Retry-After"]) == (503, "GATEWAY_BUSY", "5")
        first.sendall(b" " * 500)
        assert b"BODY_NOT_JSON" in received(first, until=b"BODY_NOT_JSON")
        assert httpx.post(url, content=b" " * 1500, headers=JSON).status_code == 400


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    with serving(GatewaySettings(body_s=0.2)) as address, begun(address, length=100, sent=b"{") as slow:
        answer = received(slow, until=b"BODY_TOO_SLOW")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"BODY_TOO_SLOW" in answer


def test_a_body_that_says_that_it_is_too_large_is_refused_before_it_comes() -> None:
    settings = GatewaySettings(max_body_bytes=2000, body_s=60)
    with serving(settings) as address, begun(address, length=2001, sent=b"") as silent:
        assert received(silent, until=b"BODY_TOO_LARGE").startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("headers", "most_bytes", "status", "reason"),
    [
        (JSON, 2000, 413, "BODY_TOO_LARGE"),
        ({"Content-Type": "text/plain"}, 32 << 20, 415, "CONTENT_TYPE_NOT_JSON"),
        ({"Host": "elsewhere"}, 32 << 20, 421, "HOST_NOT_SERVED"),
    ],
)
@pytest.mark.parametrize("announced", [True, False])
def test_who_sends_a_refused_body_whole_before_reading_reads_why(
    headers: dict[str, str], most_bytes: int, status: int, reason: str, announced: bool
) -> None:
    body = b" " * (16 << 20)  # more than the connection holds
    with serving(GatewaySettings(max_body_bytes=most_bytes)) as address:
        connection = http.client.HTTPConnection(*address, timeout=60)
        pieces = body if announced else iter([body[: 1 << 20]] * 16)
        connection.request("POST", "/jobs", body=pieces, headers={"Connection": "close", **headers})
        answer = connection.getresponse()
        assert (answer.status, json.load(answer)["reason"]) == (status, reason)
        connection.close()


def test_a_short_body_that_nobody_reads_keeps_its_connection() -> None:
    with serving(GatewaySettings()) as address:
        connection = http.client.HTTPConnection(*address, timeout=60)
        sockets = []
        for _ in range(2):
            connection.request("POST", "/nowhere", body=b" " * 1000, headers=JSON)
            with connection.getresponse() as answer:
                assert (answer.status, json.load(answer)["reason"]) == (404, "NOT_FOUND")
            sockets.append(connection.sock)
        connection.close()
    assert sockets[0] is sockets[1] is not None


def test_a_refused_body_is_not_thrown_away_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.unread.MOST_BYTES", 1 << 20)
    with serving(GatewaySettings(max_body_bytes=2000)) as address, begun(address, length=1 << 40, sent=b"") as flood:
        assert received(flood, until=b"BODY_TOO_LARGE").startswith(b"HTTP/1.1 413 ")
        with pytest.raises(ConnectionError):
            flood.sendall(b" " * (64 << 20))


def test_a_refused_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.unread.LONGEST_S", 0.2)
    with serving(GatewaySettings(max_body_bytes=2000)) as address, begun(address, length=2001, sent=b" ") as silent:
        assert b"BODY_TOO_LARGE" in received(silent, until=b"the connection's end")


def test_a_body_that_does_not_say_how_large_it_is_is_counted() -> None:
    pieces = (b'"' + b" " * 998 + b'"' for _ in range(4))
    with TestClient(create_app(GatewaySettings(max_body_bytes=2000))) as web:
        answer = web.post("/jobs", content=pieces, headers=JSON)
    assert "content-length" not in answer.request.headers
    assert (answer.status_code, answer.json()["reason"]) == (413, "BODY_TOO_LARGE")


def test_pictures_are_let_go_while_a_job_is_waited_for(services: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    app, answer, held = create_app(GatewaySettings()), services.answer, {}

    def watching(request: Message) -> Iterable[Message]:
        held[type(request)] = app.state.bytes_under_way.held
        return answer(request)

    monkeypatch.setattr(services, "answer", watching)
    with TestClient(app) as web:
        web.post("/train-lora", json=BODY)
    assert held[pb.CreateTrainingJobRequest] > len(RED_DOT_PNG)
    assert held[pb.WatchTrainingJobRequest] == app.state.bytes_under_way.held == 0


@contextmanager
def begun(address: tuple[str, int], *, length: int, sent: bytes) -> Iterator[socket.socket]:
    """A connection on which a body of that length has been announced, and some of it sent."""
    head = (
        f"POST /jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    )
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(head.encode() + sent)
        yield connection


def test_less_for_all_bodies_than_for_one_is_no_setting() -> None:
    with pytest.raises(ValidationError, match="give at least 134217728, the largest body that is taken"):
        GatewaySettings(max_bytes_under_way=1000)
