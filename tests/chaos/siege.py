"""Faults that fall upon running jobs one after another, and how long the jobs take to get over each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from tests.chaos.flow import Flow
from tests.chaos.judge import Charge, Problem, Reference, judge, reference_of
from tests.chaos.kinds import KINDS, Kind
from tests.chaos.ledger import ENDED, Happening
from tests.chaos.stand import POLL_S, Stand, Stuck, Submission

RECOVERY_S = 180.0
REFERENCE_S = 900.0


@dataclass(frozen=True, kw_only=True)
class Struck:
    """A fault that has fallen: when (by the monotonic clock), on which jobs (none named means any), and what tells
    that they are over it: an event after the marks that `sign` knows; where `anew`, after a claim that also is.
    """

    at_s: float
    marks: dict[str, int]
    victims: Collection[str] = ()
    anew: bool = True
    sign: Callable[[Happening], bool]
    warning: str = ""
    """Reason of the warning that a victim must have had by then; empty means none."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a scenario went. `recoveries_s` has a time for each fault; the problems are all there are."""

    scenario: str
    what: str
    faults: int
    jobs: int
    recoveries_s: tuple[float, ...]
    problems: tuple[Problem, ...]
    wall_s: float
    meant_to_fail: int = 0
    notes: tuple[str, ...] = ()


def stepped(happening: Happening) -> bool:
    """A step was done, or the job came to its end: one that had no step left to do."""
    return happening.kind == "steps_completed" or happening.facts.get("state") in ENDED


def written(happening: Happening) -> bool:
    """A file of a job was put into the store."""
    return happening.kind in {"artifact_published", "checkpoint_written"}


class Siege:
    """Runs scenarios on one stand; `random` decides every moment and every victim, so a seed tells them all.

    `told` is given a line now and then. After `until_s`, by the monotonic clock, nothing more is struck.
    """

    def __init__(
        self, stand: Stand, random: Random, told: Callable[[str], None] = lambda _: None, *, until_s: float = math.inf
    ) -> None:
        self.stand = stand
        self.until_s = until_s
        self.random = random
        self.told = told
        self.references: dict[str, Reference] = {}

    @property
    def goes_on(self) -> bool:
        """Whether there is time for more."""
        return time.monotonic() < self.until_s

    def learn_references(self, kinds: Sequence[Kind] = KINDS) -> None:
        """Run each kind once, alone and undisturbed; raises `Stuck` when one does not end."""
        for kind in kinds:
            name = f"reference.{kind.name}"
            submission = self.stand.submit(kind, name, request_id=f"{name}-{self.random.getrandbits(64):x}")
            (row,) = self.stand.wait_ended([submission], timeout_s=REFERENCE_S)
            if not row.ended:
                log = self.stand.stack.log_path("trainer")
                raise Stuck(f"{name} is {row.state} after {REFERENCE_S / 60:.0f} minutes; the trainer's log is {log}")
            self.told(f"{name}: {row.step} steps")
            self.references[kind.name] = reference_of(row, self.stand.ledger.happenings(row.job_id), self.stand.store)

    def lay(
        self,
        scenario: str,
        what: str,
        strikes: Sequence[Callable[[Siege], Struck]],
        *,
        quiet_s: float = 4.0,
    ) -> Outcome:
        """Strike again and again while jobs flow, each time up to `quiet_s` after work went on; then judge all jobs."""
        begun_s = time.monotonic()
        recoveries_s: list[float] = []
        problems: list[Problem] = []
        fallen = 0
        with Flow(self.stand, scenario, kinds=[kind for kind in KINDS if kind.name in self.references]) as flow:
            for number, strike in enumerate(strikes, start=1):
                if not self.goes_on:
                    break
                fallen = number
                name = f"{scenario}, fault {number}"
                try:
                    self.wait_for_work()
                    time.sleep(self.random.uniform(0, quiet_s))
                    struck = strike(self)
                except Stuck as error:
                    problems.append(Problem(job=name, charge=Charge.LOST, text=str(error)))
                    continue
                recovery_s = self.recovery_s(struck)
                recoveries_s += [] if recovery_s is None else [recovery_s]
                problems += self._missing(name, struck, recovery_s)
                self.told(f"{name}: {f'{recovery_s:.1f} s' if recovery_s else 'no recovery'}")
        problems += flow.refusals
        return self.judged(
            scenario, what, flow.submissions, begun_s, faults=fallen, recoveries_s=recoveries_s, problems=problems
        )

    def _missing(self, name: str, struck: Struck, recovery_s: float | None) -> Iterator[Problem]:
        """What did not follow a fault although it had to."""
        if recovery_s is None:
            yield Problem(job=name, charge=Charge.LOST, text=f"no job went on within {RECOVERY_S:.0f} s")
        elif struck.warning:
            seen = [
                happening.facts.get("reason")
                for job_id in struck.victims
                for happening in self.stand.ledger.happenings(job_id, after=struck.marks.get(job_id, 0))
            ]
            if struck.warning not in seen:
                yield Problem(job=name, charge=Charge.EVENTS, text=f"there was no warning {struck.warning}")

    def judged(
        self,
        scenario: str,
        what: str,
        submissions: Sequence[Submission],
        begun_s: float,
        *,
        faults: int,
        recoveries_s: Sequence[float],
        problems: Sequence[Problem] = (),
        expected: dict[str, str] | None = None,
    ) -> Outcome:
        """Wait for the end of the jobs, and judge them."""
        self.stand.wait_ended(list(submissions))
        found = judge(submissions, self.stand.ledger, self.stand.store, self.references, expected=expected)
        return Outcome(
            scenario=scenario,
            what=what,
            faults=faults,
            jobs=len(submissions),
            recoveries_s=tuple(recoveries_s),
            problems=(*problems, *found),
            wall_s=time.monotonic() - begun_s,
            meant_to_fail=sum(submission.kind.name in (expected or {}) for submission in submissions),
        )

    def wait_for_work(self) -> None:
        """Wait until a job that a worker has taken up does steps."""
        marks = self.stand.ledger.marks()
        self.stand.wait_until(
            lambda: bool(self.stand.busy_workers()) and self._told(marks, (), stepped, anew=False), "jobs run"
        )

    def choose_worker(self) -> tuple[int, list[str]]:
        """A worker that has jobs, by chance, and those jobs."""
        busy: dict[int, list[str]] = {}

        def found() -> bool:
            busy.update({pid: [row.job_id for row in rows] for pid, rows in self.stand.busy_workers().items()})
            return bool(busy)

        self.stand.wait_until(found, "a worker has a job")
        pid = self.random.choice(sorted(busy))
        return pid, busy[pid]

    def recovery_s(self, struck: Struck) -> float | None:
        """Seconds from the fault to the first sign of being over it; None when there was none for very long."""
        while (now_s := time.monotonic()) < struck.at_s + RECOVERY_S:
            if self._told(struck.marks, struck.victims, struck.sign, anew=struck.anew):
                return now_s - struck.at_s
            time.sleep(POLL_S)
        return None

    def _told(
        self, marks: dict[str, int], jobs: Collection[str], sign: Callable[[Happening], bool], *, anew: bool
    ) -> bool:
        news = {job_id for job_id, last in self.stand.ledger.marks().items() if last > marks.get(job_id, 0)}
        for job_id in news.intersection(jobs) if jobs else news:
            claimed = not anew
            for happening in self.stand.ledger.happenings(job_id, after=marks.get(job_id, 0)):
                claimed = claimed or happening.claims
                if claimed and sign(happening):
                    return True
        return False
