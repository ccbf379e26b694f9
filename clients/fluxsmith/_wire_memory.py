"""Estimates of memory: from messages on the wire to this library's own types and back."""

from fluxsmith._names import read_choice
from fluxsmith.errors import FieldViolation, InvalidRequest
from fluxsmith.memory import EstimatedModel, MemoryEstimate, MemoryMeasurement, MemoryPart, MemorySaving
from fluxsmith.v1 import trainer_pb2

_MODELS = {
    EstimatedModel.LOADED: trainer_pb2.ESTIMATED_MODEL_UNSPECIFIED,
    EstimatedModel.FLUX_1_DEV: trainer_pb2.ESTIMATED_MODEL_FLUX_1_DEV,
}


def write_model(model: EstimatedModel | str) -> trainer_pb2.EstimatedModel.ValueType:
    """Translate the model, which may be text in any case; raises `InvalidRequest` naming the choices."""
    try:
        return _MODELS[read_choice(EstimatedModel, str(model))]
    except ValueError as error:
        violation = FieldViolation(field="model", description=str(error))
        message, remedy = f"the model {error}.", "Use one of these."
        raise InvalidRequest(message, reason="FIELD_INVALID", remedy=remedy, violations=(violation,)) from error


def read_estimate(message: trainer_pb2.EstimateMemoryResponse) -> MemoryEstimate:
    """Translate an estimate."""
    return MemoryEstimate(
        peak_bytes=message.peak_bytes,
        parts=tuple(
            MemoryPart(name=part.name, bytes=part.bytes, explanation=part.explanation) for part in message.parts
        ),
        recommended_bytes=message.recommended_bytes,
        measurements=tuple(map(_read_measurement, message.measurements)),
        device_bytes=message.device_bytes,
        savings=tuple(MemorySaving(change=saving.change, bytes=saving.bytes) for saving in message.savings),
    )


def _read_measurement(message: trainer_pb2.MemoryMeasurement) -> MemoryMeasurement:
    return MemoryMeasurement(
        device=message.device,
        date=message.date,
        configuration=message.configuration,
        allocated_bytes=message.allocated_bytes,
        reserved_bytes=message.reserved_bytes,
    )
