"""What a job computes: every field with meaning, unit, range and default, validated in this one place."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from services.common.errors import FieldViolation, InvalidInput


class SigmaSampling(StrEnum):
    """How noise levels are drawn (`flow_matching.draw_sigma`)."""

    UNIFORM = "UNIFORM"
    LOGIT_NORMAL = "LOGIT_NORMAL"
    RESOLUTION_SHIFT = "RESOLUTION_SHIFT"


class TargetPreset(StrEnum):
    """Which layers are adapted (`adapter.TARGETS`)."""

    IMAGE_STREAM = "IMAGE_STREAM"


class TrainConfig(BaseModel):
    """Configuration of one job. The defaults are those for FLUX.1-dev."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    rank: int = Field(default=16, ge=1, le=512)
    """Rank of the LoRA matrices."""
    alpha: float = Field(default=16.0, gt=0, le=4096)
    """The adapter's output is scaled by alpha / rank."""
    learning_rate: float = Field(default=1e-4, gt=0, le=0.1)
    """Learning rate of AdamW after the warm-up."""
    batch_size: int = Field(default=1, ge=1, le=64)
    """Samples a step, drawn from one bucket; the last batch of a bucket may be smaller."""
    steps: int | None = Field(default=None, ge=1, le=100_000)
    """Optimizer steps; None means that `epochs` tells the length."""
    epochs: int | None = Field(default=None, ge=1, le=10_000)
    """Times that every sample is seen; None means that `steps` tells the length, and 1 without either."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of noise, sigma, order and initial weights."""
    sigma_sampling: SigmaSampling = SigmaSampling.LOGIT_NORMAL
    """How noise levels are drawn."""
    targets: TargetPreset = TargetPreset.IMAGE_STREAM
    """Which layers are adapted."""
    warmup_steps: int = Field(default=0, ge=0, le=10_000)
    """Steps over which the learning rate rises linearly."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient; larger ones are scaled down."""
    caption_dropout: float = Field(default=0.0, ge=0, le=1)
    """Share of samples trained with the empty caption."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass: less memory, about a third more time."""
    validation_interval_steps: int | None = Field(default=None, ge=1, le=100_000)
    """Steps between measurements on the held-out dataset; None means ten a run."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("set steps or epochs, not both")
        return self

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps in all, given how many batches show every sample once."""
        return self.steps if self.steps is not None else (self.epochs or 1) * steps_per_epoch

    def validation_interval(self, total_steps: int) -> int:
        """Steps between measurements on the held-out dataset."""
        return self.validation_interval_steps or max(1, total_steps // 10)


def parse_config(fields: dict[str, Any]) -> TrainConfig:
    """Fill in the defaults and validate; raises one `InvalidInput` with every violation."""
    try:
        return TrainConfig.model_validate(fields)
    except ValidationError as error:
        violations = tuple(
            FieldViolation(
                field=".".join(["config", *map(str, detail["loc"])]),
                description=f"is {detail['input']!r}: {detail['msg'].lower()}" if detail["loc"] else detail["msg"],
            )
            for detail in error.errors()
        )
        text = "; ".join(f"{violation.field} {violation.description}" for violation in violations)
        raise InvalidInput(
            text, reason="CONFIG_INVALID", remedy="Correct the fields named.", violations=violations
        ) from error
