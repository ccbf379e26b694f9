"""`fluxsmith datasets`: a list, and the removal of some."""

import grpc
import pytest
from fluxsmith.cli.app import run
from fluxsmith.v1 import encoder_pb2 as encoder

from tests.clients.recording import Recorder, Refused


def test_datasets_alone_lists(services: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["datasets", "--json"]) == 0
    assert services.names() == ["ListDatasets"]
    assert capsys.readouterr().out == "[]\n"


def test_datasets_are_deleted_one_after_the_other(services: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["datasets", "delete", "a", "b"]) == 0
    assert [request.dataset_id for request in services.asked(encoder.DeleteDatasetRequest)] == ["a", "b"]
    assert capsys.readouterr().out == "dataset a is deleted\ndataset b is deleted\n"
    assert "ListDatasets" not in services.names()


def test_dataset_that_may_not_be_deleted_ends_it(
    services: Recorder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(request: object) -> list[object]:
        raise Refused("b is being encoded", code=grpc.StatusCode.FAILED_PRECONDITION, reason="DATASET_ENCODING")

    monkeypatch.setattr(services, "answer", refuse)
    assert run(["datasets", "delete", "b", "c"]) == 2
    assert "b is being encoded" in capsys.readouterr().err
