"""What the gateway passes on to the services, and what it makes of their failures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from math import nan
from typing import Any

import grpc
import pytest
from fastapi.testclient import TestClient
from fluxsmith.v1 import encoder_pb2 as encoder
from fluxsmith.v1 import trainer_pb2 as pb
from gateway.app import create_app
from gateway.examples import RED_DOT_PNG
from gateway.settings import GatewaySettings
from google.protobuf.message import Message

from tests.clients.recording import Recorder, Refused

BODY: dict[str, Any] = {"train_data": [{"image": RED_DOT_PNG, "description": "a dot"}], "user_id": "007"}


@pytest.fixture
def web(services: Recorder) -> Iterator[TestClient]:
    with TestClient(create_app(GatewaySettings()), raise_server_exceptions=False) as web:
        yield web


def test_tenant_and_token_reach_both_services(web: TestClient, services: Recorder) -> None:
    headers = {"Authorization": "Bearer s3cret", "Fluxsmith-Tenant": "acme"}
    assert web.post("/jobs", json=BODY, headers=headers).status_code == 202
    told = {(metadata["authorization"], metadata["fluxsmith-tenant"]) for metadata in services.metadata}
    assert told == {("Bearer s3cret", "acme")}


@pytest.mark.parametrize("given", ["Basic YWRhOmxvdmU=", "s3cret", "Bearer", "Bearer two words"])
def test_what_is_no_bearer_token_is_refused_and_not_dropped(web: TestClient, services: Recorder, given: str) -> None:
    answer = web.get("/jobs/j", headers={"Authorization": given})
    assert (answer.status_code, answer.json()["reason"]) == (401, "TOKEN_INVALID")
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert not services.metadata


@pytest.mark.parametrize("name", ["Fluxsmith-Tenant", "authorization"])
def test_two_tenants_or_tokens_are_refused_by_every_route(web: TestClient, services: Recorder, name: str) -> None:
    described = create_app(GatewaySettings()).openapi()["paths"]
    routes = [(method, path.format(job_id="j")) for path, methods in described.items() for method in methods]
    for method, path in [*routes, ("get", "/docs"), ("get", "/openapi.json"), ("get", "/nonesuch")]:
        answer = web.request(method, path, headers=[(name, "Bearer mine"), (name.lower(), "Bearer mine")])
        assert (answer.status_code, answer.json()["reason"]) == (400, "METADATA_REPEATED"), path
        assert "Content-Security-Policy" in answer.headers
    assert len(routes) > 9
    assert not services.requests


def test_readiness_is_asked_with_the_token(web: TestClient, services: Recorder) -> None:
    assert web.get("/readyz", headers={"Authorization": "Bearer s3cret"}).status_code == 200
    assert {metadata["authorization"] for metadata in services.metadata} == {"Bearer s3cret"}


def test_without_a_token_none_is_sent(web: TestClient, services: Recorder) -> None:
    web.post("/jobs", json=BODY)
    assert not any("authorization" in metadata for metadata in services.metadata)


def test_a_users_identifier_stays_as_it_is(web: TestClient, services: Recorder) -> None:
    for user_id in ("007", 7):
        web.post("/jobs", json=BODY | {"user_id": user_id})
    assert [request.user_id for request in services.queued()] == ["007", "7"]


def test_trigger_word_goes_to_the_encoder_and_makes_another_wish(
    web: TestClient, services: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, made = services.answer, encoder.Dataset(dataset_id="d", state=encoder.DATASET_STATE_OPEN)

    def opening(request: Message) -> Iterable[Message]:
        if isinstance(request, encoder.CreateDatasetRequest):
            services.requests.append(request)
            return [encoder.CreateDatasetResponse(dataset=made)]
        return answer(request)

    monkeypatch.setattr(services, "answer", opening)
    for trigger_word in ("", "ohwx"):
        assert web.post("/jobs", json=BODY | {"trigger_word": trigger_word}).status_code == 202
    asked = services.asked(encoder.EncodeDatasetRequest)
    assert [request.options.trigger_word for request in asked] == ["", "ohwx"]
    assert len({request.display_name for request in services.asked(encoder.CreateDatasetRequest)}) == 2


def test_an_idempotency_key_is_the_request_id_of_dataset_and_job(web: TestClient, services: Recorder) -> None:
    web.post("/jobs", json=BODY, headers={"Idempotency-Key": "wish"})
    named = [getattr(request, "request_id", "") for request in services.requests]
    assert named.count("wish") == 2


def test_a_trigger_word_is_the_encodings(web: TestClient, services: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = services.answer

    def beginning(request: Message) -> Iterable[Message]:
        if not isinstance(request, encoder.CreateDatasetRequest):
            return answer(request)
        return [
            encoder.CreateDatasetResponse(dataset=encoder.Dataset(dataset_id="d", state=encoder.DATASET_STATE_OPEN))
        ]

    monkeypatch.setattr(services, "answer", beginning)
    params = {"preview_prompts": ["[trigger] in the rain"]}
    told = web.post("/jobs", json=BODY | {"training_params": params, "trigger_word": "sks"})
    assert told.status_code == 202, told.text
    (encoded,) = services.asked(encoder.EncodeDatasetRequest)
    assert encoded.options.trigger_word == "sks"
    # The services replace it themselves, where they read captions and prompts.
    assert list(services.queued()[0].config.preview_prompts) == ["[trigger] in the rain"]


def test_another_trigger_word_is_another_wish(web: TestClient, services: Recorder) -> None:
    for word in ("", "sks", "ohwx"):
        web.post("/jobs", json=BODY | {"trigger_word": word}, headers={"Idempotency-Key": "wish"})
    assert len({request.display_name for request in services.asked(encoder.CreateDatasetRequest)}) == 3


DELETED = Refused("gone", code=grpc.StatusCode.FAILED_PRECONDITION, reason="JOB_DELETED")
AWAY = Refused("away", code=grpc.StatusCode.PERMISSION_DENIED)


@pytest.mark.parametrize(
    ("found", "refusal", "kept"),
    [
        ("OPEN", DELETED, False),
        ("OPEN", Refused("wrong"), False),
        ("OPEN", AWAY, True),  # sent again, the request goes on with it
        ("READY", DELETED, True),
        ("READY", Refused("wrong"), True),
        ("ENCODING", Refused("wrong"), True),
    ],
)
def test_a_refused_request_with_a_key_removes_only_a_dataset_that_it_began(
    web: TestClient, services: Recorder, monkeypatch: pytest.MonkeyPatch, found: str, refusal: Refused, kept: bool
) -> None:
    answer, state = services.answer, encoder.DatasetState.Value(f"DATASET_STATE_{found}")

    def refusing(request: Message) -> Iterable[Message]:
        if isinstance(request, encoder.CreateDatasetRequest):
            return [encoder.CreateDatasetResponse(dataset=encoder.Dataset(dataset_id="d", state=state))]
        if isinstance(request, pb.CreateTrainingJobRequest) and not request.validate_only:
            raise refusal
        return answer(request)

    monkeypatch.setattr(services, "answer", refusing)
    assert web.post("/jobs", json=BODY, headers={"Idempotency-Key": "wish"}).is_client_error
    assert bool(services.asked(encoder.DeleteDatasetRequest)) != kept


@pytest.mark.parametrize(
    ("name", "removed"),
    [
        ("train-lora 0123456789abcdef", True),
        ("train-lora-cats", False),
        ("train-lora", False),
        ("train-lora 0123456789abcdef cats", False),
        ("train-lora 0123456789ABCDEF", False),
    ],
)
def test_with_a_job_goes_only_a_dataset_that_the_gateway_named(
    web: TestClient, services: Recorder, name: str, removed: bool
) -> None:
    services.job.dataset_id, services.encoded.display_name = "d", name
    assert web.delete("/jobs/j").status_code == 204
    assert bool(services.asked(encoder.DeleteDatasetRequest)) == removed


def test_an_empty_user_is_not_everybody(web: TestClient, services: Recorder) -> None:
    refused = web.get("/jobs", params={"user_id": ""})
    assert (refused.status_code, refused.json()["violations"][0]["field"]) == (422, "query.user_id")
    assert not services.requests


@pytest.mark.parametrize(
    ("fault", "status"),
    [(pb.JOB_FAILURE_FAULT_USER, 422), (pb.JOB_FAILURE_FAULT_RESOURCE, 422), (pb.JOB_FAILURE_FAULT_SYSTEM, 500)],
)
def test_a_failed_job_is_a_problem_by_whose_fault_it_was(
    web: TestClient, services: Recorder, fault: pb.JobFailureFault.ValueType, status: int
) -> None:
    services.job.state = pb.TRAINING_JOB_STATE_FAILED
    services.job.failure.CopyFrom(pb.JobFailure(fault=fault, reason="WHY", message="It broke.", remedy="Mend it."))
    told = web.post("/train-lora", json=BODY)
    assert told.status_code == told.json()["status"] == status
    assert (told.json()["reason"], told.json()["remedy"], told.json()["job_id"]) == ("WHY", "Mend it.", "j")


def test_events_have_the_names_of_the_contract_and_are_json_whatever_the_loss(
    web: TestClient, services: Recorder
) -> None:
    step = pb.StepMetrics(step=1, loss=nan, skipped=True)
    services.events = [
        pb.TrainingEvent(sequence=1, steps_completed=pb.StepsCompleted(steps=[step])),
        pb.TrainingEvent(sequence=2, warning=pb.JobWarning(reason="WHY", message="Worth knowing.")),
    ]
    services.job.last_sequence = 2
    services.events[0].time.FromSeconds(0)
    lines = web.get("/jobs/j/events").text.splitlines()
    assert [line for line in lines if line.startswith("event: ")] == ["event: steps_completed", "event: warning"]
    told = json.loads(next(line for line in lines if line.startswith("data: ")).removeprefix("data: "))
    assert (told["steps"][0]["loss"], told["time"]) == (None, "1970-01-01T00:00:00Z")


def test_services_that_are_away_are_a_problem_that_may_pass(web: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXSMITH_TRAINER", "127.0.0.1:1")
    answer = web.get("/readyz")
    assert (answer.status_code, answer.json()["reason"]) == (503, "SERVICE_UNREACHABLE")
