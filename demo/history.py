"""What a job's events told: losses by step, and when the first step was done."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import fluxsmith


@dataclass(kw_only=True)
class History:
    """Collects events as they come; `submitted_s` is when collecting began, on the monotonic clock."""

    submitted_s: float = field(default_factory=time.monotonic)
    seconds_to_first_step: float = 0.0
    training_losses: dict[int, float] = field(default_factory=dict)
    held_out_losses: dict[int, float] = field(default_factory=dict)

    def add(self, event: fluxsmith.Event) -> None:
        """Note one event."""
        if isinstance(event, fluxsmith.StepsCompleted):
            if not self.training_losses:
                self.seconds_to_first_step = time.monotonic() - self.submitted_s
            self.training_losses.update({step.step: step.loss for step in event.steps})
        elif isinstance(event, fluxsmith.ValidationCompleted):
            self.held_out_losses[event.step] = event.loss
