"""Where the services are: argument, then environment, then the embedded stack."""

import pytest
from fluxsmith import Client
from fluxsmith._settings import resolve_settings
from fluxsmith.errors import InvalidRequest

from tests.clients.recording import Recorder


def test_argument_beats_environment_beats_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXSMITH_ENCODER", "encoder.example:1")
    monkeypatch.setenv("FLUXSMITH_TRAINER", "trainer.example:2")
    monkeypatch.delenv("FLUXSMITH_TENANT", raising=False)
    settings = resolve_settings(encoder="10.0.0.1:3", trainer=None, tenant=None)
    assert (settings.encoder, settings.trainer, settings.tenant) == ("10.0.0.1:3", "trainer.example:2", "default")


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:7401", "127.0.0.1", "some host:1", ":", "127.0.0.1:65536", "127.0.0.1:\N{THAI DIGIT ONE}"],
)
def test_address_without_host_and_port_is_refused(address: str) -> None:
    with pytest.raises(InvalidRequest, match="host:port") as caught:
        Client(encoder=address)
    assert caught.value.reason == "ADDRESS_INVALID"


@pytest.mark.parametrize("tenant", ["My Team", "a" * 64, "ünïcode"])
def test_tenant_that_cannot_be_one_is_refused(tenant: str) -> None:
    with pytest.raises(InvalidRequest, match="tenant"):
        Client(tenant=tenant)


def test_a_token_goes_with_every_call(recorder: Recorder) -> None:
    with Client(encoder=recorder.address, trainer=recorder.address, token="s3cret") as client:
        client.capabilities()
    assert [metadata["authorization"] for metadata in recorder.metadata] == ["Bearer s3cret"] * 2


@pytest.mark.parametrize("token", ["", "two words", "ünïcode", "x" * 4097])
def test_a_token_that_cannot_travel_is_refused_and_not_repeated(token: str) -> None:
    with pytest.raises(InvalidRequest, match="visible ASCII") as caught:
        Client(token=token)
    assert caught.value.reason == "TOKEN_INVALID"
    assert not token or token not in str(caught.value)
