"""What a run leaves to be looked at: a metrics table, a TensorBoard event file and a report, kept up while it runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from services.common.errors import ServiceError
from services.common.object_store import ObjectStore
from services.trainer.encoder_link import EncoderLink
from services.trainer.jobs import (
    Artifact,
    ArtifactPublished,
    Checkpoint,
    Event,
    Job,
    JobState,
    JobWarning,
    PreviewRendered,
    StepsCompleted,
    StoredEvent,
    ValidationCompleted,
)
from services.trainer.reporter import Reporter
from services.trainer.results.event_files import EventFile
from services.trainer.results.example import Sampling
from services.trainer.results.history import Activity, History
from services.trainer.results.job_files import METRICS_FILE, REPORT_FILE, put_file
from services.trainer.results.report import render_report

log = logging.getLogger(__name__)

SAVE_S = 30.0


class Records:
    """Hears every event of a run that its reporter writes."""

    def __init__(self, job: Job, store: ObjectStore, reporter: Reporter, link: EncoderLink, sampling: Sampling) -> None:
        self.held_out_names: tuple[str, ...] = ()
        self.sampling = sampling
        self.history = History()
        self.artifacts: dict[str, Artifact] = {}
        self._job = job
        self._store = store
        self._reporter = reporter
        self._link = link
        self._event_file = EventFile(job)
        self._last_save_s = time.monotonic()
        reporter.listeners.append(self._hear)

    def replay(self, events: Iterable[StoredEvent], step: int) -> None:
        """Hear again what was told up to `step`, from which the run goes on: what came after it comes again.

        `events` are all those of the job, in order.
        """
        for stored in events:
            if event := _up_to(stored.event, step):
                self._note(event, time_s=stored.time_s)

    def publish(self, name: str, data: bytes, *, content_type: str = "application/octet-stream") -> Artifact:
        """Put a file of the job into the store, and say so."""
        with self.history.timed(Activity.PUBLISHING):
            artifact = self._reporter.patiently(
                lambda: put_file(self._store, self._job, name, data, content_type=content_type)
            )
            self._reporter.write([ArtifactPublished(artifact=artifact)])
        return artifact

    def save_now_and_then(self) -> None:
        """Put table and event file as they are, every half a minute: a run can be looked at while it goes on."""
        if time.monotonic() - self._last_save_s < SAVE_S:
            return
        for name, data in self._running_files():
            self._reporter.patiently(partial(put_file, self._store, self._job, name, data))
        self._last_save_s = time.monotonic()
        self._reporter.restart_clock()

    def close(self, *, checkpoints: Sequence[Checkpoint] = (), **ending: Any) -> None:
        """Publish table, event file and report. `ending` has the fields of the job that its end sets.

        `checkpoints` are those that stay, newest first, which the report lists.
        A job that was cancelled is not kept waiting for a contact sheet.
        """
        for name, data in self._running_files():
            self.publish(name, data, content_type="text/csv" if name == METRICS_FILE else "application/octet-stream")
        contact_sheet_png = None if ending["state"] is JobState.CANCELLED else self._contact_sheet()
        try:
            report = render_report(
                self._job.model_copy(update={"end_time_s": time.time(), **ending}),
                self.history,
                contact_sheet_png=contact_sheet_png,
                held_out_names=self.held_out_names,
                sampling=self.sampling,
                artifacts=tuple(self.artifacts.values()),
                checkpoints=checkpoints,
            )
        except Exception:  # a report that cannot be drawn must not cost the job what it has learnt
            log.exception("%s: the report cannot be drawn", self._job.job_id)
            warning = JobWarning(reason="REPORT_FAILED", message="the report could not be drawn; the metrics are there")
            self._reporter.write([warning])
        else:
            self.publish(REPORT_FILE, report, content_type="text/html; charset=utf-8")

    def _running_files(self) -> list[tuple[str, bytes]]:
        return [(METRICS_FILE, self.history.metrics_csv()), self._event_file.content()]

    def _hear(self, event: Event) -> None:
        self._note(event, time_s=None)

    def _note(self, event: Event, *, time_s: float | None) -> None:
        png = None
        if isinstance(event, PreviewRendered):
            self.artifacts[event.image.artifact_name] = event.image
            png = self._picture(event)
        elif isinstance(event, ArtifactPublished):
            self.artifacts[event.artifact.artifact_name] = event.artifact
        self.history.add(event, png=png)
        self._event_file.add(event, time_s=time_s, png=png)

    def _picture(self, event: PreviewRendered) -> bytes | None:
        try:
            return self._store.get(self._store.key_of(event.image.uri) or "", digest=event.image.content_digest)
        except ServiceError as error:  # the picture is safe where it is or lost; the run goes on either way
            log.warning("%s: preview %s cannot be read: %s", self._job.job_id, event.image.artifact_name, error.told)
            return None

    def _contact_sheet(self) -> bytes | None:
        try:
            sheet = self._link.contact_sheet(self._job.dataset.dataset_id)
            return self._store.get(self._store.key_of(sheet.uri) or "", digest=sheet.content_digest)
        except ServiceError as error:
            log.warning("%s: no contact sheet: %s", self._job.job_id, error.log_line)
            warning = JobWarning(
                reason="CONTACT_SHEET_SKIPPED", message=f"the report has no contact sheet: {error.line}"
            )
            self._reporter.write([warning])
            return None


def _up_to(event: Event, step: int) -> Event | None:
    """What of an event is not of a later step; None for nothing."""
    if isinstance(event, StepsCompleted):
        steps = tuple(metrics for metrics in event.steps if metrics.step <= step)
        return event.model_copy(update={"steps": steps}) if steps else None
    later = isinstance(event, ValidationCompleted | PreviewRendered) and event.step > step
    return None if later else event
