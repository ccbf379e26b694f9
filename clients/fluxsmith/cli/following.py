"""Following a job from its events until it has ended, for `watch` and `train`."""

import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import typer

from fluxsmith.cli.asking import file_address
from fluxsmith.cli.display import Display
from fluxsmith.cli.session import Session
from fluxsmith.errors import FluxsmithError, JobCancelled, JobFailed, Unavailable
from fluxsmith.events import ArtifactPublished, Event, PreviewRendered, StateChanged, StepsCompleted
from fluxsmith.jobs import JobHandle
from fluxsmith.training import JobState, TrainingJob

_QUEUE_INTERVAL_S = 2.0
_TIME_LEFT_INTERVAL_S = 5.0


def follow(job: JobHandle, display: Display, session: Session) -> TrainingJob:
    """Show the job's events until it has ended; return it, or raise `JobFailed` or `JobCancelled`.

    Ctrl-C leaves the job alone, says how to come back and exits with 130.
    """
    follower = _Follower(job, display, session)
    try:
        # From the oldest event there is: those of jobs that ended long ago are removed.
        for event in job.watch(after_sequence=max(job.snapshot.first_sequence - 1, 0)):
            follower.take(event)
        return job.wait()
    except (JobFailed, JobCancelled):
        display.close()
        if follower.has_report:
            fetch = session.command("download", job.id, job.id, "--all")
            session.say(f"see how far it came with: {fetch}   then open {Path(job.id) / 'report.html'}")
        raise
    except KeyboardInterrupt:
        display.close()
        session.say(_parting_text(job.id, follower.state, session))
        raise typer.Exit(130) from None
    except Unavailable:
        display.close()
        session.say(f"job {job.id} is not lost; come back with: {session.command('watch', job.id)}")
        raise


def _parting_text(job_id: str, state: JobState, session: Session) -> str:
    """Return what becomes of a job that is no longer watched, and the commands for it."""
    back, stop = session.command("watch", job_id), session.command("cancel", job_id)
    if state in (JobState.PAUSING, JobState.PAUSED):
        resume = session.command("resume", job_id)
        return f"job {job_id} is {state.lower()}; let it go on with: {resume}   or stop it with: {stop}"
    return f"job {job_id} goes on; come back with: {back}   or stop it with: {stop}"


class _Follower:
    """Shows events, and what no event tells of: the place in the queue and the time left."""

    def __init__(self, job: JobHandle, display: Display, session: Session) -> None:
        self._job = job
        self._session = session
        self._display = display
        self._asked_s = float("-inf")
        self._before = job.snapshot
        self.state = job.snapshot.state
        """The last one told."""
        self.has_report = False

    def take(self, event: Event) -> None:
        """Show an event; returns once the job no longer waits, if it tells of waiting."""
        if isinstance(event, StepsCompleted):
            self._ask_time_left()
        if isinstance(event, PreviewRendered):
            name = event.image.artifact_name
            self._display.preview(event, partial(file_address, self._session.settings, self._job.id, name))
        self._display.event(event, past=self._before.state.ended or event.sequence < self._before.last_sequence)
        if isinstance(event, ArtifactPublished) and event.artifact_name == "report.html":
            self.has_report = True
        if isinstance(event, StateChanged):
            self.state = event.state
            if event.state is JobState.QUEUED:
                self._show_queue()

    def _ask_time_left(self) -> None:
        """Let the display know how fast the trainer takes the job to be: it knows of others that share the base."""
        if time.monotonic() - self._asked_s < _TIME_LEFT_INTERVAL_S:
            return
        self._asked_s = time.monotonic()
        with suppress(FluxsmithError):  # the display has an estimate of its own
            self._display.heard(self._job.refresh())

    def _show_queue(self) -> None:
        """Show how the job moves up until a worker has it."""
        try:
            while self._job.refresh().state is JobState.QUEUED:
                self._display.queued(self._job.snapshot.queue_position)
                time.sleep(_QUEUE_INTERVAL_S)
        except Unavailable:
            return  # the stream of events knows how to wait for the service
