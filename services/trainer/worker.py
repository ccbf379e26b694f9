"""A worker: loads the base transformer once, then claims jobs and runs them, one at a time, until told to stop.

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
from typing import Any

import torch

from services.common.errors import ServiceError, Unavailable
from services.common.logs import set_up_logging
from services.common.object_store import ObjectStore
from services.common.settings import ServiceSettings, StoreSettings, read_settings
from services.trainer.base import Base, load_base
from services.trainer.encoder_link import EncoderLink
from services.trainer.failures import failure_of
from services.trainer.database.job_store import JobStore, LostJob
from services.trainer.jobs import ArtifactPublished, Fault, Job, JobState
from services.trainer.reporter import CancelJob, Reporter, StopWorker
from services.trainer.run_job import run_job
from services.trainer.settings import TrainerSettings

log = logging.getLogger("services.trainer.worker")

IDLE_S = 0.2
RETRY_S = 2.0
RELEASE_S = 15.0  # before a job that met an outage is claimed again; others go first
STORE_PATIENCE_S = 60.0


class Worker:
    """Claims and runs jobs on one resident base."""

    def __init__(
        self,
        jobs: JobStore,
        objects: ObjectStore,
        base: Base,
        settings: TrainerSettings,
        stop: threading.Event,
    ) -> None:
        self._jobs = jobs
        self._objects = objects
        self._base = base
        self._settings = settings
        self._stop = stop
        self._owner = f"{socket.gethostname()}/{os.getpid()}"

    def run(self) -> None:
        """Run jobs until `stop` is set."""
        while not self._stop.is_set():
            try:
                job = self._jobs.claim(
                    self._owner, lease_s=self._settings.lease_s, max_attempts=self._settings.max_attempts
                )
                if job is None:
                    self._stop.wait(IDLE_S)
                else:
                    log.info("%s: attempt %d", job.job_id, job.attempt)
                    self.run_one(job)
            except LostJob as error:
                log.warning("%s", error)
            except Unavailable as error:
                log.warning("%s Trying again in %.0f s", error.line, RETRY_S)
                self._stop.wait(RETRY_S)

    def run_one(self, job: Job) -> None:
        """Run a claimed job to its end, and say how it ended; raises `LostJob` when it is another's now."""
        with Reporter(self._jobs, job, self._settings, self._stop) as reporter:
            try:
                reporter.check()
                with EncoderLink(self._settings.encoder_address, job.tenant, while_waiting=reporter.check) as link:
                    result = run_job(job, self._base, self._objects, link, reporter)
                published = ArtifactPublished(artifact=result.lora)
                self._finish(job, reporter, JobState.SUCCEEDED, last_events=[published], result=result)
            except CancelJob:
                self._finish(job, reporter, JobState.CANCELLED)
            except StopWorker:
                self._jobs.release(job, "its worker was stopped; it starts again")
            except Unavailable as error:
                log.warning("%s: %s", job.job_id, error.line)
                self._jobs.release(job, f"{error.message}; it starts again", delay_s=RELEASE_S)
            except LostJob:
                raise
            except Exception as error:  # noqa: BLE001 - the broad except of this process: the worker goes on
                self._fail(job, reporter, error)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _finish(self, job: Job, reporter: Reporter, state: JobState, **result: Any) -> None:
        reporter.patiently(lambda: self._jobs.finish(job, state, progress=reporter.progress, **result))

    def _fail(self, job: Job, reporter: Reporter, error: Exception) -> None:
        """End the job as FAILED; what may be the service's fault is tried again first, a while later."""
        failure = failure_of(error)
        level = logging.ERROR if failure.fault is Fault.SYSTEM else logging.INFO
        trace = error if level == logging.ERROR else None  # the user's own fault has no trace worth reading
        log.log(level, "%s failed: %s", job.job_id, failure.message, exc_info=trace)
        if failure.fault is Fault.SYSTEM and job.attempt < self._settings.max_attempts:
            message = f"{failure.message}; it starts again"
            self._jobs.release(job, message, delay_s=self._settings.retry_delay_s * job.attempt, counted=True)
        else:
            self._finish(job, reporter, JobState.FAILED, failure=failure)


def main() -> int:
    """Load the base, then work until SIGTERM, SIGINT or the end of the server that started this worker."""
    try:
        service, settings = read_settings(ServiceSettings), read_settings(TrainerSettings)
        store_settings = read_settings(StoreSettings)
    except ServiceError as error:
        print(f"error: {error.line}", file=sys.stderr)  # noqa: T201 - the log is not set up yet
        return 1
    set_up_logging(service.log_level)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if "--supervised" in sys.argv:
        threading.Thread(target=_stop_with_parent, args=(stop,), daemon=True).start()
    try:
        objects = ObjectStore(store_settings, patience_s=STORE_PATIENCE_S)
        base = load_base(service)
        log.info("%s resident on %s in %s", service.base_model, base.transformer.device, base.transformer.dtype)
        Worker(JobStore(settings.database_url), objects, base, settings, stop).run()
    except ServiceError as error:
        log.error(error.line)
        return 1
    return 0


def _stop_with_parent(stop: threading.Event) -> None:
    """The server holds the other end of standard input: when it is gone, so should we be."""
    while os.read(sys.stdin.fileno(), 1024):
        pass
    stop.set()


if __name__ == "__main__":
    sys.exit(main())
