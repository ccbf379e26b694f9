"""The gateway as a product's backend meets it: over HTTP, in front of live services."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import fluxsmith
import httpx
import pytest
from fluxsmith import JobState

from services.stack import Stack
from tests.integration.conftest import client_of
from tests.integration.gateway.conftest import MAX_BODY_BYTES, MAX_SAMPLES, body


def told(stream: httpx.Response) -> list[dict[str, str]]:
    """The events of a stream that has ended, as fields by name; without comments."""
    blocks = stream.text.replace("\r\n", "\n").strip().split("\n\n")
    return [
        dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        for block in blocks
        if not block.startswith(":")
    ]


def test_train_lora_answers_with_the_models_url(web: httpx.Client, client: fluxsmith.Client) -> None:
    answer = web.post("/train-lora", json=body(alpha=4, learning_rate=5e-5, epochs=2, batch_size=1))
    assert answer.status_code == 200, answer.text
    job = client.job(answer.json()["job_id"]).snapshot
    assert job.result
    assert answer.json()["model_url"] == job.result.lora_uri
    assert [warning["reason"] for warning in answer.json()["warnings"]] == ["SHORT_RUN"]
    assert (job.user_id, job.config.rank, job.config.learning_rate, job.config.epochs) == ("123", 4, 5e-5, 2)


def test_a_job_that_nobody_waits_for_is_watched_and_fetched(web: httpx.Client) -> None:
    accepted = web.post("/jobs", json=body(steps=3))
    assert accepted.status_code == 202
    location = accepted.headers["Location"]
    events = told(web.get(f"{location}/events"))
    assert [int(event["id"]) for event in events] == list(range(1, len(events) + 1))
    assert json.loads(events[-1]["data"])["state"] == "SUCCEEDED"
    job = web.get(location).json()
    assert (job["state"], job["step"], job["failure"]) == ("SUCCEEDED", 3, None)
    link = web.get(f"{location}/download").json()
    file = httpx.get(link["url"]).content
    assert (len(file), hashlib.sha256(file).hexdigest()) == (link["size_bytes"], link["content_digest"])
    missing = web.get(f"{location}/download?artifact_name=nonesuch")
    assert (missing.status_code, missing.json()["reason"]) == (404, "ARTIFACT_NOT_FOUND")


def test_a_broken_stream_goes_on_without_loss_or_repetition(web: httpx.Client) -> None:
    location = web.post("/jobs", json=body(steps=3)).headers["Location"]
    with web.stream("GET", f"{location}/events") as stream:
        first = next(line for line in stream.iter_lines() if line.startswith("id: "))
    rest = told(web.get(f"{location}/events", headers={"Last-Event-ID": first.removeprefix("id: ")}))
    assert int(rest[0]["id"]) == 2
    again = web.get(f"{location}/events", headers={"Last-Event-ID": rest[-1]["id"]})
    assert again.status_code == 204  # which tells a browser to stop


def test_a_job_is_paused_resumed_cancelled_and_deleted(web: httpx.Client, client: fluxsmith.Client) -> None:
    location = web.post("/jobs", json=body(steps=5000)).headers["Location"]
    job = client.job(location.removeprefix("/jobs/"))
    assert web.post(f"{location}/pause").json()["state"] in {"PAUSING", "PAUSED"}
    assert web.delete(location).json()["reason"] == "JOB_NOT_ENDED"
    assert web.post(f"{location}/resume").json()["state"] in {"QUEUED", "RUNNING"}
    assert web.post(f"{location}/cancel").json()["state"] in {"CANCELLING", "CANCELLED"}
    with pytest.raises(fluxsmith.errors.JobCancelled) as caught:
        job.result()
    assert caught.value.reason == "JOB_CANCELLED"
    assert web.delete(location).status_code == 204
    with pytest.raises(fluxsmith.errors.NotFound):
        client.datasets.get(job.snapshot.dataset_id)


def test_the_same_idempotency_key_finds_the_same_job(web: httpx.Client) -> None:
    headers = {"Idempotency-Key": "wish-1"}
    first, second = (web.post("/jobs", json=body(count=2, steps=2), headers=headers).json() for _ in range(2))
    assert first["job_id"] == second["job_id"]
    for other in (body(count=3, steps=2), body(count=2, steps=3)):
        refused = web.post("/jobs", json=other, headers=headers)
        assert (refused.status_code, refused.json()["reason"]) == (409, "REQUEST_ID_REUSED")
        assert "Idempotency-Key" in refused.json()["detail"]


def test_a_key_whose_job_was_deleted_leaves_no_pictures(web: httpx.Client, client: fluxsmith.Client) -> None:
    wish, headers = body(count=2, steps=1, user_id="eve"), {"Idempotency-Key": "wish-4"}
    job_id = web.post("/train-lora", json=wish, headers=headers).json()["job_id"]
    dataset_id = client.job(job_id).snapshot.dataset_id
    assert web.delete(f"/jobs/{job_id}").status_code == 204
    for path in ("/jobs", "/train-lora"):
        refused = web.post(path, json=wish, headers=headers)
        assert (refused.status_code, refused.json()["reason"]) == (409, "JOB_DELETED")
        assert refused.json()["detail"] == "the Idempotency-Key 'wish-4' made a job that has been deleted."
        with pytest.raises(fluxsmith.errors.NotFound):
            client.datasets.get(dataset_id)


def test_a_wrong_request_with_a_used_key_leaves_its_pictures(web: httpx.Client, client: fluxsmith.Client) -> None:
    headers = {"Idempotency-Key": "wish-5"}
    job = web.post("/train-lora", json=body(steps=1, user_id="u" * 64), headers=headers)
    assert web.post("/jobs", json=body(steps=1, user_id="u" * 65), headers=headers).status_code == 422
    assert web.post("/jobs", json=body(steps=2), headers=headers).status_code == 409
    dataset_id = client.job(job.json()["job_id"]).snapshot.dataset_id
    assert client.datasets.get(dataset_id).state is fluxsmith.DatasetState.READY


def test_requests_with_one_key_at_the_same_time_find_one_job(web: httpx.Client) -> None:
    def ask(_: int) -> tuple[int, str]:
        answer = web.post("/jobs", json=body(count=12, steps=2), headers={"Idempotency-Key": "wish-3"})
        return answer.status_code, answer.json().get("job_id", answer.text)

    with ThreadPoolExecutor(6) as callers:
        assert [status for status, _ in set(callers.map(ask, range(6)))] == [202]


def test_a_caller_that_hangs_up_loses_nothing(web: httpx.Client) -> None:
    headers = {"Idempotency-Key": "wish-2"}
    with pytest.raises(httpx.ReadTimeout):
        web.post("/train-lora", json=body(count=4, steps=40), headers=headers, timeout=httpx.Timeout(10, read=1))
    again = web.post("/train-lora", json=body(count=4, steps=40), headers=headers)
    assert again.status_code == 200
    assert web.get(f"/jobs/{again.json()['job_id']}").json()["state"] == "SUCCEEDED"


def test_captions_have_the_trigger_word_where_its_place_is(web: httpx.Client, client: fluxsmith.Client) -> None:
    sample = {**body()["train_data"][0], "description": "[trigger] on\u00a0white"}
    for word, warned in (("", True), ("sks", False)):
        wish = body(steps=1) | {"train_data": [sample], "trigger_word": word}
        job = client.job(web.post("/jobs", json=wish).json()["job_id"])
        dataset = client.datasets.get(job.snapshot.dataset_id)
        assert dataset.options
        assert dataset.options.trigger_word == word
        assert ("TRIGGER_MISSING" in {problem.reason for problem in dataset.problems}) == warned


def test_tenants_are_apart(web: httpx.Client, stack: Stack) -> None:
    headers = {"Fluxsmith-Tenant": "acme", "Authorization": "Bearer secret"}
    job = web.post("/jobs", json=body(user_id="ada", steps=1), headers=headers).json()
    assert web.get(f"/jobs/{job['job_id']}").status_code == 404
    assert [one["job_id"] for one in web.get("/jobs?user_id=ada", headers=headers).json()["jobs"]] == [job["job_id"]]
    with client_of(stack, "acme") as client:
        assert client.job(job["job_id"]).wait().state is JobState.SUCCEEDED


@pytest.mark.parametrize(
    ("wrong", "status", "reason"),
    [
        (body() | {"train_data": []}, 422, "REQUEST_INVALID"),
        (body() | {"train_data": [{"image": "!", "description": "a"}]}, 422, "REQUEST_INVALID"),
        (body() | {"train_data": [{"image": "bm8gaW1hZ2U=", "description": "a"}]}, 422, "DATASET_FAILED"),
        (body() | {"train_data": [{**body()["train_data"][0], "description": " "}]}, 422, "CAPTION_EMPTY"),
        (body(rank=1000), 422, "REQUEST_INVALID"),
        (body(user_id="half \ud83d"), 422, "REQUEST_INVALID"),
        (body(user_id=True), 422, "REQUEST_INVALID"),
        (body() | {"train_data": [{**body()["train_data"][0], "description": "half \ud83d"}]}, 422, "REQUEST_INVALID"),
        (body(optimizer="PRODIGY", lora_plus_ratio=16), 422, "CONFIG_INVALID"),
        (body(count=MAX_SAMPLES + 1), 413, "TOO_MANY_SAMPLES"),
    ],
)
def test_a_wrong_request_is_told_with_reason(web: httpx.Client, wrong: object, status: int, reason: str) -> None:
    # Written by itself: httpx could not send half a character.
    answer = web.post("/train-lora", content=json.dumps(wrong), headers={"Content-Type": "application/json"})
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, answer.json()["reason"]) == (status, reason), answer.text
    assert answer.json()["remedy"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_refused(web: httpx.Client, chunked: bool) -> None:
    content = b" " * (MAX_BODY_BYTES + 1)
    sent = iter([content]) if chunked else content
    answer = web.post("/jobs", content=sent, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["reason"]) == (413, "BODY_TOO_LARGE")


def test_a_job_that_is_not_there_is_a_problem_with_a_remedy(web: httpx.Client) -> None:
    answer = web.get("/jobs/nonesuch/events")
    assert (answer.status_code, answer.json()["reason"]) == (404, "JOB_NOT_FOUND")
    assert answer.json()["remedy"]


def test_health_and_readiness(web: httpx.Client) -> None:
    assert web.get("/healthz").json() == web.get("/readyz").json() == {"status": "ok"}


def test_the_example_of_the_description_can_be_sent(web: httpx.Client) -> None:
    description = web.get("/openapi.json").json()
    example = description["components"]["schemas"]["TrainRequest"]["example"]
    assert web.post("/train-lora", json=example).status_code == 200


def test_the_description_says_what_each_parameter_means(web: httpx.Client) -> None:
    parameters = web.get("/openapi.json").json()["components"]["schemas"]["TrainConfig"]["properties"]
    assert set(parameters) == {field.name for field in dataclasses.fields(fluxsmith.TrainConfig)}
    assert all("description" in parameter for parameter in parameters.values())
    assert parameters["rank"]["description"] == "Rank of the LoRA matrices. 1 to 512; default 16."
