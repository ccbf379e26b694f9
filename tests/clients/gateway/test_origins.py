"""Which names the gateway answers to, and whose changes it takes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from gateway.app import create_app
from gateway.browsers import SECURITY_HEADERS
from gateway.settings import GatewaySettings

from tests.clients.recording import Recorder

OWN = "http://127.0.0.1:7400"


@pytest.fixture
def web(services: Recorder) -> Iterator[TestClient]:
    settings = GatewaySettings(public_hosts=("loras.example.com", "other.example.com:8443"))
    with TestClient(create_app(settings), base_url=OWN) as web:
        yield web


def status(web: TestClient, *, method: str = "POST", **headers: str) -> int:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return web.request(method, "/jobs/j/pause" if method == "POST" else "/jobs", headers=named).status_code


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:7400", "LOCALHOST:9000", "[::1]:7400", "127.0.0.1", "loras.example.com", "loras.example.com:443"],
)
def test_every_name_that_leads_to_the_gateway_is_served(web: TestClient, host: str) -> None:
    assert status(web, Host=host) == 200


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "evil.example:7400",
        "localhost.evil.example",
        "127.0.0.1.evil.example:7400",
        "evil.example@127.0.0.1",
        "127.0.0.1:7400/evil.example",
        "127.0.0.1:99999",
        "other.example.com",
        "192.168.0.7:7400",
    ],
)
def test_another_name_is_refused_whatever_is_asked(web: TestClient, services: Recorder, host: str) -> None:
    for path in ("/jobs", "/docs", "/healthz", "/openapi.json", "/nonesuch"):
        answer = web.get(path, headers={"Host": host})
        assert (answer.status_code, answer.json()["reason"]) == (421, "HOST_NOT_SERVED")
    assert "FLUXSMITH_GATEWAY_PUBLIC_HOSTS" in answer.json()["remedy"]
    assert not services.requests


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": OWN},
        {"Origin": OWN, "Sec_Fetch_Site": "same-origin"},
        {"Sec_Fetch_Site": "none"},
        {"Host": "loras.example.com", "Origin": "https://loras.example.com"},
        {"Host": "loras.example.com", "Origin": "https://loras.example.com:443"},
        {"Origin": "https://other.example.com:8443"},
        {"Origin": "http://evil.example", "Authorization": "Bearer s3cret"},
    ],
)
def test_a_change_of_the_gateways_own_page_or_of_no_page_is_made(web: TestClient, headers: dict[str, str]) -> None:
    assert status(web, **headers) == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://127.0.0.1:7401"},
        {"Origin": "http://127.0.0.1"},
        {"Origin": "http://localhost:7400"},
        {"Origin": "https://other.example.com"},
        {"Origin": "http://evil.example", "Authorization": "Basic YWRhOmxvdmU="},
        {"Origin": OWN, "Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Sec_Fetch_Site": "cross-site"},
    ],
)
def test_a_change_of_another_page_is_refused(web: TestClient, services: Recorder, headers: dict[str, str]) -> None:
    assert status(web, **headers) == 403
    assert not services.requests


def test_no_route_that_changes_something_can_be_reached_from_another_page(web: TestClient) -> None:
    operations = [
        (method.upper(), path)
        for path, methods in create_app(GatewaySettings()).openapi()["paths"].items()
        for method in methods
        if method != "get"
    ]
    assert len(operations) == 6
    for method, path in operations:
        answer = web.request(method, path.format(job_id="j"), headers={"Origin": "http://evil.example"})
        assert (answer.status_code, answer.json()["reason"]) == (403, "ORIGIN_REFUSED"), path


def test_no_page_is_ever_allowed_to_ask_across_origins(web: TestClient) -> None:
    asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    for answer in (web.options("/jobs", headers=asked), web.get("/jobs", headers=asked)):
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_every_answer_has_the_security_headers(services: Recorder) -> None:
    async def broken() -> None:
        raise RuntimeError

    app = create_app(GatewaySettings())
    app.add_api_route("/broken", broken)
    calm = TestClient(app, base_url=OWN, raise_server_exceptions=False)
    answers = [calm.get(path) for path in ("/jobs", "/nonesuch", "/broken", "/docs/swagger-ui.css")]
    answers += [calm.get("/jobs", headers={"Host": "evil.example"}), calm.post("/jobs")]
    assert [answer.status_code for answer in answers] == [200, 404, 500, 200, 421, 415]
    expected = {name.lower(): value for name, value in SECURITY_HEADERS.items()}
    assert all(expected.items() <= dict(answer.headers).items() for answer in answers)


def test_two_names_are_refused_though_both_are_served(web: TestClient, services: Recorder) -> None:
    answer = web.get("/jobs", headers=[("Host", "127.0.0.1:7400"), ("Host", "localhost:7400")])
    assert (answer.status_code, answer.json()["reason"]) == (421, "HOST_NOT_SERVED")
    assert not services.requests
