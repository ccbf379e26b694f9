"""What is done to the stack: each function strikes once and says on whom, and by what their recovery will show."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from typing import Any

from tests.chaos.judge import LORA_FILE, parts_of
from tests.chaos.ledger import locked
from tests.chaos.siege import Siege, Struck, stepped, written
from tests.chaos.stand import LEASE_S, Stuck, kill
from tests.services.damage import damage

LONGEST_DOWN_S = 3.0
BEYOND_LEASE = 2.0
BEYOND_BUSY_TIMEOUT_S = 13.0
LONGEST_SEARCH_S = 60.0


def kill_worker(siege: Siege) -> Struck:
    """SIGKILL for a worker that has jobs, as the kernel kills one that takes too much memory."""
    pid, victims = siege.choose_worker()
    at_s = time.monotonic()
    kill(pid, signal.SIGKILL)
    return Struck(at_s=at_s, marks=siege.stand.ledger.marks(), victims=victims, sign=stepped)


def kill_server(siege: Siege) -> Struck:
    """SIGKILL for the trainer's server, then a new one: its workers end by themselves."""
    stack = siege.stand.stack
    victims = [row.job_id for row in siege.stand.ledger.jobs() if row.owner]
    at_s = time.monotonic()
    stack.stop_process("trainer", signal_number=signal.SIGKILL)
    marks = siege.stand.ledger.marks()
    siege.stand.start_trainer()
    return Struck(at_s=at_s, marks=marks, victims=victims, sign=stepped)


def kill_store(siege: Siege) -> Struck:
    """SIGKILL for the object store, then a new one after up to three seconds; workers wait for it."""
    stack = siege.stand.stack
    at_s = time.monotonic()
    stack.stop_process("store", signal_number=signal.SIGKILL)
    time.sleep(siege.random.uniform(0.3, LONGEST_DOWN_S))
    marks = siege.stand.ledger.marks()
    stack.start_store()
    return Struck(at_s=at_s, marks=marks, anew=False, sign=written)


def kill_both(siege: Siege) -> Struck:
    """SIGKILL for store and server at once, then new ones."""
    stack = siege.stand.stack
    at_s = time.monotonic()
    for name in siege.random.sample(("store", "trainer"), 2):
        stack.stop_process(name, signal_number=signal.SIGKILL)
    marks = siege.stand.ledger.marks()
    stack.start_store()
    siege.stand.start_trainer()
    return Struck(at_s=at_s, marks=marks, sign=stepped)


def stop_worker(siege: Siege) -> Struck:
    """SIGSTOP for a worker that has jobs until others must have taken them, then SIGCONT."""
    pid, victims = siege.choose_worker()
    at_s = time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    try:
        marks = siege.stand.ledger.marks()
        epochs = {row.job_id: row.epoch for row in siege.stand.ledger.jobs()}
        time.sleep(BEYOND_LEASE * LEASE_S)

        def taken() -> bool:
            rows = {row.job_id: row for row in siege.stand.ledger.jobs()}
            return any(rows[job_id].epoch > epochs[job_id] for job_id in victims)

        siege.stand.wait_until(taken, "another worker takes the job of the silent one")
    finally:
        with contextlib.suppress(ProcessLookupError):  # a supervisor may have replaced it
            os.kill(pid, signal.SIGCONT)
    return Struck(at_s=at_s, marks=marks, victims=victims, sign=stepped)


def lock_database(seconds: float) -> Callable[[Siege], Struck]:
    """Another process holds the database for writing, for longer than a lease."""

    def strike(siege: Siege) -> Struck:
        at_s = time.monotonic()
        with locked(siege.stand.database):
            marks = siege.stand.ledger.marks()
            time.sleep(seconds)
        return Struck(at_s=at_s, marks=marks, anew=False, sign=stepped)

    return strike


def damage_newest_checkpoint(siege: Siege) -> Struck:
    """Flip a bit in a part of the newest checkpoint of a job that has two, and kill its worker."""
    pid, job_id, newest = _stopped_with_checkpoints(siege)
    try:
        store = siege.stand.store
        # The LoRA of a checkpoint is for people: no run goes on from it.
        parts = parts_of(store.get(store.key_of(newest["uri"]) or ""))
        key = siege.random.choice(sorted(key for key in parts if not key.endswith(LORA_FILE)))
        data = bytearray(store.get(key))
        data[siege.random.randrange(len(data))] ^= 0x10
        damage(store, key, bytes(data))
        at_s = time.monotonic()
    finally:
        kill(pid, signal.SIGKILL)
    marks = siege.stand.ledger.marks()
    return Struck(at_s=at_s, marks=marks, victims=[job_id], sign=stepped, warning="CHECKPOINT_SKIPPED")


def _stopped_with_checkpoints(siege: Siege) -> tuple[int, str, dict[str, Any]]:
    """Stop a worker while a job of its has two checkpoints, so that none comes in between; also the newest."""
    deadline_s = time.monotonic() + LONGEST_SEARCH_S
    while time.monotonic() < deadline_s:
        pid, victims = siege.choose_worker()
        os.kill(pid, signal.SIGSTOP)
        running = {row.job_id for row in siege.stand.ledger.jobs() if not row.ended}
        for job_id in running.intersection(victims):
            checkpoints = siege.stand.ledger.checkpoints(job_id)
            if len(checkpoints) > 1:
                return pid, job_id, checkpoints[0]
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.1)
    raise Stuck("no running job ever had two checkpoints")
