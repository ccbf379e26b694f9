"""What two fields of a configuration may not ask for together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from services.common.fields import shortened
from services.trainer.config.choices import AdapterType, GuidanceMode, InitWeights, LearningRateSchedule, Optimizer
from services.trainer.config.expressions import fault_of
from services.trainer.config.fields import ConfigFields

LARGEST_LEARNING_RATE = 0.1
MOST_PREVIEWS = 5_000  # pictures of a job: its result names them all
_LORA = (AdapterType.LORA, AdapterType.DORA)


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """The fields at odds, the one to change first, and a sentence that goes on after its name."""

    fields: tuple[str, ...]
    description: str


def conflicts(config: ConfigFields) -> list[Conflict]:
    """All of them."""
    return [
        *_of_length(config),
        *_of_objective(config),
        *_of_optimization(config),
        *_of_adapter(config),
        *_of_previews(config),
    ]


def _conflict(fields: str, description: str) -> Conflict:
    return Conflict(fields=tuple(fields.split()), description=description)


def _of_length(config: ConfigFields) -> Iterator[Conflict]:
    if config.steps is not None and config.epochs is not None:
        yield _conflict("steps epochs", "comes with epochs: set steps or epochs, not both")


def _of_objective(config: ConfigFields) -> Iterator[Conflict]:
    lowest = max(config.sigma_min, 1 / config.timesteps)
    if lowest >= config.sigma_max:
        description = f"is {config.sigma_max:g}, not above {lowest:g}, the lowest level"
        yield _conflict("sigma_max sigma_min timesteps", description)
    if config.guidance is GuidanceMode.SAMPLED and config.guidance_scale_max < config.guidance_scale:
        yield _conflict(
            "guidance_scale_max guidance_scale guidance",
            f"is {config.guidance_scale_max:g}, below guidance_scale, which is {config.guidance_scale:g}",
        )


def _of_optimization(config: ConfigFields) -> Iterator[Conflict]:
    prodigy = config.optimizer is Optimizer.PRODIGY
    if config.learning_rate > LARGEST_LEARNING_RATE and not prodigy:
        yield _conflict(
            "learning_rate optimizer",
            f"is {config.learning_rate:g}: at most {LARGEST_LEARNING_RATE:g}, except with optimizer PRODIGY",
        )
    if config.lora_plus_ratio != 1 and prodigy:
        yield _conflict("lora_plus_ratio optimizer", "cannot be used with PRODIGY, which has one learning rate for all")
    if config.lora_plus_ratio != 1 and config.adapter_type not in _LORA:
        yield _conflict("lora_plus_ratio adapter_type", f"needs B matrices, which {config.adapter_type} does not have")
    yield from _of_optimizer_kind(config)


def _of_optimizer_kind(config: ConfigFields) -> Iterator[Conflict]:
    if config.optimizer is Optimizer.ADAMW_SCHEDULE_FREE:
        if config.learning_rate_schedule is not LearningRateSchedule.CONSTANT:
            yield _conflict("learning_rate_schedule optimizer", "must be CONSTANT with ADAMW_SCHEDULE_FREE")
        if config.ema_decay > 0:
            yield _conflict("ema_decay optimizer", "must be 0 with ADAMW_SCHEDULE_FREE, which averages by itself")
        if config.beta1 == 0:
            yield _conflict("beta1 optimizer", "must be over 0 with ADAMW_SCHEDULE_FREE, which divides by it")
    if config.optimizer is Optimizer.ADAFACTOR:
        for name in ("beta1", "beta2"):
            if getattr(config, name) is not None:
                yield _conflict(f"{name} optimizer", "is not a setting of ADAFACTOR: leave it unset")


def _of_adapter(config: ConfigFields) -> Iterator[Conflict]:
    kind = config.adapter_type
    if kind not in _LORA:
        for name, unused in (("use_rslora", False), ("adapter_dropout", 0), ("init_weights", InitWeights.KAIMING)):
            if getattr(config, name) != unused:
                yield _conflict(f"{name} adapter_type", f"is for adapter types LORA and DORA only, not for {kind}")
    if config.init_weights is InitWeights.PISSA and kind is AdapterType.DORA:
        yield _conflict("init_weights adapter_type", "PISSA is for adapter type LORA only")
    if config.init_weights is InitWeights.PISSA and config.warm_start_uri:
        yield _conflict("init_weights warm_start_uri", "PISSA and a warm start exclude each other")
    if config.lokr_factor is not None and kind is not AdapterType.LOKR:
        yield _conflict("lokr_factor adapter_type", f"is for adapter type LOKR only, not for {kind}")
    for name, patterns in (("target_regex", [config.target_regex]), ("rank_pattern", list(config.rank_pattern))):
        for pattern in patterns:
            if fault := fault_of(pattern):
                yield _conflict(name, f"has {shortened(pattern)}, which is not a regular expression: {fault[:200]}")


def _of_previews(config: ConfigFields) -> Iterator[Conflict]:
    if config.steps and config.preview_interval_steps:
        count = (config.steps // config.preview_interval_steps + 2) * len(config.preview_prompts)
        if count > MOST_PREVIEWS:
            description = f"asks for {count:,} pictures with the prompts given, over {MOST_PREVIEWS:,}: set it higher"
            yield _conflict("preview_interval_steps preview_prompts steps", description)
