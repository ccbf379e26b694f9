"""Whatever fits the gateway's own description, and much that does not, is answered without a fault of the server's."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from gateway.app import create_app
from gateway.settings import GatewaySettings
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error

from services.stack import Stack
from tests.integration.conftest import client_of

Case = schemathesis.Case[Any]

BOUNDED = settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
# Its body is that of POST /jobs, of which every field is tried, and each that is right is trained to its end.
SHORTER = {"include-path": "/train-lora", "phases": {"coverage": {"enabled": False}}}
api = schemathesis.openapi.from_dict(
    create_app(GatewaySettings()).openapi(), config=schemathesis.Config.from_dict({"operations": [SHORTER]})
)


@pytest.fixture(scope="module")
def ended(ready: str, stack: Stack) -> str:
    """A job that has ended."""
    with client_of(stack) as client:
        return client.train(ready, rank=2, steps=1).wait().id


@api.parametrize()
@BOUNDED
def test_no_request_is_answered_with_a_server_error(case: Case, gateway: str) -> None:
    case.call_and_validate(base_url=gateway, checks=[not_a_server_error], timeout=60)


@api.include(path_regex="job_id", method=["GET", "POST"]).parametrize()
@BOUNDED
def test_no_request_about_a_job_is_answered_with_a_server_error(case: Case, gateway: str, ended: str) -> None:
    case.path_parameters["job_id"] = ended
    case.call_and_validate(base_url=gateway, checks=[not_a_server_error], timeout=60)
