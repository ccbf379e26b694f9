"""Callers of the gateway learn which service is away, and not where it is."""

import logging

import pytest
from fluxsmith import errors
from gateway.problems import problem_of


@pytest.mark.parametrize("kind", ["cannot be reached.", "did not answer in time.", "failed: it broke"])
def test_address_of_a_service_stays_in_the_log(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        told = problem_of(errors.Unavailable(f"the encoder at 10.1.2.3:7401 {kind}", reason="SERVICE_UNREACHABLE"))
    assert told.detail == f"the encoder {kind}"
    assert caplog.messages == [f"the encoder at 10.1.2.3:7401 {kind}"]
