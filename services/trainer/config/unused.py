"""Settings that were changed and have no effect, because others do not ask for them."""

from __future__ import annotations

from collections.abc import Iterator

from services.trainer.config import TrainConfig
from services.trainer.config.choices import (
    GuidanceMode,
    LearningRateSchedule,
    LossFunction,
    SigmaSampling,
)

_NORMAL = (SigmaSampling.LOGIT_NORMAL, SigmaSampling.RESOLUTION_SHIFT, SigmaSampling.STATIC_SHIFT)
_FALLING = tuple(set(LearningRateSchedule) - {LearningRateSchedule.CONSTANT})
# Field: the field that decides whether it counts, and the values with which it does.
_COUNTS_WITH: dict[str, tuple[str, tuple[object, ...]]] = {
    "sigma_mean": ("sigma_sampling", _NORMAL),
    "sigma_std": ("sigma_sampling", _NORMAL),
    "sigma_shift": ("sigma_sampling", (SigmaSampling.STATIC_SHIFT,)),
    "sigma_mode_scale": ("sigma_sampling", (SigmaSampling.MODE,)),
    "sigma_beta_a": ("sigma_sampling", (SigmaSampling.BETA,)),
    "sigma_beta_b": ("sigma_sampling", (SigmaSampling.BETA,)),
    "huber_delta": ("loss_function", (LossFunction.HUBER,)),
    "huber_schedule": ("loss_function", (LossFunction.HUBER,)),
    "guidance_scale": ("guidance", (GuidanceMode.FIXED, GuidanceMode.SAMPLED)),
    "guidance_scale_max": ("guidance", (GuidanceMode.SAMPLED,)),
    "schedule_cycles": ("learning_rate_schedule", (LearningRateSchedule.COSINE_WITH_RESTARTS,)),
    "schedule_power": ("learning_rate_schedule", (LearningRateSchedule.POLYNOMIAL,)),
    "final_learning_rate_ratio": ("learning_rate_schedule", _FALLING),
}


def unused(config: TrainConfig, total_steps: int) -> Iterator[str]:
    """A sentence for each of them, and for a warm-up that the run is too short for."""
    for name, (decides, values) in _COUNTS_WITH.items():
        if getattr(config, name) != TrainConfig.model_fields[name].default and getattr(config, decides) not in values:
            needed = " or ".join(sorted(str(value) for value in values))
            yield f"{name} has no effect: {decides} is {getattr(config, decides)}, and it counts with {needed}"
    if config.early_stopping_min_delta and not config.early_stopping_patience:
        yield "early_stopping_min_delta has no effect without early_stopping_patience"
    if config.preview_interval_steps and not config.preview_prompts:
        yield "preview_interval_steps has no effect without preview_prompts"
    if config.unmasked_weight and not config.masked_loss:
        yield "unmasked_weight has no effect without masked_loss"
    if config.warmup_steps >= total_steps:
        yield (
            f"the run ends within its warm-up: {total_steps} steps, of which {config.warmup_steps} warm up; "
            "learning_rate is never reached"
        )
