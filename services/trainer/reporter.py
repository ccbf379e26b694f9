"""What a running job tells the world: steps in batches, signs of life; and what the world wants of it."""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from services.common.errors import Unavailable
from services.trainer.database.claims import Claims, LostJob
from services.trainer.jobs import Event, Job, JobState, Orders, Progress, StepMetrics, StepsCompleted
from services.trainer.settings import TrainerSettings
from services.trainer.train import NonFiniteLoss, Step
from services.trainer.turns import Turn

__all__ = ["CancelJob", "NonFiniteLoss", "PauseJob", "Reporter", "StopWorker", "read_metrics"]

log = logging.getLogger(__name__)

FLUSH_S = 0.3
RETRY_S = 1.0
LATEST_STEPS = 20  # over which the time of a step is taken, for the time left
SHARING_S = 120.0  # over which it is looked how much of the base the job has: several turns of everybody
T = TypeVar("T")


class CancelJob(Exception):
    """The user asked for the end of the job."""


class PauseJob(Exception):
    """The user asked for a checkpoint, and for the job to wait then."""


class StopWorker(Exception):
    """The worker is asked to end; the job goes back into the queue."""


class Reporter:
    """Context manager around the run of one job: a thread keeps the lease while the caller trains.

    `turn` is the job's share of the base, None until it has one. `on_stall` is called by that thread when the
    job has not got on for `settings.stall_s`: a step that hangs cannot be interrupted, only its process ended.
    """

    def __init__(
        self,
        claims: Claims,
        job: Job,
        settings: TrainerSettings,
        stop: threading.Event,
        *,
        on_stall: Callable[[], None] = lambda: None,
    ) -> None:
        self._claims = claims
        self._job = job
        self._settings = settings
        self._stop = stop
        self.turn: Turn | None = None
        self._told_served_s = 0.0
        self._on_stall = on_stall
        self._orders = Orders(state=job.state)
        self._lost = False
        self._last_sign_s = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_lease, name="heartbeat", daemon=True)
        self._waiting: list[tuple[Step, float]] = []
        self._last_flush_s = self._last_step_s = time.monotonic()
        self._shares: deque[tuple[float, float]] = deque([(time.monotonic(), 0.0)])  # when, and how long served by then
        self._step = 0
        self._skipped_steps = 0
        self.total_steps = 0
        self.finishing = False
        """Set when all steps are done: what is left takes seconds, and is neither paused nor worth a checkpoint."""
        self.durations_s: list[float] = []
        self.listeners: list[Callable[[Event], None]] = []
        """Each is called with every event once that is written."""

    def __enter__(self) -> Reporter:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()

    def gets_on(self) -> None:
        """A sign that the job does not hang, from what takes long without a `check`."""
        self._last_sign_s = time.monotonic()

    def check(self) -> None:
        """Raise if the job should not go on: `LostJob`, `CancelJob`, `PauseJob`, `StopWorker`. A sign that it does."""
        self.gets_on()
        if self._lost:
            raise LostJob(self._job.job_id)
        if self._orders.state is JobState.CANCELLING:
            raise CancelJob
        if self._orders.state is JobState.PAUSING and not self.finishing:
            raise PauseJob
        if self._stop.is_set():
            raise StopWorker

    def give_way(self) -> None:
        """Between steps: let other jobs have their turn if it is theirs; raises as `check`."""
        self.check()
        if self.turn:
            self.turn.pass_on()
            self.restart_clock()
            self.check()

    def wanted_elsewhere(self) -> bool:
        """Whether `check` would raise, for who waits and must not be interrupted; a sign that the job gets on."""
        try:
            self.check()
        except (LostJob, CancelJob, PauseJob, StopWorker):
            return True
        return False

    @property
    def checkpoint_wanted(self) -> bool:
        """Whether somebody asked for a checkpoint that is not there yet."""
        return self._orders.checkpoint

    def checkpoint_written(self) -> None:
        """Whoever asked for a checkpoint has it."""
        self._orders = Orders(state=self._orders.state)

    def resume(self, step: int, skipped_steps: int, durations_s: Sequence[float]) -> None:
        """Go on counting after `step`."""
        self._step, self._skipped_steps, self.durations_s = step, skipped_steps, list(durations_s)

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
        if waiting := self._waiting:
            metrics = read_metrics(waiting)
            self.write([StepsCompleted(steps=metrics, total_steps=self.total_steps)])
            self._waiting = []  # not before: a step that was not told yet is told by the next who tries
        self._last_flush_s = time.monotonic()

    def write(self, events: Sequence[Event]) -> None:
        """Write events now, or as soon as the database is back; raises `LostJob` when that was too late."""
        write_id = secrets.token_hex(16)
        self.patiently(lambda: self._claims.append(self._job, events, write_id=write_id))
        for listener in self.listeners:
            for event in events:
                listener(event)

    def patiently(self, action: Callable[[], T]) -> T:
        """Try until database and store serve. A run of hours is worth more than a short outage."""
        while True:
            try:
                return action()
            except Unavailable as error:
                log.warning("%s: %s; trying again", self._job.job_id, error.told)
                self.check()
                time.sleep(RETRY_S)

    @property
    def served_s(self) -> float:
        """Seconds that the job has had the base so far."""
        return self.turn.served_s if self.turn else 0.0

    @property
    def step(self) -> int:
        """The last step done."""
        return self._step

    @property
    def progress(self) -> Progress:
        """How far the job is. `served_s` counts from the last sign of life."""
        return Progress(
            step=self._step,
            total_steps=self.total_steps,
            served_s=max(0.0, self.served_s - self._told_served_s),
            idle_s=time.monotonic() - self._last_sign_s,
            step_time_s=self._step_time_s(),
        )

    @property
    def skipped_steps(self) -> int:
        """Steps noted so far that changed nothing, since their loss or gradient was not finite."""
        return self._skipped_steps

    def _step_time_s(self) -> float | None:
        """What a step takes lately, times the share of the time that the job has had the base lately."""
        latest_s = self.durations_s[-LATEST_STEPS:]
        if not latest_s:
            return None
        (begin_s, served_before_s), now_s = self._shares[0], time.monotonic()
        served_s = self.served_s - served_before_s
        sharing = (now_s - begin_s) / served_s if served_s > 0 else 1.0
        return sum(latest_s) / len(latest_s) * max(1.0, sharing)

    def _measure_duration(self) -> float:
        now_s = time.monotonic()
        duration_s, self._last_step_s = now_s - self._last_step_s, now_s
        self.durations_s.append(duration_s)
        return duration_s

    def _note_share(self) -> None:
        now_s = time.monotonic()
        self._shares.append((now_s, self.served_s))
        while now_s - self._shares[0][0] > SHARING_S:
            self._shares.popleft()

    def _keep_lease(self) -> None:
        while not self._ended.wait(self._settings.heartbeat_s):
            try:
                self._note_share()
                progress = self.progress
                if progress.idle_s > self._settings.stall_s:
                    self._on_stall()
                self._orders = self._claims.heartbeat(self._job, progress, lease_s=self._settings.lease_s)
                self._told_served_s += progress.served_s
            except LostJob:
                self._lost = True
                return
            except Unavailable as error:
                log.warning("heartbeat of %s failed, trying again: %s", self._job.job_id, error.told)
            except Exception:  # the lease must not end over what a single sign of life met
                log.exception("heartbeat of %s failed, trying again", self._job.job_id)


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
