"""The jobs that chaos falls upon: short, of several kinds, so that all that a run can go on from is part of one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fluxsmith.v1 import trainer_pb2

CHECKPOINT_INTERVAL_STEPS = 5


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A configuration that always gives the same bits; `fields` are those of the contract's `TrainConfig`."""

    name: str
    fields: dict[str, Any] = field(default_factory=dict)

    def message(self, **changed: Any) -> trainer_pb2.TrainConfig:
        """The configuration on the wire, with some fields changed."""
        common = {"batch_size": 1, "checkpoint_interval_steps": CHECKPOINT_INTERVAL_STEPS}
        return trainer_pb2.TrainConfig(**{**common, **self.fields, **changed})


ADAMW = Kind(name="adamw", fields={"rank": 4, "steps": 32, "seed": 1, "learning_rate": 1e-3})
ADAMW_8BIT = Kind(
    name="adamw-8bit",
    fields={"rank": 4, "steps": 28, "seed": 2, "learning_rate": 1e-3, "optimizer": "OPTIMIZER_ADAMW_8BIT"},
)
PRODIGY = Kind(
    name="prodigy-ema-dropout-accumulation",
    fields={
        "rank": 2,
        "steps": 20,
        "seed": 3,
        "optimizer": "OPTIMIZER_PRODIGY",
        "ema_decay": 0.9,
        "adapter_dropout": 0.2,
        "caption_dropout": 0.3,
        "gradient_accumulation_steps": 2,
    },
)
HELD_OUT = Kind(
    name="held-out-ema-dropout",
    fields={
        "rank": 2,
        "steps": 24,
        "seed": 4,
        "learning_rate": 1e-3,
        "ema_decay": 0.9,
        "adapter_dropout": 0.2,
        "held_out_share": 0.2,
        "validation_interval_steps": 8,
        "learning_rate_schedule": "LEARNING_RATE_SCHEDULE_COSINE",
        "warmup_steps": 4,
    },
)
KINDS = (ADAMW, ADAMW_8BIT, PRODIGY, HELD_OUT)

TOO_BIG = Kind(
    name="too-big",
    fields={"rank": 512, "steps": 8, "seed": 5, "targets": "TARGET_PRESET_ALL_LINEAR", "kohya_file": False},
)
"""Needs some hundred megabytes more than its neighbours."""
