"""Jobs that take turns on one base, for tests: they use it by a clock of their own, so that a busy machine is none."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from services.trainer.turns import Turn, Turns

SLICE_S = 0.02
STEP_S = 0.001
PATIENCE_S = 60.0


class CancelJob(Exception):
    """What a check raises in these tests."""


class Clock:
    """Seconds that pass only while a job uses the base."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._plans: list[tuple[float, Callable[[], None]]] = []

    def __call__(self) -> float:
        return self._now_s

    def at(self, seconds: float, act: Callable[[], None]) -> None:
        """Do something at that time, in the thread that has the base then."""
        self._plans = sorted([*self._plans, (seconds, act)], key=lambda plan: plan[0])

    def go_on(self, seconds: float) -> None:
        """Let time pass; for who has the base."""
        self._now_s += seconds
        while self._plans and self._plans[0][0] <= self._now_s:
            self._plans.pop(0)[1]()


class Base:
    """Stands for the base: knows whose adapter is on it, and fails when two are."""

    def __init__(self) -> None:
        self.adapter: object = None
        self.swaps = 0

    def put(self, owner: object) -> None:
        assert self.adapter is None, "two adapters on one base"
        self.adapter = owner

    def take(self, owner: object) -> None:
        assert self.adapter is owner
        self.adapter = None


@dataclass(eq=False)
class Job:
    """A job of these tests; it is its own swap. `steps` are the times at which its steps ended."""

    base: Base
    turn: Turn
    clock: Clock
    error: BaseException | None = None
    out_error: Exception | None = None
    back_error: Exception | None = None
    steps: list[float] = field(default_factory=list)

    def out(self) -> None:
        self.base.swaps += 1
        self.base.take(self)
        if self.out_error:
            raise self.out_error

    def back(self) -> None:
        if self.back_error:
            raise self.back_error
        self.base.put(self)

    def run(self, work: Callable[[Job], None]) -> None:
        """Attach, work, take off what is on: as a worker's thread does."""
        try:
            with self.turn.hold(self):
                self.base.put(self)
                try:
                    work(self)
                finally:
                    if self.base.adapter is self:
                        self.base.take(self)
        except BaseException as error:  # noqa: BLE001 - for the test to look at
            self.error = error

    def step(self, seconds: float = STEP_S) -> None:
        """Use the base: nobody else's adapter may be on it meanwhile."""
        assert self.base.adapter is self, "no base to step on"
        time.sleep(0.0002)  # the others' chance to be wrong
        assert self.base.adapter is self, "somebody else came in a step"
        self.clock.go_on(seconds)
        self.steps.append(self.clock())


class Place:
    """Turns, the base that they are on, and the threads of the jobs."""

    def __init__(self, slice_s: float = SLICE_S) -> None:
        self.clock, self.base = Clock(), Base()
        self.turns = Turns(slice_s, self.clock)
        self.threads: list[threading.Thread] = []
        self.jobs: list[Job] = []
        self.go = threading.Event()

    def start(
        self,
        work: Callable[[Job], None],
        tenant: str = "t",
        user: str = "u",
        check: Callable[[], None] = lambda: None,
        urgent: Callable[[], bool] = lambda: False,
    ) -> Job:
        """Begin with a job in a thread of its own."""
        job = Job(self.base, self.turns.join(tenant, user, check, urgent), self.clock)
        thread = threading.Thread(target=job.run, args=(work,), daemon=True)
        self.threads.append(thread)
        self.jobs.append(job)
        thread.start()
        return job

    def steps_to(self, end_s: float) -> Callable[[Job], None]:
        """Work of short steps, from when all `go` until that time."""

        def work(job: Job) -> None:
            self.go.wait(PATIENCE_S)
            while self.clock() < end_s:
                job.step()
                job.turn.pass_on()

        return work

    def join(self) -> None:
        """Wait for all, who must end by themselves with the base as it was."""
        for thread in self.threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), "a job starves"
        assert self.base.adapter is None
        assert not self.turns._all.children

    def go_together(self, wanting: int) -> None:
        """Let them go once so many are there, and wait for all."""
        self.waits_for(wanting)
        self.go.set()
        self.join()
        assert [job.error for job in self.jobs if job.error] == []

    def waits_for(self, wanting: int) -> None:
        """Until so many jobs have the base or wait for it."""
        until(lambda: self.turns._all.wanting == wanting)


def until(condition: Callable[[], object]) -> None:
    """Wait for it, with patience."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def steps_until(stop: threading.Event) -> Callable[[Job], None]:
    """Work of short steps until told to end."""

    def work(job: Job) -> None:
        while not stop.is_set():
            job.step()
            job.turn.pass_on()

    return work


def hog(go_on: threading.Event) -> Callable[[Job], None]:
    """Work that has the base and does not pass it on until told."""

    def work(_: Job) -> None:
        go_on.wait(PATIENCE_S)

    return work


def fail(error: BaseException) -> None:
    """Raise in a lambda."""
    raise error
