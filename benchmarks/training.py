"""The trainer's own step on a transformer with random weights: seconds, memory, and how near it comes to the floor.

Nothing of the step is written here: `services.trainer` prepares the transformer, attaches the adapter, computes the
loss and updates. The weights say nothing about a picture, but the arithmetic is that of the real ones.

Legend: B batch, C latent channels, H/W latent height and width, S text tokens, D width.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import (
    Durations,
    Failure,
    PeakMemory,
    allocated_gb,
    attempted,
    durations,
    log,
    peak_memory,
    reset_peak,
)
from benchmarks.scales import Scale
from services.trainer.adapters.adapter import adapter_parameters, attached
from services.trainer.config import TrainConfig
from services.trainer.flow_matching import Batch, predict_velocity
from services.trainer.sigmas import draw_even, sigma_at
from services.trainer.train import Step, Training, train
from services.trainer.transformer import prepared

SEED = 0
WEIGHT_STD = 0.02
VAE_FACTOR = 8
CASE_LIMIT_S = 45.0  # no further step is begun after this: four cases and the encoder stay within five minutes


@dataclass(frozen=True, kw_only=True)
class StepFigures:
    """One way of training, at batch 1. `share_of_floor` is 1 when nothing but the arithmetic takes time."""

    resolution_px: int
    gradient_checkpointing: bool
    step: Durations
    peak_memory: PeakMemory | None
    loss: float | None
    """Of the last step; None when not finite."""
    finite: bool
    """Every loss and every gradient norm, warm-up included."""
    tflop: float
    """Arithmetic of a step, the adapter's own left out."""
    tflop_s: float
    share_of_floor: float | None
    """`tflop_s` over the rate of a large product on the same device."""


@dataclass(frozen=True, kw_only=True)
class CaseFailure(Failure):
    """A way of training that could not be measured."""

    resolution_px: int
    gradient_checkpointing: bool


@dataclass(frozen=True, kw_only=True)
class TrainingFigures:
    """All cases, which share one transformer, and what it holds before the first and after the last."""

    parameters: int
    adapter_parameters: int
    resident_gb: float | None
    """Allocated with the transformer alone."""
    after_adapter_gb: float | None
    """Allocated when the last adapter has been taken off: the same, or something leaks."""
    cases: tuple[StepFigures | CaseFailure, ...]


def measure_training(scale: Scale, device: torch.device, matmul_tflop_s: float | None) -> TrainingFigures:
    """Train at every resolution, recomputing activations and then, where the memory allows, keeping them."""
    before_gb = allocated_gb(device)
    transformer = prepared(random_transformer(scale.transformer, device))
    resident_gb = _above(allocated_gb(device), before_gb)
    parameters = sum(parameter.numel() for parameter in transformer.parameters())
    cases = tuple(
        _case(transformer, scale, device, resolution_px, checkpointing, matmul_tflop_s)
        for checkpointing, resolution_px in itertools.product((True, False), scale.resolutions_px)
    )
    return TrainingFigures(
        parameters=parameters,
        adapter_parameters=adapter_size(scale),
        resident_gb=resident_gb,
        after_adapter_gb=_above(allocated_gb(device), before_gb),
        cases=cases,
    )


def skeleton(config: Mapping[str, Any]) -> FluxTransformer2DModel:
    """A transformer in bf16 without weights, on the meta device."""
    with torch.device("meta"):
        return FluxTransformer2DModel(**config).bfloat16()


def random_transformer(config: Mapping[str, Any], device: torch.device) -> FluxTransformer2DModel:
    """A transformer whose weights come into being on the device: 24 GB never pass through the CPU's memory.

    Matrices are small normals, norms one, biases zero, so that activations stay finite through all blocks.
    """
    transformer = skeleton(config).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(SEED)
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, WEIGHT_STD, generator=generator)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    return transformer


def adapter_size(scale: Scale) -> int:
    """Parameters of the adapter, counted on the meta device."""
    transformer = prepared(skeleton(scale.transformer))
    with attached(transformer, _config(scale)):
        return sum(parameter.numel() for parameter in adapter_parameters(transformer).values())


def synthetic_batch(scale: Scale, resolution_px: int, generator: torch.Generator) -> Batch:
    """One sample on the CPU in the types that the cached dataset gives it."""
    side = resolution_px // VAE_FACTOR
    channels = scale.transformer["in_channels"] // 4
    sigma = sigma_at(_config(scale), draw_even(generator), side * side // 4)
    t5_width, clip_width = scale.transformer["joint_attention_dim"], scale.transformer["pooled_projection_dim"]
    return Batch(
        clean_BCHW=torch.randn(1, channels, side, side, generator=generator),
        noise_BCHW=torch.randn(1, channels, side, side, generator=generator),
        sigma_B=torch.tensor([sigma]),
        t5_BSD=torch.randn(1, scale.t5_tokens, t5_width, generator=generator).bfloat16(),
        clip_BD=torch.randn(1, clip_width, generator=generator).bfloat16(),
    )


def step_tflop(linear_tflop: float, attention_tflop: float, *, gradient_checkpointing: bool) -> float:
    """Arithmetic of one step, given that of one forward pass.

    The base is frozen, so the backward pass needs gradients of activations only: the linears once more, and 2.5 times
    the attention. Checkpointing computes every block's forward pass a second time.
    """
    forwards = 2 if gradient_checkpointing else 1
    return (forwards + 1) * linear_tflop + (forwards + 2.5) * attention_tflop


def forward_tflop(scale: Scale, resolution_px: int) -> tuple[float, float]:
    """Arithmetic of one forward pass, counted on the meta device: of the linears, and of the attention."""
    transformer = prepared(skeleton(scale.transformer))
    batch = synthetic_batch(scale, resolution_px, torch.Generator()).to(torch.device("meta"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        predict_velocity(transformer, batch.clean_BCHW.bfloat16(), batch.sigma_B, batch.t5_BSD, batch.clip_BD)
    counts = {str(operator): flop / 1e12 for operator, flop in counter.get_flop_counts()["Global"].items()}
    attention = sum(tflop for operator, tflop in counts.items() if "bmm" in operator or "attention" in operator)
    return sum(counts.values()) - attention, attention


def _case(
    transformer: FluxTransformer2DModel,
    scale: Scale,
    device: torch.device,
    resolution_px: int,
    checkpointing: bool,
    matmul_tflop_s: float | None,
) -> StepFigures | CaseFailure:
    log.info("training at %d px, gradient checkpointing %s", resolution_px, "on" if checkpointing else "off")
    config = _config(scale, checkpointing)
    measured = attempted(lambda: _train(transformer, scale, device, resolution_px, config))
    if isinstance(measured, Failure):
        return CaseFailure(failed=measured.failed, resolution_px=resolution_px, gradient_checkpointing=checkpointing)
    record, peak = measured
    step = durations(record.seconds[scale.warmup_steps :])
    tflop = step_tflop(*forward_tflop(scale, resolution_px), gradient_checkpointing=checkpointing)
    tflop_s = tflop / step.median_s
    return StepFigures(
        resolution_px=resolution_px,
        gradient_checkpointing=checkpointing,
        step=step,
        peak_memory=peak,
        loss=record.losses[-1] if math.isfinite(record.losses[-1]) else None,
        finite=all(map(math.isfinite, record.losses + record.gradient_norms)),
        tflop=tflop,
        tflop_s=tflop_s,
        share_of_floor=tflop_s / matmul_tflop_s if matmul_tflop_s else None,
    )


class _Record:
    """What `on_step` saw. Reading the loss waits for all the device was given before, the optimizer's part included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.gradient_norms: list[float] = []
        self._last = time.perf_counter()

    def on_step(self, step: Step) -> None:
        self.losses.append(float(step.loss))
        self.gradient_norms.append(float(step.gradient_norm))
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now


def _train(
    transformer: FluxTransformer2DModel, scale: Scale, device: torch.device, resolution_px: int, config: TrainConfig
) -> tuple[_Record, PeakMemory | None]:
    if config.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    else:
        transformer.disable_gradient_checkpointing()
    generator = torch.Generator().manual_seed(SEED)
    steps = scale.warmup_steps + scale.measured_steps
    batches = [synthetic_batch(scale, resolution_px, generator) for _ in range(steps)]
    with attached(transformer, config):
        reset_peak(device)
        record = _Record()
        training = Training(transformer, config, steps)
        train(training, _until(time.monotonic() + CASE_LIMIT_S, batches, scale.warmup_steps), record.on_step)
    return record, peak_memory(device)


def _until(deadline: float, batches: list[Batch], warmup_steps: int) -> Iterator[tuple[Batch, ...]]:
    """A batch a step until time is up, but one more than the warm-up in any case: a slow device has a figure too."""
    for number, batch in enumerate(batches):
        if number > warmup_steps and time.monotonic() > deadline:
            return
        yield (batch,)


def _config(scale: Scale, gradient_checkpointing: bool = True) -> TrainConfig:
    return TrainConfig(rank=scale.rank, alpha=scale.rank, seed=SEED, gradient_checkpointing=gradient_checkpointing)


def _above(now_gb: float | None, before_gb: float | None) -> float | None:
    return None if now_gb is None or before_gb is None else now_gb - before_gb
