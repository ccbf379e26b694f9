"""Faults of what the stack stands on: its disk, its clock, its network, its memory."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from tests.chaos.judge import Charge, Problem
from tests.chaos.kinds import ADAMW, TOO_BIG
from tests.chaos.ledger import move_times
from tests.chaos.siege import Outcome, Siege, Struck, stepped, written
from tests.chaos.stand import LEASE_S, Stuck, kill
from tests.faults.proxy import FaultProxy, Faults

HEADROOM_BYTES = 200_000_000
BLOCK_BYTES = 1 << 20
PAGE_BYTES = 4096
SMALL_DISK_BYTES = 768 << 20
FULL_S = 6.0
BAD_NETWORK_S = 6.0
WRONG_CLOCK_S = 3 * LEASE_S


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of its own that can be filled; raises `CalledProcessError` for who may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["/bin/mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_BYTES}", "tmpfs", str(folder)],
        check=True,
        capture_output=True,
    )
    try:
        yield folder
    finally:
        subprocess.run(["/bin/umount", "--lazy", str(folder)], check=True)


def fill_disk(folder: Path) -> Callable[[Siege], Struck]:
    """Not a byte is left for store and database for some seconds."""

    def strike(siege: Siege) -> Struck:
        at_s = time.monotonic()
        ballast = folder / "ballast"
        try:
            while time.monotonic() < at_s + FULL_S:
                with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
                    while True:
                        file.write(bytes(BLOCK_BYTES if _free_bytes(folder) > BLOCK_BYTES else PAGE_BYTES))
                if _free_bytes(folder) >= BLOCK_BYTES:
                    raise Stuck(f"{folder} cannot be filled")
                time.sleep(0.05)
        finally:
            ballast.unlink(missing_ok=True)
        return Struck(at_s=at_s, marks=siege.stand.ledger.marks(), anew=False, sign=written)

    return strike


class MovableClock:
    """The clock of the trainer and its workers, moved by a library loaded before libc's; `None` where it is missing."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.move(0)

    @staticmethod
    def library() -> Path | None:
        """Where libfaketime is."""
        found = importlib.util.find_spec("libfaketime")
        if found is None or found.origin is None:
            return None
        return next(Path(found.origin).parent.rglob("libfaketime.so.1"), None)

    @property
    def environment(self) -> dict[str, str]:
        """With this, a process has this clock; durations stay true."""
        return {
            "LD_PRELOAD": str(self.library()),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_RESET": "1",
        }

    def move(self, seconds: int) -> None:
        """Set the clock so far from the true time, all at once."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+d}")
        new.replace(self._file)


def move_clock(clock: MovableClock, seconds: int) -> Callable[[Siege], Struck]:
    """For some seconds the trainer's clock is wrong by so much; the store, whose clock is right, refuses it."""

    def strike(siege: Siege) -> Struck:
        at_s = time.monotonic()
        try:
            clock.move(seconds)
            time.sleep(WRONG_CLOCK_S)
            marks = siege.stand.ledger.marks()
        finally:
            clock.move(0)
        return Struck(at_s=at_s, marks=marks, anew=False, sign=stepped)

    return strike


def move_all_clocks(seconds: int) -> Callable[[Siege], Struck]:
    """All clocks are moved for good, and a worker is killed: every time in the database is off by so much.

    The times are moved and not the clocks, which comes to the same.
    """

    def strike(siege: Siege) -> Struck:
        pid, victims = siege.choose_worker()
        at_s = time.monotonic()
        kill(pid, signal.SIGKILL)
        move_times(siege.stand.database, -seconds)
        return Struck(at_s=at_s, marks=siege.stand.ledger.marks(), victims=victims, sign=stepped)

    return strike


def spoil_network(proxy: FaultProxy, faults: Faults) -> Callable[[Siege], Struck]:
    """The way to the store is bad for some seconds, then good again."""

    def strike(siege: Siege) -> Struck:
        at_s = time.monotonic()
        proxy.faults = faults
        time.sleep(BAD_NETWORK_S)
        marks = siege.stand.ledger.marks()
        proxy.faults = Faults()
        return Struck(at_s=at_s, marks=marks, anew=False, sign=written)

    return strike


def starve(siege: Siege, scenario: str, what: str, count: int) -> Outcome:
    """Give a worker too little memory for a big job: that one fails for this reason, and the next job runs."""
    begun_s = time.monotonic()
    recoveries_s, problems, submissions = [], [], []
    for number in range(count):
        before = siege.stand.submit(ADAMW, f"{scenario}.before.{number}", request_id=uuid4().hex)
        siege.stand.wait_ended([before])  # a worker that still loads would lack the memory for that
        (pid,) = siege.stand.workers()
        limits = resource.prlimit(pid, resource.RLIMIT_AS)
        resource.prlimit(pid, resource.RLIMIT_AS, (_virtual_bytes(pid) + HEADROOM_BYTES, limits[1]))
        name = f"{scenario}.{TOO_BIG.name}.{number}"
        big = siege.stand.submit(TOO_BIG, name, request_id=uuid4().hex)
        (row,) = siege.stand.wait_ended([big])
        if siege.stand.workers() == [pid]:
            resource.prlimit(pid, resource.RLIMIT_AS, limits)
        at_s, failure = time.monotonic(), row.failure or {}
        if failure.get("fault") != "RESOURCE" or not failure.get("remedy"):
            problems.append(Problem(job=name, charge=Charge.LOST, text=f"ended {row.state}: {failure}"))
        small = siege.stand.submit(ADAMW, f"{scenario}.{ADAMW.name}.{number}", request_id=uuid4().hex)
        recovery_s = siege.recovery_s(Struck(at_s=at_s, marks={}, victims=[small.job_id], sign=stepped))
        recoveries_s += [] if recovery_s is None else [recovery_s]
        siege.stand.wait_ended([small])
        if siege.stand.workers() != [pid]:
            problems.append(Problem(job=name, charge=Charge.LOST, text="it took its worker with it"))
        submissions += [before, big, small]
    expected = {TOO_BIG.name: "FAILED"}
    return siege.judged(
        scenario,
        what,
        submissions,
        begun_s,
        faults=count,
        recoveries_s=recoveries_s,
        problems=problems,
        expected=expected,
    )


def _free_bytes(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def _virtual_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    return pages * resource.getpagesize()
