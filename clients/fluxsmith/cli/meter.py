"""What the steps so far say: the smoothed loss, the speed, and the time left."""

from collections import deque
from collections.abc import Sequence

from fluxsmith.cli.text import duration_text, speed_text
from fluxsmith.events import StepMetrics, StepsCompleted
from fluxsmith.training import TrainingJob

_LOSS_DECAY = 0.95  # the loss of single steps jumps with the drawn noise level; this averages over about 20
_SPEED_STEPS = 20


class TrainingMeter:
    """Takes steps as they are told and keeps the figures that the display shows."""

    def __init__(self) -> None:
        self.step = 0
        self.total_steps = 0
        self.skipped_steps = 0
        self._loss_sum = 0.0
        self._loss_weight = 0.0
        self._told_step_s: float | None = None
        self._past = False
        self._durations_s: deque[float] = deque(maxlen=_SPEED_STEPS)

    def take(self, event: StepsCompleted, *, past: bool = False) -> None:
        """Count the event's steps in; with `past` no time left is told, which would be that of then."""
        self._past = past
        self.total_steps = event.total_steps
        self._take_steps(event.steps)

    def hear(self, job: TrainingJob) -> None:
        """Take over the trainer's estimate of the time left, which counts in the jobs that share the base."""
        steps_left = job.total_steps - job.step
        self._told_step_s = job.time_left_s / steps_left if job.time_left_s and steps_left > 0 else None

    def end(self) -> None:
        """Tell no time left any more."""
        self._past = True

    def _take_steps(self, steps: Sequence[StepMetrics]) -> None:
        for step in steps:
            self.step = step.step  # falls back when a lost worker's job goes on from a checkpoint
            self.skipped_steps += step.skipped
            if step.counts:
                self._loss_sum = self._loss_sum * _LOSS_DECAY + step.loss
                self._loss_weight = self._loss_weight * _LOSS_DECAY + 1.0
            self._durations_s.append(step.duration_s)

    @property
    def loss(self) -> float | None:
        """Mean loss in which newer steps count more, and skipped ones not at all; None before the first."""
        return self._loss_sum / self._loss_weight if self._loss_weight else None

    @property
    def step_s(self) -> float | None:
        """Mean time of the last steps; None before the first step."""
        return sum(self._durations_s) / len(self._durations_s) if self._durations_s else None

    @property
    def left_s(self) -> float | None:
        """Time that the steps to come will take; None before the first step and where none will come."""
        step_s = self._told_step_s or self.step_s
        return None if step_s is None or self._past else step_s * max(self.total_steps - self.step, 0)

    def __str__(self) -> str:
        if self.step_s is None:
            return ""
        facts = [f"loss {self.loss:.4f}"] if self.loss is not None else []
        facts += [speed_text(self.step_s)]
        facts += [f"{duration_text(self.left_s)} left"] if self.left_s is not None else []
        facts += [f"{self.skipped_steps} skipped"] if self.skipped_steps else []
        return "  ".join(facts)
