"""A hold on one training job: watch it, wait for it, cancel it, fetch what it made."""

import time
from collections.abc import Generator, Iterator
from os import PathLike
from pathlib import Path

from fluxsmith._connection import Connection
from fluxsmith._download import download
from fluxsmith._resume import Outage, resuming
from fluxsmith._wire_jobs import read_artifact, read_event, read_job
from fluxsmith.errors import DeadlineExceeded, FailedPrecondition, JobCancelled, JobFailed
from fluxsmith.events import Event
from fluxsmith.training import JobState, TrainingJob
from fluxsmith.v1 import trainer_pb2
from fluxsmith.v1.trainer_pb2_grpc import TrainerServiceStub


class JobHandle:
    """A training job of the caller's tenant. `snapshot` is what was last heard of it; `refresh` asks anew.

    Made by `client.train`, `client.job` and `client.jobs`. Every call may raise `FluxsmithError`.
    """

    def __init__(self, connection: Connection, snapshot: TrainingJob, *, outage_s: float) -> None:
        self._connection = connection
        self._stub = TrainerServiceStub(connection.channel)
        self._outage_s = outage_s
        self.snapshot = snapshot

    @property
    def id(self) -> str:
        """Identifier given by the trainer."""
        return self.snapshot.id

    def __repr__(self) -> str:
        return f"JobHandle(id={self.id!r}, state={self.snapshot.state.value!r})"

    def refresh(self) -> TrainingJob:
        """Ask for the job's state, remember it as `snapshot` and return it."""
        request = trainer_pb2.GetTrainingJobRequest(job_id=self.id)
        self.snapshot = read_job(self._connection.call(self._stub.GetTrainingJob, request).job)
        return self.snapshot

    def watch(self, *, after_sequence: int = 0) -> Iterator[Event]:
        """Yield the job's events after the given one, then new ones as they happen, until the job has ended.

        Goes on by itself after the trainer was away, and neither loses nor repeats an event.
        """
        return self._watch(after_sequence=after_sequence, until=None)

    def wait(self, *, timeout_s: float | None = None) -> TrainingJob:
        """Return the job once it has succeeded.

        Raises `JobFailed`, `JobCancelled`, or `DeadlineExceeded` if it has not ended within `timeout_s` seconds; the
        job goes on then.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            for _ in self._watch(after_sequence=self.snapshot.last_sequence, until=until):
                pass
        except DeadlineExceeded as error:
            message = f"job {self.id} has not ended within {timeout_s:g} s."
            remedy = "It goes on: wait again, watch it, or cancel it."
            raise DeadlineExceeded(message, reason="WAIT_TIMEOUT", remedy=remedy) from error
        return self._succeeded(self.refresh())

    def cancel(self) -> TrainingJob:
        """Stop the job for good; takes effect within a step. Raises `FailedPrecondition` if it has ended otherwise."""
        request = trainer_pb2.CancelTrainingJobRequest(job_id=self.id)
        self.snapshot = read_job(self._connection.call(self._stub.CancelTrainingJob, request).job)
        return self.snapshot

    def delete(self) -> None:
        """Remove the ended job, its events and its files. Raises `FailedPrecondition` while it has not ended."""
        self._connection.call(self._stub.DeleteTrainingJob, trainer_pb2.DeleteTrainingJobRequest(job_id=self.id))

    def download(self, path: str | PathLike[str], *, artifact_name: str = "") -> Path:
        """Fetch a file of the job, by default its LoRA, check its digest and write it to `path`, replacing that.

        Raises `JobFailed` or `JobCancelled` if the job ended without a result.
        """
        request = trainer_pb2.CreateDownloadUrlRequest(job_id=self.id, artifact_name=artifact_name)
        try:
            answer = self._connection.call(self._stub.CreateDownloadUrl, request)
        except FailedPrecondition:
            if self.refresh().state.ended:
                self._succeeded(self.snapshot)
            raise
        artifact = read_artifact(answer.artifact)
        target = Path(path)
        download(answer.url, target, size_bytes=artifact.size_bytes, digest=artifact.content_digest)
        return target

    def _watch(self, *, after_sequence: int, until: float | None) -> Iterator[Event]:
        """Yield events; raises `DeadlineExceeded` at the moment `until` of the monotonic clock."""
        last_sequence = after_sequence

        def open_stream() -> Generator[Event, None, None]:
            nonlocal last_sequence
            request = trainer_pb2.WatchTrainingJobRequest(job_id=self.id, after_sequence=last_sequence)
            timeout_s = None if until is None else max(until - time.monotonic(), 0.0)
            for response in self._connection.receive(self._stub.WatchTrainingJob, request, timeout_s=timeout_s):
                last_sequence = response.event.sequence
                event = read_event(response.event)
                if event is not None:
                    yield event

        def ended() -> bool:
            # The stream of a server that stops in good order ends like that of a job that has ended.
            job = self.refresh()
            return job.state.ended and job.last_sequence <= last_sequence

        return resuming(open_stream, ended=ended, outage=Outage(limit_s=self._outage_s))

    def _succeeded(self, job: TrainingJob) -> TrainingJob:
        if job.state is JobState.FAILED:
            raise JobFailed(job)
        if job.state is JobState.CANCELLED:
            raise JobCancelled(job)
        return job
