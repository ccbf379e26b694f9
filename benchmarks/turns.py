"""Measure what taking turns costs: a swap against a step, and a short job behind a long one.

    python -m benchmarks.turns [--device cuda --scale full]

On the trainer's own core with random weights (`scales.py`); the tiny scale runs on a CPU. Prints JSON: seconds of a
step and of the way out and back for each kind of adapter, the bytes that the job has on the GPU before and after, and
when a short job ends behind a long one, with turns and without.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from diffusers import FluxTransformer2DModel

from benchmarks.measure import release
from benchmarks.scales import SCALES, Scale
from benchmarks.training import random_transformer, synthetic_batch
from services.trainer.adapters.adapter import attached
from services.trainer.config import TrainConfig
from services.trainer.flow_matching import Batch
from services.trainer.swap import Swap
from services.trainer.train import Training
from services.trainer.transformer import prepared
from services.trainer.turns import Turn, Turns

KINDS: dict[str, dict[str, Any]] = {
    "LORA, AdamW, average": {"ema_decay": 0.99},
    "LORA, 8-bit AdamW": {"optimizer": "ADAMW_8BIT"},
    "DORA": {"adapter_type": "DORA"},
    "PISSA": {"init_weights": "PISSA"},
}
REPETITIONS = 3
SHORT_STEPS, LONG_STEPS = 3, 12
STEPS_IN_SLICE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print. Returns 2 when there is no such device."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.turns", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cpu", help="torch device (default: %(default)s)")
    parser.add_argument("--scale", choices=sorted(SCALES), default="tiny", help="sizes (default: %(default)s)")
    options = parser.parse_args(arguments)
    device, scale = torch.device(options.device), SCALES[options.scale]
    if device.type == "cuda" and not torch.cuda.is_available():
        print("benchmarks.turns: torch sees no CUDA GPU", file=sys.stderr)
        return 2
    transformer = prepared(random_transformer(scale.transformer, device))
    transformer.enable_gradient_checkpointing()
    batch = synthetic_batch(scale, scale.resolutions_px[-1], torch.Generator().manual_seed(0))
    swaps = {name: swap_cost(transformer, batch, _config(scale, fields)) for name, fields in KINDS.items()}
    step_s = swaps["LORA, AdamW, average"].step_s
    report = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "scale": scale.name,
        "resolution_px": scale.resolutions_px[-1],
        "swap": {name: asdict(cost) for name, cost in swaps.items()},
        "short_behind_long": {
            "slice_s": STEPS_IN_SLICE * step_s,
            "short_steps": SHORT_STEPS,
            "long_steps": LONG_STEPS,
            "with turns": behind(transformer, batch, _config(scale, {}), slice_s=STEPS_IN_SLICE * step_s),
            "one after the other": behind(transformer, batch, _config(scale, {}), slice_s=float("inf")),
        },
    }
    print(json.dumps(report, indent=1))
    return 0


@dataclass(frozen=True, kw_only=True)
class SwapCost:
    """Medians in seconds; bytes on the GPU above those of the base alone, None without a GPU."""

    step_s: float
    out_s: float
    back_s: float
    swap_in_steps: float
    bytes_inside: int | None
    bytes_outside: int | None
    bytes_after_the_end: int | None


def swap_cost(transformer: FluxTransformer2DModel, batch: Batch, config: TrainConfig) -> SwapCost:
    """Of one kind of adapter."""
    release()
    base_bytes = _allocated(transformer.device)
    steps, outs, backs, inside_bytes, outside_bytes = _repeated(transformer, batch, config)
    release()
    step_s, out_s, back_s = map(statistics.median, (steps, outs, backs))
    return SwapCost(
        step_s=step_s,
        out_s=out_s,
        back_s=back_s,
        swap_in_steps=(out_s + back_s) / step_s,
        bytes_inside=_above(inside_bytes, base_bytes),
        bytes_outside=_above(outside_bytes, base_bytes),
        bytes_after_the_end=_above(_allocated(transformer.device), base_bytes),
    )


def _repeated(
    transformer: FluxTransformer2DModel, batch: Batch, config: TrainConfig
) -> tuple[list[float], list[float], list[float], int | None, int | None]:
    """Seconds of steps, ways out and back, and the bytes inside and outside; nothing of the job is left."""
    device = transformer.device
    steps, outs, backs = [], [], []
    with attached(transformer, config) as adapter:
        training, swap = Training(transformer, config, REPETITIONS + 1), Swap(transformer)
        swap.carry(adapter, training)
        training.step([batch])
        for _ in range(REPETITIONS):
            steps.append(_timed(device, partial(training.step, [batch])))
            inside_bytes = _allocated(device)
            outs.append(_timed(device, swap.out))
            outside_bytes = _allocated(device)
            backs.append(_timed(device, swap.back))
    return steps, outs, backs, inside_bytes, outside_bytes


def behind(
    transformer: FluxTransformer2DModel, batch: Batch, config: TrainConfig, *, slice_s: float
) -> dict[str, float]:
    """Seconds from the long job's first step until the short one, which comes right after that, and the long one end.

    Both are of one user; an endless slice means that the short one waits for the end of the long one.
    """
    turns, first_step, ends = Turns(slice_s), threading.Event(), {}

    def run(name: str, turn: Turn, steps: int) -> None:
        swap = Swap(transformer)
        with turn.hold(swap), attached(transformer, config) as adapter:
            training = Training(transformer, config, steps)
            swap.carry(adapter, training)
            for _ in range(steps):
                training.step([batch])
                first_step.set()
                turn.pass_on()
        ends[name] = time.perf_counter()

    long = threading.Thread(target=run, args=("long", turns.join("tenant", "user"), LONG_STEPS))
    short = threading.Thread(target=run, args=("short", turns.join("tenant", "user"), SHORT_STEPS))
    long.start()
    first_step.wait()
    begun = time.perf_counter()
    short.start()
    for thread in (long, short):
        thread.join()
    return {f"{name}_ended_s": ended - begun for name, ended in ends.items()}


def _config(scale: Scale, fields: dict[str, Any]) -> TrainConfig:
    return TrainConfig(**{"rank": scale.rank, "alpha": float(scale.rank), "gradient_checkpointing": True} | fields)


def _timed(device: torch.device, action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def _allocated(device: torch.device) -> int | None:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else None


def _above(now_bytes: int | None, before_bytes: int | None) -> int | None:
    return None if now_bytes is None or before_bytes is None else now_bytes - before_bytes


if __name__ == "__main__":
    sys.exit(main())
