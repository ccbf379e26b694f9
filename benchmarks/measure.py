"""How anything here is measured: time with the device finished, memory as torch's allocator counts it, failures kept.

Sizes are decimal: 1 GB = 1e9 bytes, 1 TFLOP = 1e12 operations. Memory is None on a CPU, where torch does not count it.
"""

from __future__ import annotations

import gc
import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

T = TypeVar("T")
log = logging.getLogger("benchmarks")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A part that could not be measured, and why; the parts beside it are not concerned."""

    failed: str


@dataclass(frozen=True, kw_only=True)
class Durations:
    """Seconds of one repetition."""

    median_s: float
    min_s: float
    max_s: float
    repetitions: int


@dataclass(frozen=True, kw_only=True)
class PeakMemory:
    """Largest amounts since `reset_peak`, weights included."""

    allocated_gb: float
    """Held by tensors."""
    reserved_gb: float
    """Taken from the device by torch's allocator: what the process needs, its CUDA context excepted."""


def attempted(work: Callable[[], T]) -> T | Failure:
    """Do the work, or say why it failed; what it held on the device is given back either way."""
    result: T | Failure
    try:
        result = work()
    except torch.OutOfMemoryError as error:
        result = Failure(failed="out of memory: " + str(error).partition("\n")[0])
    except Exception as error:
        log.exception("this part failed, the others go on")
        result = Failure(failed=f"{type(error).__name__}: {error}")
    release()  # only here: while an exception was handled, its traceback kept the failed frames' tensors alive
    return result


def durations(seconds: list[float]) -> Durations:
    """Summary of what each repetition took."""
    return Durations(
        median_s=statistics.median(seconds), min_s=min(seconds), max_s=max(seconds), repetitions=len(seconds)
    )


def timed(work: Callable[[], object], *, warmup: int, repetitions: int) -> Durations:
    """Time `work`, which must itself wait for the device: by bringing its result to the CPU, as the services do."""
    for _ in range(warmup):
        work()
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return durations(seconds)


def matmul_tflop_s(size: int, device: torch.device, *, repetitions: int = 20) -> float:
    """Rate of a large square bf16 product on random data: what the device reaches, not what its data sheet says."""
    left = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    right = torch.randn(size, size, device=device, dtype=torch.bfloat16)

    def product_loop() -> None:
        for _ in range(repetitions):
            product = left @ right
        float(product[0, 0])

    return 2 * size**3 * repetitions / timed(product_loop, warmup=1, repetitions=3).median_s / 1e12


def allocated_gb(device: torch.device) -> float | None:
    """What tensors hold on the device now."""
    return torch.cuda.memory_allocated(device) / 1e9 if device.type == "cuda" else None


def reset_peak(device: torch.device) -> None:
    """Let `peak_memory` count from now on; what was only cached no longer counts as reserved."""
    release()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> PeakMemory | None:
    """Largest amounts since `reset_peak`."""
    if device.type != "cuda":
        return None
    return PeakMemory(
        allocated_gb=torch.cuda.max_memory_allocated(device) / 1e9,
        reserved_gb=torch.cuda.max_memory_reserved(device) / 1e9,
    )


def release() -> None:
    """Free what is no longer referred to, and return it to the device, so that the next part starts from nothing."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def weights_gb(model: nn.Module) -> dict[str, float]:
    """Size of a model's parameters by their type, shared ones once: `{"int8": 3.62, "float32": 4.03, ...}`."""
    sizes: dict[str, float] = {}
    for parameter in model.parameters():
        name = str(parameter.dtype).removeprefix("torch.")
        sizes[name] = sizes.get(name, 0.0) + parameter.numel() * parameter.element_size() / 1e9
    return sizes
