"""Estimates of memory: what is asked and told, field by field."""

import pytest
from fluxsmith import Client, EstimatedModel, MemoryMeasurement, MemoryPart, MemorySaving, TrainConfig, errors
from fluxsmith.v1 import trainer_pb2

from tests.clients.recording import Recorder


def test_question_holds_the_configuration_the_size_and_the_model(client: Client, recorder: Recorder) -> None:
    client.estimate_memory(TrainConfig(rank=32), resolution_px=512, model=EstimatedModel.FLUX_1_DEV)
    client.estimate_memory(TrainConfig())
    assert recorder.asked(trainer_pb2.EstimateMemoryRequest) == [
        trainer_pb2.EstimateMemoryRequest(
            config=trainer_pb2.TrainConfig(rank=32),
            resolution_px=512,
            model=trainer_pb2.ESTIMATED_MODEL_FLUX_1_DEV,
        ),
        trainer_pb2.EstimateMemoryRequest(config=trainer_pb2.TrainConfig(), resolution_px=1024),
    ]


def test_answer_has_every_field(client: Client, recorder: Recorder) -> None:
    measured = {"device": "NVIDIA H100", "date": "2026-01-31", "configuration": "rank 16"}
    recorder.estimate = trainer_pb2.EstimateMemoryResponse(
        peak_bytes=3,
        parts=[trainer_pb2.MemoryPart(name="weights", bytes=2, explanation="all of them")],
        recommended_bytes=4,
        measurements=[trainer_pb2.MemoryMeasurement(**measured, allocated_bytes=5, reserved_bytes=6)],
        device_bytes=7,
        savings=[trainer_pb2.MemorySaving(change="set rank to 8", bytes=1)],
    )
    told = client.estimate_memory(TrainConfig())
    assert (told.peak_bytes, told.recommended_bytes, told.device_bytes) == (3, 4, 7)
    assert told.parts == (MemoryPart(name="weights", bytes=2, explanation="all of them"),)
    assert told.measurements == (MemoryMeasurement(**measured, allocated_bytes=5, reserved_bytes=6),)
    assert told.savings == (MemorySaving(change="set rank to 8", bytes=1),)


@pytest.mark.parametrize("given", [{"resolution_px": 2**40}, {"resolution_px": "big"}, {"model": "FLUX_2"}])
def test_what_cannot_be_asked_is_refused_here(client: Client, recorder: Recorder, given: dict[str, object]) -> None:
    with pytest.raises(errors.InvalidRequest) as caught:
        client.estimate_memory(TrainConfig(), **given)  # type: ignore[arg-type]
    assert caught.value.reason == "FIELD_INVALID"
    assert not recorder.requests
