"""What a job computes, validated in this one place: values in their ranges (`fields.py`) that fit together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import ValidationError, model_validator
from pydantic_core import ErrorDetails

from services.common.errors import FieldViolation, InvalidInput
from services.common.fields import shortened
from services.trainer.config.conflicts import conflicts
from services.trainer.config.fields import ConfigFields

PREVIEWS_A_RUN = 4
MEASUREMENTS_A_RUN = 10


class TrainConfig(ConfigFields):
    """Configuration of one job, whose values fit together."""

    @model_validator(mode="after")
    def _no_conflicts(self) -> Self:
        if found := conflicts(self):
            raise ValueError("; ".join(f"{conflict.fields[0]} {conflict.description}" for conflict in found))
        return self

    def total_steps(self, batches_per_epoch: int) -> int:
        """Optimizer steps in all, given how many batches show every sample once."""
        if self.steps is not None:
            return self.steps
        return -(-(self.epochs or 1) * batches_per_epoch // self.gradient_accumulation_steps)

    def validation_interval(self, total_steps: int) -> int:
        """Steps between measurements on the held-out dataset."""
        return self.validation_interval_steps or max(1, -(-total_steps // MEASUREMENTS_A_RUN))

    def preview_interval(self, total_steps: int) -> int:
        """Steps between previews."""
        return self.preview_interval_steps or max(1, -(-total_steps // PREVIEWS_A_RUN))


def parse_config(fields: Mapping[str, Any]) -> TrainConfig:
    """Fill in the defaults and validate; raises one `InvalidInput` with every violation."""
    violations = _out_of_range(fields)
    wrong = {violation.field.split(".")[1] for violation in violations}
    # What the values in range do to each other is told in the same answer.
    for conflict in conflicts(valid_part(fields)):
        if wrong.isdisjoint(conflict.fields):
            place = f"config.{conflict.fields[0]}"
            violations.append(FieldViolation(field=place, description=conflict.description))
    if violations:
        text = "; ".join(f"{violation.field} {violation.description}" for violation in violations)
        raise InvalidInput(
            text, reason="CONFIG_INVALID", remedy="Correct the fields named.", violations=tuple(violations)
        )
    return TrainConfig(**fields)


def valid_part(fields: Mapping[str, Any]) -> ConfigFields:
    """The fields that are in range, each by itself, and the defaults of all others."""
    wrong = {violation.field.split(".")[1] for violation in _out_of_range(fields)}
    return ConfigFields.model_validate({name: value for name, value in fields.items() if name not in wrong})


def _said(detail: ErrorDetails) -> str:
    """What is wrong with a value: pydantic's words, or our own without the word before them that pydantic adds."""
    own = detail.get("ctx", {}).get("error")
    return str(own) if own else detail["msg"].lower()


def _out_of_range(fields: Mapping[str, Any]) -> list[FieldViolation]:
    try:
        ConfigFields.model_validate(dict(fields))
    except ValidationError as error:
        return [
            FieldViolation(
                field=".".join(["config", *(str(part)[:100] for part in detail["loc"])]),
                description=f"is {shortened(detail['input'])}: {_said(detail)}",
            )
            for detail in error.errors()
        ]
    return []
