"""Configurations of jobs: from messages on the wire to this library's own type and back."""

import dataclasses
from enum import StrEnum
from typing import Any

from google.protobuf.descriptor import EnumDescriptor

from fluxsmith._ranges import excesses, faults
from fluxsmith._wire import WireEnum, write_fields
from fluxsmith.choices import (
    AdapterType,
    FileDtype,
    GuidanceMode,
    HuberSchedule,
    InitWeights,
    LearningRateSchedule,
    LossFunction,
    LossWeighting,
    Optimizer,
    SigmaSampling,
    TargetPreset,
)
from fluxsmith.errors import FieldViolation, InvalidRequest
from fluxsmith.training import TrainConfig
from fluxsmith.v1 import trainer_pb2


def write_config(config: TrainConfig) -> trainer_pb2.TrainConfig:
    """Translate a configuration, leaving unset what is None.

    Raises `InvalidRequest` if a value cannot travel at all, then with what else is wrong as far as this library knows.
    A configuration that can travel is the trainer's to check.
    """
    message = trainer_pb2.TrainConfig()
    violations = write_fields(vars(config), message, enums=_ENUMS, path="config")
    if violations or (config.steps is not None and config.epochs is not None) or excesses(vars(config)):
        untravelled = {violation.field.removeprefix("config."): violation.description for violation in violations}
        # A number too large to travel has a range all the same.
        others = {n: value for n, value in vars(config).items() if n not in untravelled or type(value) is int}
        told = untravelled | faults(others)
        violations = [FieldViolation(field=f"config.{name}", description=text) for name, text in told.items()]
        text, remedy = "the configuration is wrong.", "Correct the fields named."
        raise InvalidRequest(text, reason="CONFIG_INVALID", remedy=remedy, violations=tuple(violations))
    return message


def read_config(message: trainer_pb2.TrainConfig) -> TrainConfig:
    """Translate a configuration; what is unset, or of a kind not known here, becomes None."""
    return TrainConfig(**{field.name: _read_field(message, field.name) for field in dataclasses.fields(TrainConfig)})


def _read_field(message: trainer_pb2.TrainConfig, name: str) -> Any:
    value = getattr(message, name)
    if name in _ENUMS:
        return _ENUMS[name].read(value)
    if message.DESCRIPTOR.fields_by_name[name].has_presence:
        return value if message.HasField(name) else None  # type: ignore[arg-type]  # a name known at run time only
    # Of these, empty means unset.
    return _KIND_OF_SEVERAL.get(name, str)(value) or None


def _wire_enum(ours: type[StrEnum], wire: EnumDescriptor) -> WireEnum:
    return WireEnum(ours=ours, wire=wire, prefix=wire.values_by_number[0].name.removesuffix("UNSPECIFIED"))


_KIND_OF_SEVERAL = {"preview_prompts": tuple, "rank_pattern": dict}

_ENUMS = {
    "sigma_sampling": _wire_enum(SigmaSampling, trainer_pb2.SigmaSampling.DESCRIPTOR),
    "targets": _wire_enum(TargetPreset, trainer_pb2.TargetPreset.DESCRIPTOR),
    "loss_weighting": _wire_enum(LossWeighting, trainer_pb2.LossWeighting.DESCRIPTOR),
    "loss_function": _wire_enum(LossFunction, trainer_pb2.LossFunction.DESCRIPTOR),
    "huber_schedule": _wire_enum(HuberSchedule, trainer_pb2.HuberSchedule.DESCRIPTOR),
    "guidance": _wire_enum(GuidanceMode, trainer_pb2.GuidanceMode.DESCRIPTOR),
    "optimizer": _wire_enum(Optimizer, trainer_pb2.Optimizer.DESCRIPTOR),
    "learning_rate_schedule": _wire_enum(LearningRateSchedule, trainer_pb2.LearningRateSchedule.DESCRIPTOR),
    "adapter_type": _wire_enum(AdapterType, trainer_pb2.AdapterType.DESCRIPTOR),
    "init_weights": _wire_enum(InitWeights, trainer_pb2.InitWeights.DESCRIPTOR),
    "file_dtype": _wire_enum(FileDtype, trainer_pb2.FileDtype.DESCRIPTOR),
}
