"""Answers what a configuration would need: checked as a job's would be, with what would need less."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from services.common.base_check import BaseModelError
from services.common.base_model import known_transformer, pick_device, pick_dtype
from services.common.errors import NotReady
from services.common.fields import invalid_field
from services.common.settings import ServiceSettings
from services.trainer.adapters.targets import target_ranks
from services.trainer.admission import refuse_all
from services.trainer.config import TrainConfig, parse_config, valid_part
from services.trainer.config.choices import AdapterType, Optimizer, TargetPreset
from services.trainer.config.fields import ConfigFields
from services.trainer.estimate.activations import BF16, FP32, Precision
from services.trainer.estimate.architecture import FLUX_1_DEV, Architecture
from services.trainer.estimate.gpu import gpu_memory_bytes
from services.trainer.estimate.measured import MEASURED, Measured, nearest_first
from services.trainer.estimate.memory_map import PX_A_TOKEN, MemoryMap, Part

DEFAULT_SIDE_PX, SMALLEST_SIDE_PX, LARGEST_SIDE_PX = 1024, 64, 4096
USUAL_SIDES_PX = (1024, 768, 512, 256)
NO_NUMBER = (ValueError, LookupError, TypeError, OverflowError)
DEV_TEXT_TOKENS, SCHNELL_TEXT_TOKENS = 512, 256


@dataclass(frozen=True, kw_only=True)
class Saving:
    """A change, written as an order, and the bytes that it would save at the peak."""

    change: str
    saved_bytes: int


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a job would need, what GPUs needed for the like, and what would need less. `device_bytes` 0 means no GPU."""

    peak_bytes: int
    parts: tuple[Part, ...]
    recommended_bytes: int
    measured: tuple[Measured, ...]
    device_bytes: int
    savings: tuple[Saving, ...]


class MemoryEstimator:
    """Estimates for the base model of this trainer, and for FLUX.1-dev whatever this trainer holds."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings

    def estimate(self, fields: Mapping[str, Any], *, side_px: int = 0, for_dev: bool = False) -> Estimate:
        """The estimate for a configuration as it was sent and the largest images' side, 0 for the usual one.

        Raises one `InvalidInput` with all that is wrong, and `NotReady` where this server cannot read its base model.
        """
        side_px = side_px or DEFAULT_SIDE_PX
        architecture, precision = (FLUX_1_DEV, BF16) if for_dev else self._loaded
        known = valid_part(fields)
        refuse_all(
            [
                partial(parse_config, fields),
                partial(_refuse_side, side_px),
                partial(target_ranks, architecture.linears(), known),
                partial(target_ranks, architecture.linears(), known.model_copy(update={"target_regex": ""})),
            ]
        )
        mapped = partial(_map, architecture, precision)
        config = parse_config(fields)
        here = mapped(config, side_px)
        savings = (
            Saving(change=change, saved_bytes=here.peak_bytes - mapped(other, side).peak_bytes)
            for change, other, side in _smaller(config, side_px)
        )
        alike = nearest_first(MEASURED, config, side_px=side_px)
        return Estimate(
            peak_bytes=here.peak_bytes,
            parts=here.parts(),
            recommended_bytes=here.recommended_bytes,
            measured=tuple(alike) if architecture == FLUX_1_DEV else (),
            device_bytes=self._device_bytes,
            savings=tuple(
                sorted((each for each in savings if each.saved_bytes > 0), key=lambda each: -each.saved_bytes)
            ),
        )

    @cached_property
    def _loaded(self) -> tuple[Architecture, Precision]:
        """The trainer's own base model, in the precision in which workers hold it."""
        config = _transformer_config(self._settings)
        dtype = pick_dtype(self._settings.dtype, pick_device(self._settings.device))
        tokens = _text_tokens(Path(self._settings.base_model), config)
        return Architecture.of(config, text_tokens=tokens), BF16 if dtype is torch.bfloat16 else FP32

    @cached_property
    def _device_bytes(self) -> int:
        return gpu_memory_bytes() if pick_device(self._settings.device).type == "cuda" else 0


def _map(architecture: Architecture, precision: Precision, config: ConfigFields, side_px: int) -> MemoryMap:
    ranks = target_ranks(architecture.linears(), config)
    return MemoryMap(architecture=architecture, precision=precision, config=config, ranks=ranks, side_px=side_px)


def _smaller(config: TrainConfig, side_px: int) -> Iterator[tuple[str, ConfigFields, int]]:
    """Changes that may need less, each with the configuration and the side that it leads to."""
    if smaller := next((side for side in USUAL_SIDES_PX if side < side_px), None):
        yield f"encode at a resolution_px of {smaller}", config, smaller
    wanted: dict[str, Any] = {
        "gradient_checkpointing": True,
        "batch_size": 1,
        "rank": config.rank if config.rank_pattern else max(config.rank // 2, 1),
        "optimizer": config.optimizer if config.optimizer is Optimizer.ADAFACTOR else Optimizer.ADAMW_8BIT,
        "ema_decay": 0,
        "adapter_dropout": 0,
        "adapter_type": AdapterType.LORA,
        "targets": config.targets if config.target_regex else TargetPreset.ATTENTION,
    }
    for name, value in wanted.items():
        if getattr(config, name) != value:
            change = f"set {name}" if value is True else f"set {name} to {value}"
            yield change, config.model_copy(update={name: value}), side_px


def _refuse_side(side_px: int) -> None:
    if not SMALLEST_SIDE_PX <= side_px <= LARGEST_SIDE_PX or side_px % PX_A_TOKEN:
        remedy = f"Use a multiple of {PX_A_TOKEN}, {SMALLEST_SIDE_PX} to {LARGEST_SIDE_PX}; or 0 for {DEFAULT_SIDE_PX}."
        raise invalid_field("resolution_px", f"is {side_px}", remedy)


def _transformer_config(settings: ServiceSettings) -> Mapping[str, Any]:
    try:
        if config := known_transformer(settings):
            return config
        error = None
    except BaseModelError as told:
        error = told
    raise NotReady(
        f"this server cannot read the sizes of its base model {Path(settings.base_model).name!r}",
        reason="BASE_MODEL_UNKNOWN",
        remedy="Ask for FLUX_1_DEV, or set FLUXSMITH_BASE_MODEL of the server to what its workers load.",
        detail=f"FLUXSMITH_BASE_MODEL is {settings.base_model!r}",
    ) from error


def _text_tokens(folder: Path, config: Mapping[str, Any]) -> int:
    """Length of a caption as the encoder pads it: dev's or schnell's, or less where a small tokenizer says so."""
    most = DEV_TEXT_TOKENS if config.get("guidance_embeds") else SCHNELL_TEXT_TOKENS
    try:
        told = int(json.loads((folder / "tokenizer_2" / "tokenizer_config.json").read_text())["model_max_length"])
    except (*NO_NUMBER, OSError, RecursionError):  # a trainer's folder may hold the transformer alone
        return most
    return min(told, most) if told > 0 else most
