"""What a newcomer gets wrong first, and what the gateway says to it, before any service is asked."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from gateway.app import create_app
from gateway.examples import RED_DOT_PNG
from gateway.schemas import MAX_USER_ID, TrainRequest
from gateway.settings import GatewaySettings
from pydantic import ValidationError

from services.common.errors import InvalidInput
from services.common.fields import check_length
from services.trainer.database import tables

BODY: dict[str, Any] = {"train_data": [{"image": RED_DOT_PNG, "description": "a dot"}], "user_id": 7}


@pytest.fixture
def web() -> Iterator[TestClient]:
    with TestClient(create_app(GatewaySettings())) as web:
        yield web


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "application/x-www-form-urlencoded"}])
def test_a_body_that_is_not_said_to_be_json_is_told_which_header_to_send(
    web: TestClient, headers: dict[str, str]
) -> None:
    answer = web.post("/jobs", content=b"{}", headers=headers)
    assert answer.status_code == 415
    assert answer.json()["remedy"] == "Send the header `Content-Type: application/json`."


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (b'{"a": 1,\n "b" 2}', "line 2 column 6"),
        (b'{"\xff": 1}', "no text in UTF-8"),
        (b"[" * 200_000, "nested too deeply"),
        (b"9" * 5000, "a number of too many digits"),
    ],
)
def test_a_body_that_is_no_json_is_told_why(web: TestClient, content: bytes, detail: str) -> None:
    answer = web.post("/jobs", content=content, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["reason"]) == (400, "BODY_NOT_JSON")
    assert detail in answer.json()["detail"]


def test_every_field_at_fault_is_named_at_once(web: TestClient) -> None:
    wrong = {"rank": 0, "rnak": 8, "steps": "many", "preview_prompts": "a dog"}
    answer = web.post("/jobs", json=BODY | {"training_params": wrong})
    named = {one["field"].removeprefix("body.training_params."): one for one in answer.json()["violations"]}
    assert set(named) == set(wrong)
    assert named["rank"]["description"] == "0 is out of range: 1 to 512"
    assert named["rnak"]["description"] == "there is no such parameter (did you mean rank?)"


@pytest.mark.parametrize("parameters", ['{"\\ud83d": 1}', "[]", "1", '{"rank": {}}', '{"rank_pattern": {"a": "b"}}'])
def test_parameters_that_are_none_are_the_callers_fault(web: TestClient, parameters: str) -> None:
    content = json.dumps(BODY)[:-1] + f', "training_params": {parameters}}}'
    answer = web.post("/jobs", content=content, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["reason"]) == (422, "REQUEST_INVALID")


def test_fields_that_the_services_refuse_have_the_names_of_the_request(web: TestClient) -> None:
    content = json.dumps(BODY | {"training_params": {"target_regex": "half \ud83d"}})
    answer = web.post("/jobs", content=content, headers={"Content-Type": "application/json"})
    assert [one["field"] for one in answer.json()["violations"]] == ["body.training_params.target_regex"]


@pytest.mark.parametrize(
    "user_id", ["", "u", "u" * MAX_USER_ID, "u" * (MAX_USER_ID + 1), "a\nb", 10**MAX_USER_ID - 1, 10**MAX_USER_ID]
)
def test_users_are_taken_as_the_trainer_takes_them(user_id: str | int) -> None:
    def taken(check: Callable[[], object], refusal: type[Exception]) -> bool:
        try:
            check()
        except refusal:
            return False
        return True

    assert str(tables.jobs.c.user_id.type) == f"VARCHAR({MAX_USER_ID})"
    expected = taken(lambda: check_length("user_id", str(user_id), MAX_USER_ID), InvalidInput)
    assert taken(lambda: TrainRequest.model_validate(BODY | {"user_id": user_id}), ValidationError) == expected


def test_a_user_that_is_too_long_is_told_how_long_it_may_be(web: TestClient) -> None:
    (violation,) = web.post("/jobs", json=BODY | {"user_id": "u" * 65}).json()["violations"]
    assert violation == {"field": "body.user_id", "description": "has 65 characters: use at most 64"}


PEOPLE_WRITE = ["no\u00a0break", "\u5168\u89d2\u3000\u7a7a\u767d", "\U0001f469\u200d\U0001f3a8", "\u200fright to left"]


@pytest.mark.parametrize("text", PEOPLE_WRITE)
def test_text_that_people_write_is_taken(text: str) -> None:
    sample = {"image": RED_DOT_PNG, "description": f"{text}\n\tand a second line"}
    taken = TrainRequest.model_validate(BODY | {"train_data": [sample], "user_id": text, "trigger_word": text})
    assert (taken.user_id, taken.trigger_word, taken.train_data[0].description) == (text, text, sample["description"])


@pytest.mark.parametrize(
    ("wrong", "field", "description"),
    [
        ({"user_id": "a\x1b[2J"}, "user_id", "has the control character U+001B at place 2"),
        ({"user_id": "a\nb"}, "user_id", "has the control character U+000A at place 2"),
        (
            {"user_id": "\u200b\u2060"},
            "user_id",
            "has nothing that can be seen: leave it out, or give what can be read",
        ),
        (
            {"trigger_word": "\u3164"},
            "trigger_word",
            "has nothing that can be seen: leave it out, or give what can be read",
        ),
        ({"trigger_word": "sks\x00"}, "trigger_word", "has the control character U+0000 at place 4"),
        ({"trigger_word": "\u00a0sks"}, "trigger_word", "begins or ends with a space: leave the space out"),
        ({"trigger_word": "s" * 65}, "trigger_word", "has 65 characters: use at most 64"),
    ],
)
def test_text_that_cannot_be_is_told_with_its_place(
    web: TestClient, wrong: dict[str, str], field: str, description: str
) -> None:
    (violation,) = web.post("/jobs", json=BODY | wrong).json()["violations"]
    assert violation == {"field": f"body.{field}", "description": description}


def test_a_caption_that_cannot_be_is_told_with_its_place(web: TestClient) -> None:
    samples = [{"image": RED_DOT_PNG, "description": text} for text in ("a dot\x00", "half \ud83d")]
    content = json.dumps(BODY | {"train_data": samples})
    answer = web.post("/jobs", content=content, headers={"Content-Type": "application/json"})
    assert [one["description"] for one in answer.json()["violations"]] == [
        "has the control character U+0000 at place 6",
        "has half a character (the lone surrogate U+D83D) at place 6",
    ]


def test_base64_is_read_whole_or_not_at_all(web: TestClient) -> None:
    picture = bytes(range(256)) * 4096
    given = base64.encodebytes(picture).decode()
    (sample,) = TrainRequest.model_validate(
        BODY | {"train_data": [{"image": f"data:image/png;base64,{given}", "description": "a dot"}]}
    ).train_data
    assert sample.image == picture
    ended = "A" * (256 * 1024 - 1) + "=" + "AAAA"
    answer = web.post("/jobs", json=BODY | {"train_data": [{"image": ended, "description": "a dot"}]})
    assert "is not base64: it goes on after its end" in answer.text


def test_faults_are_told_without_the_words_of_the_validator(web: TestClient) -> None:
    answer = web.post("/jobs", json=BODY | {"train_data": [{"image": "!", "description": "a dot"}]})
    (violation,) = answer.json()["violations"]
    assert violation["description"] == "is not base64: Only base64 data is allowed"


def test_problems_are_described_under_their_own_media_type_alone() -> None:
    operations = [one for path in create_app(GatewaySettings()).openapi()["paths"].values() for one in path.values()]
    contents = [answer.get("content", {}) for one in operations for answer in one["responses"].values()]
    kinds = {kind for content in contents for kind, schema in content.items() if "Problem" in str(schema)}
    assert kinds == {"application/problem+json"}


@pytest.mark.parametrize(("variable", "value"), [("FLUXSMITH_GATEWAY_ADDRESS", "foo"), ("FLUXSMITH_ENCODER", "foo")])
def test_a_wrong_setting_is_one_line_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    ended = start()
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert "such as 127.0.0.1:" in ended.stderr


def test_a_port_that_is_taken_is_one_line_that_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = start("--address", f"127.0.0.1:{taken.getsockname()[1]}")
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1), ended.stderr
    assert "already in use. Name another with --address." in ended.stderr


def test_help_names_the_option() -> None:
    assert "--address HOST:PORT" in start("--help").stdout


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gateway", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
