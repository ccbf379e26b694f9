"""What the steps so far say: the mean loss of the last ones, the speed, and the time left."""

from collections import deque
from collections.abc import Sequence

from fluxsmith._smoothing import RECENT_STEPS, recent_loss_text
from fluxsmith.cli.text import duration_text, speed_text
from fluxsmith.events import StepMetrics, StepsCompleted
from fluxsmith.training import TrainingJob

_SPEED_STEPS = 20


class TrainingMeter:
    """Takes steps as they are told and keeps the figures that the display shows."""

    def __init__(self) -> None:
        self.step = 0
        self.total_steps = 0
        self.skipped_steps = 0
        self._losses: deque[tuple[int, float]] = deque(maxlen=RECENT_STEPS)
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
            while self._losses and self._losses[-1][0] >= step.step:
                self._losses.pop()
            if step.counts:
                self._losses.append((step.step, step.loss))
            self._durations_s.append(step.duration_s)

    @property
    def loss(self) -> str:
        """Mean loss of the last steps with its name, skipped ones left out; empty before the first."""
        return recent_loss_text([loss for _, loss in self._losses])

    @property
    def step_s(self) -> float | None:
        """Mean time of the last steps; None before the first step."""
        return sum(self._durations_s) / len(self._durations_s) if self._durations_s else None

    @property
    def left_s(self) -> float | None:
        """Time that the steps to come will take; None before the first step and where none will come."""
        step_s = self._told_step_s or self.step_s
        return None if step_s is None or self._past else step_s * max(self.total_steps - self.step, 0)

    def facts(self) -> list[str]:
        """All that is known, the most important first; empty before the first step."""
        loss, speed, left, skipped = self._texts()
        return [fact for fact in (left, loss, speed, skipped) if fact]

    def __str__(self) -> str:
        return "  ".join(fact for fact in self._texts() if fact)

    def _texts(self) -> tuple[str, str, str, str]:
        """Loss, speed, time left and skipped steps, each empty where there is nothing to tell."""
        if self.step_s is None:
            return "", "", "", ""
        left = f"{duration_text(self.left_s)} left" if self.left_s is not None else ""
        skipped = f"{self.skipped_steps} skipped" if self.skipped_steps else ""
        return self.loss, speed_text(self.step_s), left, skipped
