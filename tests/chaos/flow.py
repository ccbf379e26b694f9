"""A queue of jobs that never runs dry, submitted by a client that keeps trying whatever is down."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import TracebackType
from uuid import uuid4

import grpc

from tests.chaos.judge import Charge, Problem
from tests.chaos.kinds import KINDS, Kind
from tests.chaos.stand import Stand, Submission

POLL_S = 0.2


class Flow:
    """Context manager: while inside, a thread keeps `depth` jobs unfinished; leaving waits for its last submission.

    Every job's name is its kind and a number, so that a job made twice by one request would show.
    """

    def __init__(self, stand: Stand, scenario: str, *, depth: int = 3, kinds: Sequence[Kind] = KINDS) -> None:
        self._stand = stand
        self._scenario = scenario
        self._depth = depth
        self._kinds = kinds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_full, name="flow", daemon=True)
        self.submissions: list[Submission] = []
        self.refusals: list[Problem] = []
        """Jobs that were refused although nothing is wrong with them."""
        self.error: Exception | None = None

    def __enter__(self) -> Flow:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if self.error and not error:
            raise self.error

    def name_of(self, number: int) -> str:
        """What the job of this number is called."""
        return f"{self._scenario}.{self._kinds[number % len(self._kinds)].name}.{number}"

    def _keep_full(self) -> None:
        try:
            while not self._ended.is_set():
                known = {submission.job_id for submission in self.submissions}
                unfinished = [row for row in self._stand.ledger.jobs() if row.job_id in known and not row.ended]
                if len(unfinished) < self._depth:
                    self._submit_next()
                else:
                    self._ended.wait(POLL_S)
        except Exception as error:  # noqa: BLE001 - told by the thread that waits for this one
            self.error = error
        finally:
            self._stand.ledger.close()

    def _submit_next(self) -> None:
        number = len(self.submissions)
        kind = self._kinds[number % len(self._kinds)]
        name = self.name_of(number)
        try:
            self.submissions.append(self._stand.submit(kind, name, request_id=uuid4().hex))
        except grpc.RpcError as error:
            self.refusals.append(Problem(job=name, charge=Charge.LOST, text=f"was refused: {error.details()}"))
            self._ended.wait(POLL_S)
