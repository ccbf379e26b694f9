"""A worker: loads the base transformer once, then claims jobs and runs them, a few in turns, until told to stop.

    python -m services.trainer.worker

It shares nothing with the server but the database and the object store, so it can run on any machine that reaches both.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from services.common.errors import NotFound, ServiceError, Unavailable
from services.common.logs import hide_progress_bars, set_up_logging
from services.common.object_store import ObjectStore
from services.common.settings import ServiceSettings, StoreSettings, read_settings
from services.trainer.base import load_base
from services.trainer.checkpoints.sets import CheckpointOfOtherBase
from services.trainer.database.claims import LostJob
from services.trainer.database.job_store import JobStore
from services.trainer.encoder_link import EncoderLink
from services.trainer.failures import failure_of, lacks_fixed_order, out_of_memory
from services.trainer.jobs import ArtifactPublished, Fault, Job, JobState, JobWarning
from services.trainer.kernels import choose_kernels
from services.trainer.leftovers import remove_leftovers
from services.trainer.liveness import show_life
from services.trainer.memory import give_back
from services.trainer.places import to_send_away
from services.trainer.reporter import CancelJob, PauseJob, Reporter, StopWorker
from services.trainer.results.job_files import job_prefix
from services.trainer.run_job import Workplace, run_job
from services.trainer.settings import TrainerSettings
from services.trainer.turns import Turn, Turns

log = logging.getLogger("services.trainer.worker")

IDLE_S = 0.2
RETRY_S = 2.0
LOOK_S = 2.0  # between two looks of a full worker at who waits
SUSPECT_S = 5.0  # that a job waits which must run alone, before others make room for it
RELEASE_S = 15.0  # before a job that met an outage is claimed again; others go first
STORE_PATIENCE_S = 60.0
HUNG = 75  # the exit code of a worker that ended itself; EX_TEMPFAIL of sysexits.h
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Active:
    """A job that this worker has under way, and how it is told to leave."""

    job: Job
    leave: threading.Event

    def is_suspect(self, jobs: JobStore) -> bool:
        """Whether workers were lost over the job, and it has not written a checkpoint since."""
        try:
            return bool(self.job.lost) and bool(jobs.get(self.job.tenant, self.job.job_id).lost)
        except NotFound:
            return False


class Worker:
    """Claims jobs and runs them on one resident base, each in a thread of its own; they take turns."""

    def __init__(self, place: Workplace, stop: threading.Event) -> None:
        self._place = place
        self._claims = place.jobs.claims
        self._settings = place.settings
        self._stop = stop
        self._owner = f"{socket.gethostname()}/{os.getpid()}"
        self._turns = Turns(place.settings.slice_s)
        self._active: dict[threading.Thread, Active] = {}
        self._suspect_since_s: float | None = None
        self._making_room = False
        self._looked_s = 0.0

    def run(self) -> None:
        """Run jobs until `stop` is set, and then until each has written its checkpoint."""
        while not self._stop.is_set():
            try:
                if not self._take():
                    self._stop.wait(IDLE_S)
            except Unavailable as error:
                log.warning("%s Trying again in %.0f s", error.log_line, RETRY_S)
                self._stop.wait(RETRY_S)
        self._send_away()
        for thread in self._active:
            thread.join()

    def run_one(self, job: Job, leave: threading.Event | None = None) -> None:
        """Run a claimed job to its end, or until it is to `leave`, and say how it ended.

        Raises `LostJob` when it is another's now.
        """
        on_stall = partial(self._end_this_worker, job)
        reporter = Reporter(self._claims, job, self._settings, leave or self._stop, on_stall=on_stall)
        turn = reporter.turn = self._turns.join(job.tenant, job.user_id, urgent=reporter.wanted_elsewhere)
        with reporter:
            try:
                self._run(job, reporter, turn)
            except CancelJob:
                self._finish(job, reporter, JobState.CANCELLED)
            except PauseJob:
                self._park(job, reporter)
            except StopWorker:
                why = "its worker was stopped" if self._stop.is_set() else "it makes room for another job"
                self._release(job, reporter, f"{why}; it goes on from its last checkpoint")
            except Unavailable as error:
                log.warning("%s: %s", job.job_id, error.log_line)
                message = f"{error.message}; it goes on from its last checkpoint"
                self._release(job, reporter, message, delay_s=RELEASE_S)
            except CheckpointOfOtherBase as error:  # it loses nothing while it waits for its own base
                log.error("%s: %s", job.job_id, error.log_line)
                self._park(job, reporter, because=error.line)
            except LostJob:
                raise
            except Exception as error:  # noqa: BLE001 - the broad except of this process: the worker goes on
                self._fail(job, reporter, error)
        give_back()

    def _take(self) -> bool:
        """Begin with one more job, where there is room and one waits."""
        self._active = {thread: active for thread, active in self._active.items() if thread.is_alive()}
        # What was lost before may take its worker with it: it runs alone, so that no neighbour is lost too.
        alone = any(active.is_suspect(self._place.jobs) for active in self._active.values())
        if alone or (self._making_room and self._active):
            return False
        if len(self._active) >= self._settings.active_jobs:
            self._send_one_away()
            return False
        job = self._claims.claim(
            self._owner,
            lease_s=self._settings.lease_s,
            max_attempts=self._settings.max_attempts,
            retry_delay_s=self._settings.retry_delay_s,
            alone=not self._active,
            only_suspects=self._making_room,
        )
        self._making_room = False
        if job is None:
            self._make_room_for_suspects()
            return False
        log.info("%s: attempt %d", job.job_id, job.attempt)
        active = Active(job=job, leave=threading.Event())
        thread = threading.Thread(target=self._run_in_thread, args=(active,), name=job.job_id)
        self._active[thread] = active
        thread.start()
        return True

    def _send_one_away(self) -> None:
        """Full: look now and then whether somebody who has less, or goes first, waits for a place."""
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_S or any(active.leave.is_set() for active in self._active.values()):
            return
        self._looked_s = now_s
        self._claims.settle_abandoned(self._settings.max_attempts)  # which otherwise a claim does
        waiting = self._claims.waiting(
            max_attempts=self._settings.max_attempts, retry_delay_s=self._settings.retry_delay_s
        )
        if waiting is None or waiting.suspect:
            return
        chosen = to_send_away(waiting, [each.job for each in self._active.values()], *self._claims.active_counts())
        for active in self._active.values():
            if active.job is chosen:
                log.info("%s makes room for %s", chosen.job_id, waiting.job_id)
                active.leave.set()

    def _make_room_for_suspects(self) -> None:
        """Send all jobs back with a checkpoint when one that must run alone has waited long enough for another worker.

        They lose nothing but their turn, and are taken up again once it has written a checkpoint.
        """
        waits = bool(self._active) and self._claims.suspect_waits(
            max_attempts=self._settings.max_attempts, retry_delay_s=self._settings.retry_delay_s
        )
        now_s = time.monotonic()
        self._suspect_since_s = (self._suspect_since_s or now_s) if waits else None
        if self._suspect_since_s is not None and now_s - self._suspect_since_s > SUSPECT_S:
            self._making_room, self._suspect_since_s = True, None
            self._send_away()

    def _send_away(self) -> None:
        for active in self._active.values():
            active.leave.set()

    def _run_in_thread(self, active: Active) -> None:
        job = active.job
        try:
            self.run_one(job, active.leave)
        except LostJob as error:
            log.warning("%s", error)
            self._leave_nothing_of_deleted(job)
        except Unavailable as error:  # its lease runs out, and it is taken up again
            log.warning("%s: %s", job.job_id, error.log_line)
        except Exception:  # the same, for what nobody has thought of
            log.exception("%s was given up", job.job_id)

    def _run(self, job: Job, reporter: Reporter, turn: Turn) -> None:
        reporter.check()
        with EncoderLink(self._settings.encoder_address, job.tenant, while_waiting=reporter.check) as link:
            result = run_job(job, self._place, link, reporter, turn)
        last_events = [ArtifactPublished(artifact=result.lora)]
        self._finish(job, reporter, JobState.SUCCEEDED, last_events=last_events, result=result)

    def _finish(self, job: Job, reporter: Reporter, state: JobState, **result: Any) -> None:
        self._insist(reporter, lambda: self._claims.finish(job, state, progress=reporter.progress, **result))
        log.info("%s: %s after step %d", job.job_id, state, reporter.step)
        self._clean_up(job)

    def _park(self, job: Job, reporter: Reporter, because: str = "") -> None:
        state = self._insist(reporter, lambda: self._claims.park(job, reporter.progress, because=because))
        log.info("%s: %s after step %d", job.job_id, state, reporter.step)
        if state is JobState.CANCELLING:  # asked for in the meantime
            self._finish(job, reporter, JobState.CANCELLED)

    def _release(self, job: Job, reporter: Reporter, message: str, **how: Any) -> None:
        self._insist(reporter, lambda: self._claims.release(job, message, **how))
        log.info("%s: queued again after step %d: %s", job.job_id, reporter.step, message)

    def _clean_up(self, job: Job) -> None:
        """Remove what an ended job does not need; what is left over goes when it is deleted."""
        try:
            artifacts = self._place.jobs.artifacts(job.job_id).values()
            store = self._place.store.with_patience(0.0)
            remove_leftovers(store, job, artifacts, self._claims.checkpoints(job))
        except ServiceError as error:
            log.warning("%s: %s", job.job_id, error.log_line)

    def _fail(self, job: Job, reporter: Reporter, error: Exception) -> None:
        """End the job as FAILED; what may be the service's fault is tried again first, a while later."""
        failure = failure_of(error)
        level = logging.ERROR if failure.fault is Fault.SYSTEM else logging.INFO
        trace = error if level == logging.ERROR else None  # the user's own fault has no trace worth reading
        log.log(level, "%s failed: %s", job.job_id, failure.message, exc_info=trace)
        if lacks_fixed_order(error):  # the next attempt does without
            log.warning("jobs of this worker that are interrupted end with other last bits from here on")
            choose_kernels(deterministic=False)
        if out_of_memory(error) and len(self._active) > 1:
            self._release(job, reporter, f"{failure.message}; it is tried again alone", counted=True)
        elif failure.fault is Fault.SYSTEM and (tried := 1 + self._lost(job, reporter)) < self._settings.max_attempts:
            delay_s = self._settings.retry_delay_s * tried
            self._release(job, reporter, f"{failure.message}; it is tried again", delay_s=delay_s, counted=True)
        else:
            self._finish(job, reporter, JobState.FAILED, failure=failure)

    def _lost(self, job: Job, reporter: Reporter) -> int:
        """Attempts before this one that came to nothing; none once this one has written a checkpoint."""
        try:
            return self._insist(reporter, lambda: self._place.jobs.get(job.tenant, job.job_id)).lost
        except NotFound as error:
            raise LostJob(f"job {job.job_id} was deleted") from error

    def _insist(self, reporter: Reporter, action: Callable[[], T]) -> T:
        """Try until the database serves, whatever else is wanted of the job; once when the worker is stopped.

        Then it raises `Unavailable`, and the lease runs out by itself.
        """
        while True:
            try:
                return action()
            except Unavailable as error:
                if self._stop.is_set():
                    raise
                log.warning("%s Trying again in %.0f s", error.log_line, RETRY_S)
                reporter.gets_on()
                self._stop.wait(RETRY_S)

    def _leave_nothing_of_deleted(self, job: Job) -> None:
        """A job that was deleted took its files with it; what was written since, before that was noticed, goes too."""
        try:
            self._place.jobs.get(job.tenant, job.job_id)
        except NotFound:
            with suppress(Unavailable):
                self._place.store.with_patience(0.0).delete_prefix(job_prefix(job.tenant, job.job_id))
        except Unavailable as error:
            log.warning("%s: %s", job.job_id, error.log_line)

    def _end_this_worker(self, hung: Job) -> None:
        """End the process, since a step that hangs cannot be interrupted; its jobs go on elsewhere."""
        message = f"it has not got on for {self._settings.stall_s:.0f} s; its worker is replaced"
        log.critical("%s: %s", hung.job_id, message)
        others = [active.job for active in list(self._active.values()) if active.job.job_id != hung.job_id]
        try:
            self._let_go(hung, message, others)
        finally:
            os._exit(HUNG)

    def _let_go(self, hung: Job, message: str, others: Sequence[Job]) -> None:
        """Release each at once; the leases of those that cannot be run out by themselves."""
        delay_s = self._settings.retry_delay_s * (hung.lost + 1)
        because = "its worker hung over another job; it goes on from its last checkpoint"
        actions: list[Callable[[], object]] = [
            partial(self._claims.append, hung, [JobWarning(reason="STALLED", message=message)]),
            partial(self._claims.release, hung, message, delay_s=delay_s, counted=True),
            *(partial(self._claims.release, other, because) for other in others),
        ]
        for action in actions:
            try:
                action()
            except (ServiceError, LostJob) as error:
                log.critical("%s", error)


def main() -> int:
    """Load the base, then work until SIGTERM, SIGINT or the end of the server that started this worker."""
    try:
        service, settings = read_settings(ServiceSettings), read_settings(TrainerSettings)
        store_settings = read_settings(StoreSettings)
    except ServiceError as error:
        print(f"error: {error.log_line}", file=sys.stderr)  # noqa: T201 - the log is not set up yet
        return 1
    set_up_logging(service.log_level)
    hide_progress_bars()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if "--supervised" in sys.argv:
        threading.Thread(target=_stop_with_parent, args=(stop,), daemon=True).start()
    ready = show_life(sys.argv)
    try:
        work(service, settings, store_settings, stop, ready)
    except ServiceError as error:
        log.error(error.log_line)
        return 1
    return 0


def work(
    service: ServiceSettings,
    settings: TrainerSettings,
    store_settings: StoreSettings,
    stop: threading.Event,
    ready: threading.Event,
) -> None:
    """Load the base, set `ready`, and run jobs until `stop` is set. Raises `ServiceError`."""
    store = ObjectStore(store_settings, patience_s=STORE_PATIENCE_S)
    base = load_base(service)
    choose_kernels(deterministic=settings.deterministic)
    log.info("%s resident on %s in %s", service.base_model, base.transformer.device, base.transformer.dtype)
    with closing(JobStore(settings.database_url)) as jobs:
        ready.set()
        Worker(Workplace(base=base, store=store, jobs=jobs, settings=settings), stop).run()


def _stop_with_parent(stop: threading.Event) -> None:
    """The server holds the other end of standard input: when it is gone, so should we be."""
    while os.read(sys.stdin.fileno(), 1024):
        pass
    stop.set()


if __name__ == "__main__":
    sys.exit(main())
