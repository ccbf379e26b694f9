"""Defaults of training, read from environment variables of these names."""

import warnings

from fluxsmith import Client, SigmaSampling, TrainConfig
from fluxsmith.errors import FieldViolation, InvalidRequest
from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """What `train_lora` uses where its caller gives nothing. The trainer checks the ranges."""

    model_config = SettingsConfigDict(frozen=True)

    FLUX_LORA_RANK: int = 16
    FLUX_LORA_ALPHA: int = 16
    FLUX_LEARNING_RATE: float = 1e-4
    FLUX_BATCH_SIZE: int = 1
    FLUX_EPOCHS: int = 1
    QUANTIZE_TEXT_ENCODERS: bool = True
    """What the caller expects: the encoder decides, by its FLUXSMITH_ENCODER_T5_PRECISION."""
    MIXED_PRECISION: bool = True
    """What the caller expects: the trainer decides, by its FLUXSMITH_DTYPE."""
    GRADIENT_CHECKPOINTING: bool = True
    FLOW_MATCHING_TIMESTEPS: int = 1000
    """Noise levels, each as likely as any other."""

    def train_config(
        self,
        *,
        rank: int | None = None,
        alpha: float | None = None,
        learning_rate: float | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
    ) -> TrainConfig:
        """Return what a job computes; None means the setting."""
        return TrainConfig(
            rank=self.FLUX_LORA_RANK if rank is None else rank,
            alpha=self.FLUX_LORA_ALPHA if alpha is None else alpha,
            learning_rate=self.FLUX_LEARNING_RATE if learning_rate is None else learning_rate,
            epochs=self.FLUX_EPOCHS if epochs is None else epochs,
            batch_size=self.FLUX_BATCH_SIZE if batch_size is None else batch_size,
            gradient_checkpointing=self.GRADIENT_CHECKPOINTING,
            sigma_sampling=SigmaSampling.UNIFORM,
            timesteps=self.FLOW_MATCHING_TIMESTEPS,
        )

    def warn_of_differences(self, client: Client) -> None:
        """Warn where the encoder is not as expected; the trainer does not tell its precision."""
        precision = client.capabilities().t5_precision
        if (precision in {"int8", "nf4"}) != self.QUANTIZE_TEXT_ENCODERS:
            warnings.warn(
                f"QUANTIZE_TEXT_ENCODERS is {self.QUANTIZE_TEXT_ENCODERS} and the encoder has T5 in {precision}: it is "
                "set where the encoder is started, by FLUXSMITH_ENCODER_T5_PRECISION",
                stacklevel=3,
            )


def read_settings() -> Settings:
    """Read the environment, or raise `InvalidRequest` with every variable at fault and its value."""
    try:
        return Settings()
    except ValidationError as error:
        faults = tuple(
            FieldViolation(field=str(fault["loc"][0]), description=f"is {fault['input']!r}: {fault['msg']}")
            for fault in error.errors()
        )
        named = "; ".join(f"{fault.field} {fault.description}" for fault in faults)
        raise InvalidRequest(
            f"{named}.",
            reason="FIELD_INVALID",
            remedy="Set the environment variable so, or unset it for its default.",
            violations=faults,
        ) from error
