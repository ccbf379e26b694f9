# Made by scripts/make_sync.py from clients/fluxsmith/_async/jobs.py: change that file instead.
"""A hold on one training job: watch it, wait for it, pause, resume or cancel it, fetch what it made."""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import fields
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from uuid import uuid4

from fluxsmith._arguments import path_of, seconds_of, sequence_of, text_of, truth_of
from fluxsmith._connection import Connection
from fluxsmith._download import holds, make_folder, target_in
from fluxsmith._fetch import Located, fetch
from fluxsmith._html import job_card
from fluxsmith._outage import Outage
from fluxsmith._resume import resuming
from fluxsmith._runtime import TrainerStub, in_thread
from fluxsmith._wire import read_time
from fluxsmith._wire_jobs import read_artifact, read_checkpoint, read_event, read_job
from fluxsmith.artifacts import Artifact, DownloadLink
from fluxsmith.checkpoints import CHECKPOINTS, Checkpoint
from fluxsmith.errors import (
    DeadlineExceeded,
    DownloadFailed,
    FailedPrecondition,
    FluxsmithError,
    InternalError,
    JobCancelled,
    JobFailed,
    NotFound,
)
from fluxsmith.events import ArtifactPublished, Event, PreviewRendered
from fluxsmith.training import JobState, TrainingJob, TrainingResult
from fluxsmith.v1 import trainer_pb2

if TYPE_CHECKING:
    from fluxsmith.notebook import JobView

_LONGEST_S = 1e9
_LATE_S = 1.0  # clocks differ; an unanswered call that ends so near the end of the wait may be told as that


class JobHandle:
    """A training job of the caller's tenant. `snapshot` is what was last heard of it; `refresh` asks anew.

    Made by `client.train`, `client.job` and `client.jobs`. Every call may raise `FluxsmithError`.
    """

    def __init__(self, connection: Connection[TrainerStub], snapshot: TrainingJob) -> None:
        self._connection = connection
        self.snapshot = snapshot

    @property
    def id(self) -> str:
        """Identifier given by the trainer."""
        return self.snapshot.id

    def __repr__(self) -> str:
        return f"JobHandle(id={self.id!r}, state={self.snapshot.state.value!r})"

    def _repr_html_(self) -> str:
        return job_card(self.snapshot)

    def refresh(self) -> TrainingJob:
        """Ask for the job's state, remember it as `snapshot` and return it."""
        request = trainer_pb2.GetTrainingJobRequest(job_id=self.id)
        return self._heard((self._connection.call(self._connection.stub.GetTrainingJob, request)).job)

    def watch(self, *, after_sequence: int = 0) -> Generator[Event]:
        """Yield the job's events after the given one, then new ones as they happen, until the job has ended.

        Goes on by itself after the trainer was away, and neither loses nor repeats an event. Events of a job that ended
        long ago may have been removed: `FailedPrecondition` with EVENTS_REMOVED unless it is asked for those from
        `snapshot.first_sequence` on.
        """
        return self._watch(after_sequence=sequence_of(after_sequence), until=None)

    def wait(self, *, timeout_s: float | None = None) -> TrainingJob:
        """Return the job once it has succeeded.

        A job that is paused has not ended: this goes on waiting, until somebody resumes it and it comes to its end.
        Raises `JobFailed`, `JobCancelled`, or `DeadlineExceeded` if it has not ended within `timeout_s` seconds; the
        job goes on then.
        """
        timeout_s = seconds_of(timeout_s, "timeout_s")
        # Over about 300 years, infinity included, gRPC takes it for a moment that is past.
        until = None if timeout_s is None or timeout_s > _LONGEST_S else time.monotonic() + timeout_s
        try:
            with closing(self._watch(after_sequence=self.snapshot.last_sequence, until=until)) as events:
                for _ in events:
                    pass
        except DeadlineExceeded as error:
            if until is None or until - time.monotonic() > _LATE_S:  # it was a call that had no answer
                raise
            if (self.refresh()).state.ended:  # also before it was asked, for however short a time
                return self._succeeded(self.snapshot)
            message = f"job {self.id} has not ended within {timeout_s:g} s."
            remedy = "It goes on: wait again, watch it, or cancel it."
            raise DeadlineExceeded(message, reason="WAIT_TIMEOUT", remedy=remedy) from error
        return self._succeeded(self.refresh())

    def result(self, *, timeout_s: float | None = None) -> TrainingResult:
        """Wait for the job's end as `wait` does, raise what it raises, and return what the job made."""
        job = self.wait(timeout_s=timeout_s)
        if job.result is None:
            message, remedy = f"job {job.id} succeeded without a result.", "Read the trainer's log."
            raise InternalError(message, reason="RESULT_MISSING", remedy=remedy)
        return job.result

    def show(self) -> None:
        """Draw the job below a notebook's cell until it has ended: losses, time left and previews.

        Interrupting it leaves the job running. Needs IPython, which every notebook has.
        """
        from fluxsmith.notebook import JobView  # noqa: PLC0415  # nobody else has IPython

        view = JobView()
        with closing(self.watch()) as events:
            for event in events:
                view.take(event)
                if view.is_due():
                    self._draw(view)
        self._draw(view)

    def _draw(self, view: "JobView") -> None:
        with TemporaryDirectory() as folder:
            for preview in view.missing_pictures():
                path = Path(folder) / "preview.png"
                with suppress(FluxsmithError):  # the others are shown all the same
                    self.download(path, artifact_name=preview.image.artifact_name)
                    view.put_picture(preview, in_thread(path.read_bytes))
        view.draw(self.refresh())

    def pause(self) -> TrainingJob:
        """Checkpoint the job and free its GPU; one that no worker has yet is PAUSED at once.

        Takes effect within a heartbeat of its worker, half a second unless set otherwise, and a step.
        Pausing again changes nothing. Raises `FailedPrecondition` if it has ended or is being cancelled.
        """
        request = trainer_pb2.PauseTrainingJobRequest(job_id=self.id, request_id=str(uuid4()))
        return self._heard((self._connection.call(self._connection.stub.PauseTrainingJob, request)).job)

    def resume(self) -> TrainingJob:
        """Queue the paused job again, to go on from its checkpoint as if nothing had been.

        Resuming again changes nothing. Raises `FailedPrecondition` if it has ended or is being cancelled.
        """
        request = trainer_pb2.ResumeTrainingJobRequest(job_id=self.id, request_id=str(uuid4()))
        return self._heard((self._connection.call(self._connection.stub.ResumeTrainingJob, request)).job)

    def cancel(self, *, discard_checkpoints: bool = False) -> TrainingJob:
        """Stop the job for good. Raises `FailedPrecondition` if it has ended otherwise.

        Takes effect within a heartbeat of its worker, half a second unless set otherwise, and a step. Its checkpoints
        stay until it is deleted, unless `discard_checkpoints`.
        """
        request = trainer_pb2.CancelTrainingJobRequest(
            job_id=self.id,
            request_id=str(uuid4()),
            discard_checkpoints=truth_of(discard_checkpoints, "discard_checkpoints"),
        )
        return self._heard((self._connection.call(self._connection.stub.CancelTrainingJob, request)).job)

    def delete(self) -> None:
        """Remove the ended job, its events, checkpoints and files; again changes nothing.

        Raises `FailedPrecondition` while it has not ended.
        """
        request = trainer_pb2.DeleteTrainingJobRequest(job_id=self.id, request_id=str(uuid4()))
        self._connection.call(self._connection.stub.DeleteTrainingJob, request)

    def checkpoint(self) -> TrainingJob:
        """Ask for a checkpoint after the step that the job is in; `CheckpointWritten` of `watch` says when it is there.

        It stays until the job is deleted, or cancelled with `discard_checkpoints`.
        Raises `FailedPrecondition` when the job is not running.
        """
        request = trainer_pb2.CreateCheckpointRequest(job_id=self.id, request_id=str(uuid4()))
        return self._heard((self._connection.call(self._connection.stub.CreateCheckpoint, request)).job)

    def checkpoints(self) -> list[Checkpoint]:
        """Return the job's checkpoints, newest first."""
        return [read_checkpoint(checkpoint) for checkpoint in (self._listed()).checkpoints]

    def removed_checkpoints(self) -> list[int]:
        """Return the steps of the checkpoints that were written and are removed since, in order.

        There are none once the job's events are removed, some time after its end.
        """
        return list((self._listed()).removed_steps)

    def artifacts(self) -> list[Artifact]:
        """Return the files that the job has published so far, the newest of each name, in the order of their names.

        The LoRAs of its checkpoints are among them. Works at any time: while the job runs, and after it failed or was
        cancelled.
        """
        job = self.refresh()
        found = list(job.result.artifacts) if job.result else []
        published = found or list(self._published(job.last_sequence))
        of_checkpoints = [checkpoint.lora for checkpoint in self.checkpoints()]
        newest = {artifact.artifact_name: artifact for artifact in [*of_checkpoints, *published]}
        return [newest[name] for name in sorted(newest)]

    def download(self, path: str | PathLike[str], *, artifact_name: str = "") -> Path:
        """Fetch a file of the job, by default its LoRA, check its digest and write it to `path`, replacing that.

        A download that breaks off goes on where it was, now or when it is called again; until the file is whole and
        checked, `path` stays as it is and what has come lies beside it in a hidden `.part` file.
        `artifacts` tells the names there are, and each of `checkpoints` that of its LoRA. Raises `NotFound` for a name
        that an ended job does not have, and `FailedPrecondition` for one that is not there yet. Without a name it
        raises `JobFailed` or `JobCancelled` if the job ended without a result.
        """
        target = path_of(path)

        def locate() -> Located:
            return self._locate(artifact_name)

        fetch(locate, target, deadlines=self._connection.deadlines, retry=self._connection.retry)
        return target

    def download_all(
        self, folder: str | PathLike[str], *, on_file: Callable[[Path, bool], None] | None = None
    ) -> list[Path]:
        """Fetch every file of `artifacts` into `folder`, which is made if it is missing, and return their paths.

        A file that is there already, unchanged, is not fetched again: called while the job runs, it brings what is new.
        The LoRA of a checkpoint that is removed meanwhile is left out.
        `on_file` is told of each file once it is there, and whether it was fetched.
        """
        into, written = path_of(folder, "folder"), list[Path]()
        for artifact in self.artifacts():
            target = target_in(into, artifact.artifact_name)
            there = in_thread(holds, target, size_bytes=artifact.size_bytes, digest=artifact.content_digest)
            if not there:
                make_folder(target.parent)
                try:
                    self.download(target, artifact_name=artifact.artifact_name)
                except (FailedPrecondition, NotFound, DownloadFailed):
                    if self._is_removed(artifact):
                        continue
                    raise
            written.append(target)
            if on_file:
                on_file(target, not there)
        return written

    def _listed(self) -> trainer_pb2.ListCheckpointsResponse:
        request = trainer_pb2.ListCheckpointsRequest(job_id=self.id)
        return self._connection.call(self._connection.stub.ListCheckpoints, request)

    def _is_removed(self, artifact: Artifact) -> bool:
        """Return whether it is the LoRA of a checkpoint that is no longer there."""
        names = {checkpoint.lora.artifact_name for checkpoint in self.checkpoints()}
        return artifact.artifact_name.startswith(CHECKPOINTS) and artifact.artifact_name not in names

    def download_link(self, *, artifact_name: str = "") -> DownloadLink:
        """Return an address from which a file of the job can be fetched for an hour; raises as `download` does."""
        answer = self._link(artifact_name)
        time = read_time(answer, "expire_time")
        return DownloadLink(url=answer.url, expire_time=time, artifact=read_artifact(answer.artifact))

    def _locate(self, artifact_name: str) -> Located:
        answer = self._link(artifact_name)
        file = answer.artifact
        return Located(url=answer.url, size_bytes=file.size_bytes, content_digest=file.content_digest)

    def _link(self, artifact_name: str) -> trainer_pb2.CreateDownloadUrlResponse:
        request = trainer_pb2.CreateDownloadUrlRequest(
            job_id=self.id, artifact_name=text_of(artifact_name, "artifact_name")
        )
        try:
            return self._connection.call(self._connection.stub.CreateDownloadUrl, request)
        except (FailedPrecondition, NotFound):
            if not artifact_name and (self.refresh()).state.ended:
                self._succeeded(self.snapshot)
            raise

    def _published(self, last_sequence: int) -> Iterator[Artifact]:
        """Yield the files that the events up to this one tell of; unlike `watch`, it waits for no event to come."""
        if not last_sequence:
            return
        with closing(self._watch(after_sequence=0, until=None, last_sequence=last_sequence)) as events:
            for event in events:
                if isinstance(event, ArtifactPublished):
                    yield Artifact(**{field.name: getattr(event, field.name) for field in fields(Artifact)})
                elif isinstance(event, PreviewRendered):
                    yield event.image

    def _watch(self, *, after_sequence: int, until: float | None, last_sequence: int | None = None) -> Generator[Event]:
        """Yield events until the job has ended or `last_sequence` is reached.

        Raises `DeadlineExceeded` at the moment `until` of the monotonic clock.
        """
        seen = after_sequence

        def open_stream() -> Generator[Event]:
            nonlocal seen
            request = trainer_pb2.WatchTrainingJobRequest(job_id=self.id, after_sequence=seen)
            timeout_s = None if until is None else max(until - time.monotonic(), 0.0)
            method = self._connection.stub.WatchTrainingJob
            with closing(self._connection.receive(method, request, timeout_s=timeout_s)) as responses:
                for response in responses:
                    seen = response.event.sequence
                    event = read_event(response.event)
                    if event is not None:
                        yield event
                    if seen == last_sequence:
                        return

        def ended() -> bool:
            if last_sequence is not None:
                return seen >= last_sequence
            # The stream of a server that stops in good order ends like that of a job that has ended.
            job = self.refresh()
            return job.state.ended and job.last_sequence <= seen

        return resuming(open_stream, ended=ended, outage=Outage(self._connection.retry))

    def _heard(self, message: trainer_pb2.TrainingJob) -> TrainingJob:
        self.snapshot = read_job(message)
        return self.snapshot

    def _succeeded(self, job: TrainingJob) -> TrainingJob:
        if job.state is JobState.FAILED:
            raise JobFailed(job)
        if job.state is JobState.CANCELLED:
            raise JobCancelled(job)
        return job
