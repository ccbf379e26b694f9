"""GPU memory that a configuration would need, as `client.estimate_memory` tells it."""

from dataclasses import dataclass
from enum import StrEnum


class EstimatedModel(StrEnum):
    """A model to estimate for."""

    LOADED = "LOADED"
    """The base model that the trainer holds."""
    FLUX_1_DEV = "FLUX_1_DEV"
    """FLUX.1-dev in bf16, whatever the trainer holds: to plan a GPU before there is one."""


@dataclass(frozen=True, kw_only=True)
class MemoryPart:
    """A part of the peak."""

    name: str
    """Short name: `weights`, `adapter`, `gradients`, `optimizer`, `average`, `activations` or `workspace`."""
    bytes: int
    explanation: str
    """What it is and how it was computed, in a sentence."""


@dataclass(frozen=True, kw_only=True)
class MemoryMeasurement:
    """A peak that a GPU showed."""

    device: str
    """The GPU, as its driver names it."""
    date: str
    """Day of the measurement as YYYY-MM-DD."""
    configuration: str
    """What was run, in a few words."""
    allocated_bytes: int
    """Most bytes that tensors held at once."""
    reserved_bytes: int
    """Most bytes that were taken from the GPU; a card must have these and its driver's context."""


@dataclass(frozen=True, kw_only=True)
class MemorySaving:
    """A change of the configuration that needs less memory."""

    change: str
    """What to change, as an order: `set gradient_checkpointing`."""
    bytes: int
    """What it would save at the peak."""


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """GPU memory that a configuration would need at its peak. All sizes are in bytes."""

    peak_bytes: int
    """The sum of the parts."""
    parts: tuple[MemoryPart, ...]
    """What the peak is made of, the largest first."""
    recommended_bytes: int
    """What a GPU should have: the peak, the driver's context, and room for fragmentation."""
    measurements: tuple[MemoryMeasurement, ...] = ()
    """Peaks that were measured on GPUs at the size estimated for, the nearest configurations first."""
    device_bytes: int = 0
    """Memory of the trainer's own GPU; 0 without one."""
    savings: tuple[MemorySaving, ...] = ()
    """What would need less; the largest saving first."""
