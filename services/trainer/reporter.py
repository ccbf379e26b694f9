"""What a running job tells the world: steps in batches, signs of life, and whether it should stop."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from services.common.errors import Unavailable
from services.trainer.database.job_store import JobStore, LostJob
from services.trainer.jobs import Event, Job, JobState, StepMetrics, StepsCompleted
from services.trainer.settings import TrainerSettings
from services.trainer.train import NonFiniteLoss, Step

__all__ = ["CancelJob", "NonFiniteLoss", "Reporter", "StopWorker", "read_metrics"]

log = logging.getLogger(__name__)

FLUSH_S = 0.3
RETRY_S = 1.0
T = TypeVar("T")


class CancelJob(Exception):
    """The user asked for the end of the job."""


class StopWorker(Exception):
    """The worker is asked to end; the job goes back into the queue."""


class Reporter:
    """Context manager around the run of one job: a thread keeps the lease while the caller trains."""

    def __init__(self, store: JobStore, job: Job, settings: TrainerSettings, stop: threading.Event) -> None:
        self._store = store
        self._job = job
        self._settings = settings
        self._stop = stop
        self._cancelled = job.state is JobState.CANCELLING
        self._lost = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_lease, name="heartbeat", daemon=True)
        self._waiting: list[tuple[Step, float]] = []
        self._last_flush_s = self._last_step_s = time.monotonic()
        self._step = 0
        self._skipped_steps = 0
        self.total_steps = 0
        self.durations_s: list[float] = []
        self.listeners: list[Callable[[Event], None]] = []
        """Each is called with every event once that is written."""

    def __enter__(self) -> Reporter:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()

    def check(self) -> None:
        """Raise if the job should not go on: `LostJob`, `CancelJob` or `StopWorker`."""
        if self._lost:
            raise LostJob(self._job.job_id)
        if self._cancelled:
            raise CancelJob
        if self._stop.is_set():
            raise StopWorker

    def restart_clock(self) -> None:
        """Do not count what happened since the last step towards the next one's duration."""
        self._last_step_s = time.monotonic()

    def on_step(self, step: Step) -> None:
        """Note a step. Losses stay on the device until a handful of steps is written at once."""
        self._waiting.append((step, self._measure_duration()))
        self._step = step.number
        self._skipped_steps += step.skipped
        if time.monotonic() - self._last_flush_s > FLUSH_S or step.number in {1, self.total_steps}:
            self.flush()
        self.check()

    def flush(self) -> None:
        """Write the steps noted so far; raises `NonFiniteLoss` naming the first bad one that was not skipped."""
        if self._waiting:
            metrics = read_metrics(self._waiting)
            self._waiting = []
            self.write([StepsCompleted(steps=metrics, total_steps=self.total_steps)])
        self._last_flush_s = time.monotonic()

    def write(self, events: Sequence[Event]) -> None:
        """Write events now, or as soon as the database is back; raises `LostJob` when that was too late."""
        self.patiently(lambda: self._store.append(self._job, events))
        for listener in self.listeners:
            for event in events:
                listener(event)

    def patiently(self, action: Callable[[], T]) -> T:
        """Try until database and store serve. A run of hours is worth more than a short outage."""
        while True:
            try:
                return action()
            except Unavailable as error:
                log.warning("%s: %s; trying again", self._job.job_id, error.message)
                self.check()
                time.sleep(RETRY_S)

    @property
    def step(self) -> int:
        """The last step done."""
        return self._step

    @property
    def progress(self) -> dict[str, int]:
        """The last step done, and the steps in all."""
        return {"step": self._step, "total_steps": self.total_steps}

    @property
    def skipped_steps(self) -> int:
        """Steps noted so far that changed nothing, since their loss or gradient was not finite."""
        return self._skipped_steps

    def _measure_duration(self) -> float:
        now_s = time.monotonic()
        duration_s, self._last_step_s = now_s - self._last_step_s, now_s
        self.durations_s.append(duration_s)
        return duration_s

    def _keep_lease(self) -> None:
        while not self._ended.wait(self._settings.heartbeat_s):
            try:
                state = self._store.heartbeat(self._job, **self.progress, lease_s=self._settings.lease_s)
                self._cancelled = self._cancelled or state is JobState.CANCELLING
            except LostJob:
                self._lost = True
                return
            except Unavailable as error:
                log.warning("heartbeat of %s failed, trying again: %s", self._job.job_id, error.message)


def read_metrics(waiting: Sequence[tuple[Step, float]]) -> tuple[StepMetrics, ...]:
    """Fetch the measurements of several steps from the device in one go.

    Raises `NonFiniteLoss` for a number that is not finite, unless the step says that it was skipped for it.
    """
    losses_and_norms = torch.stack(
        [torch.stack([s.loss.float(), s.gradient_norm.float()]) for s, _ in waiting]
    ).tolist()
    metrics: list[StepMetrics] = []
    for (step, duration_s), (loss, norm) in zip(waiting, losses_and_norms, strict=True):
        if not step.skipped and not (math.isfinite(loss) and math.isfinite(norm)):
            raise NonFiniteLoss(f"loss {loss} and gradient norm {norm} at step {step.number}")
        metrics.append(
            StepMetrics(
                step=step.number,
                loss=loss,
                learning_rate=step.learning_rate,
                gradient_norm=norm,
                duration_s=duration_s,
                skipped=step.skipped,
            )
        )
    return tuple(metrics)
