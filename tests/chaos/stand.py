"""A whole stack that may be broken: store, trainer, workers as processes, one encoded dataset, and a queue of jobs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import fluxsmith
import grpc
from fluxsmith.v1 import trainer_pb2
from fluxsmith.v1.trainer_pb2_grpc import TrainerServiceStub

from services.common.object_store import ObjectStore
from services.stack import Stack
from tests.chaos.kinds import Kind
from tests.chaos.ledger import Ledger, Row
from tests.integration.conftest import write_drawings

LEASE_S = 2.0
SETTINGS = {
    "FLUXSMITH_TRAINER_LEASE_S": str(LEASE_S),
    "FLUXSMITH_TRAINER_HEARTBEAT_S": "0.2",
    "FLUXSMITH_TRAINER_RETRY_DELAY_S": "0.2",
    "FLUXSMITH_TRAINER_MAX_ATTEMPTS": "100",  # a job may be struck again before it has got on
    "FLUXSMITH_TRAINER_ACTIVE_JOBS": "2",
    "FLUXSMITH_TRAINER_SLICE_S": "1",
}
PICTURES = 10
POLL_S = 0.05
CALL_S = 10.0


class Stuck(Exception):
    """Something that had to happen did not, for very long."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A job that was acknowledged."""

    job_id: str
    name: str
    kind: Kind


class Stand:
    """Context manager around a stack that runs jobs; parts of it are killed and started again by their names."""

    def __init__(self, folder: Path, *, workers: int = 1, environment: Mapping[str, str] | None = None) -> None:
        self._extra = {**SETTINGS, "FLUXSMITH_TRAINER_WORKERS": str(workers), **(environment or {})}
        self._workers = workers
        self.stack = Stack(folder / "stack", environment=self._extra)
        self.database = self.stack.data / "jobs.sqlite"
        self.ledger = Ledger(self.database)
        self.store = ObjectStore(self.stack.store_settings, patience_s=30)
        self._drawings = folder / "drawings"
        self._dataset_id = ""
        self._channel = self._connect()

    def __enter__(self) -> Stand:
        self.stack.__enter__()
        try:
            self._encode()
            self.wait_until(lambda: len(self.workers()) == self._workers, "the workers start")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()
        self.ledger.close()
        self.stack.stop()

    def submit(self, kind: Kind, name: str, *, request_id: str, patience_s: float = 180.0) -> Submission:
        """Create a job, asking again with the same `request_id` while the trainer or the store is away."""
        request = trainer_pb2.CreateTrainingJobRequest(
            request_id=request_id, user_id=name, dataset_id=self._dataset_id, config=kind.message()
        )
        deadline_s = time.monotonic() + patience_s
        while True:
            try:
                answer = TrainerServiceStub(self._channel).CreateTrainingJob(request, timeout=CALL_S)
                return Submission(job_id=answer.job.job_id, name=name, kind=kind)
            except grpc.RpcError as error:
                away = error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
                if not away or time.monotonic() > deadline_s:
                    raise
                time.sleep(0.3)

    def delete(self, job_id: str) -> None:
        """Delete an ended job, as a client would."""
        request = trainer_pb2.DeleteTrainingJobRequest(job_id=job_id)
        TrainerServiceStub(self._channel).DeleteTrainingJob(request, timeout=CALL_S)

    def start_trainer(self, changes: Mapping[str, str] | None = None) -> None:
        """Start the trainer, with other settings if given, and wait until it serves and has its workers."""
        self._extra |= changes or {}
        self.stack._extra = dict(self._extra)
        self._workers = int(self._extra["FLUXSMITH_TRAINER_WORKERS"])
        self.stack.start_service("trainer", self.stack.trainer_address)
        self.stack.wait_for_service("trainer", self.stack.trainer_address)
        self._channel.close()
        self._channel = self._connect()
        self.wait_until(lambda: len(self.workers()) == self._workers, "the workers start")

    def restart_trainer(self, changes: Mapping[str, str]) -> None:
        """Stop the trainer in good order and start it with other settings."""
        self.stack.stop_process("trainer")
        self.start_trainer(changes)

    def workers(self) -> list[int]:
        """Processes of the trainer's workers."""
        trainer = self.stack.processes.get("trainer")
        return children_of(trainer.pid) if trainer else []

    def busy_workers(self) -> dict[int, list[Row]]:
        """Workers that have jobs, with those."""
        workers = set(self.workers())
        busy: dict[int, list[Row]] = {}
        for row in self.ledger.jobs():
            if not row.ended and row.owner_pid in workers:
                busy.setdefault(row.owner_pid, []).append(row)
        return busy

    def wait_until(self, true: Callable[[], bool], what: str, *, timeout_s: float = 180.0) -> None:
        """Wait until something is so; raises `Stuck`."""
        deadline_s = time.monotonic() + timeout_s
        while not true():
            if time.monotonic() > deadline_s:
                raise Stuck(f"waited {timeout_s:.0f} s until {what}")
            time.sleep(POLL_S)

    def wait_ended(self, submissions: list[Submission], *, timeout_s: float = 300.0) -> list[Row]:
        """Wait for the end of jobs and return their rows, also of those that have not ended in time."""
        wanted = {submission.job_id for submission in submissions}
        deadline_s = time.monotonic() + timeout_s
        while True:
            rows = [row for row in self.ledger.jobs() if row.job_id in wanted]
            if all(row.ended for row in rows) or time.monotonic() > deadline_s:
                return rows
            time.sleep(4 * POLL_S)

    def _encode(self) -> None:
        """Make the dataset that all jobs train on."""
        self._drawings.mkdir(exist_ok=True)
        folder = write_drawings(self._drawings, PICTURES)
        with fluxsmith.Client(encoder=self.stack.encoder_address, trainer=self.stack.trainer_address) as client:
            self._dataset_id = client.datasets.create_from_folder(folder).id

    def _connect(self) -> grpc.Channel:
        return grpc.insecure_channel(self.stack.trainer_address, options=[("grpc.max_reconnect_backoff_ms", 500)])


def children_of(pid: int) -> list[int]:
    """Child processes that run, oldest first."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it ended while we looked
            continue
        if int(parent) == pid and state not in "ZX":
            found.append(int(path.parent.name))
    return sorted(found)


def runs(pid: int) -> bool:
    """Whether a process is there and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def kill(pid: int, signal_number: int) -> None:
    """End a process by a signal, and wait until it is gone; one that has gone already is fine."""
    try:
        os.kill(pid, signal_number)
    except ProcessLookupError:
        return
    while runs(pid):
        time.sleep(0.005)
