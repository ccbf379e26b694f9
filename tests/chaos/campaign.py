"""All scenarios of the full form, in the order in which they run, on as few stands as they can share."""

from __future__ import annotations

import math
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

from tests.chaos import scenarios, surroundings
from tests.chaos.judge import Charge, Problem
from tests.chaos.siege import Outcome, Siege, Struck
from tests.chaos.stand import Stand
from tests.faults.proxy import FaultProxy, Faults

WORKER_KILLS = 100
KILLS = 20
OTHERS = 5
HOUR_S = 3600

KILL_SCENARIOS: dict[str, tuple[str, int, Callable[[Siege], Struck]]] = {
    "worker killed": ("SIGKILL while it has jobs", WORKER_KILLS, scenarios.kill_worker),
    "server killed": ("SIGKILL; a new one is started at once", KILLS, scenarios.kill_server),
    "store killed": ("SIGKILL; a new one after 0.3 to 3 s", KILLS, scenarios.kill_store),
    "store and server killed": ("SIGKILL for both, then new ones", KILLS, scenarios.kill_both),
    "checkpoint damaged": (
        "one bit of the newest is flipped, and the worker killed",
        OTHERS,
        scenarios.damage_newest_checkpoint,
    ),
    "database locked": (
        f"another process holds it for {scenarios.BEYOND_BUSY_TIMEOUT_S:.0f} s",
        3,
        scenarios.lock_database(scenarios.BEYOND_BUSY_TIMEOUT_S),
    ),
}
BAD_NETWORKS = {
    "store slow": ("each 64 KiB takes half a second", Faults(delay_s=0.5)),
    "store refusing": ("every connection is reset", Faults(refuse=1.0)),
    "bodies cut": ("half of all bodies end in the middle, both ways", Faults(cut_up=0.25, cut_down=0.25)),
    "bits flipped": ("one bit in half of all bodies, both ways", Faults(flip_up=0.25, flip_down=0.25)),
    "answers lost": ("half of all requests are done but not answered", Faults(drop_answer=0.5)),
}
ONE_WORKER, TWO_WORKERS = {"FLUXSMITH_TRAINER_WORKERS": "1"}, {"FLUXSMITH_TRAINER_WORKERS": "2"}
STARVED = "out of memory"
STOPPED = "worker stopped"
CLOCK = "clock moved"
DISK = "disk full"
NAMES = (*KILL_SCENARIOS, STARVED, *BAD_NETWORKS, STOPPED, CLOCK, DISK)


def campaign(
    folder: Path,
    seed: int,
    *,
    only: Collection[str] = NAMES,
    share: float = 1.0,
    told: Callable[[str], None] = lambda _: None,
    until_s: float = math.inf,
) -> Iterator[Outcome]:
    """Yield how each scenario went; `share` of the faults of each are enough, at least one. `told` is given lines.

    After `until_s`, by the monotonic clock, nothing more is struck and no scenario begins.
    """
    if set(only) - {DISK}:
        with Stand(folder / "main") as stand:
            siege = Siege(stand, Random(seed), told, until_s=until_s)  # noqa: S311
            siege.learn_references()
            yield from _kills(siege, only, share)
            yield from _networks(siege, only, share)
            yield from _two_workers(siege, folder, only, share)
    if DISK in only and time.monotonic() < until_s:
        yield _disk(folder, seed, share, told)


def _kills(siege: Siege, only: Collection[str], share: float) -> Iterator[Outcome]:
    for name, (what, count, strike) in KILL_SCENARIOS.items():
        if name in only and siege.goes_on:
            yield siege.lay(name, what, [strike] * times(count, share))
    if STARVED in only and siege.goes_on:
        siege.stand.restart_trainer(ONE_WORKER)
        what = f"it may take {surroundings.HEADROOM_BYTES // 1_000_000} MB more, and a job of rank 512 comes"
        yield surroundings.starve(siege, STARVED, what, times(3, share))


def _networks(siege: Siege, only: Collection[str], share: float) -> Iterator[Outcome]:
    if not set(BAD_NETWORKS).intersection(only) or not siege.goes_on:
        return
    direct = siege.stand.stack.store_settings.endpoint
    with FaultProxy(upstream=direct, seed=siege.random.randrange(2**32)) as proxy:
        siege.stand.restart_trainer({"FLUXSMITH_STORE_ENDPOINT": proxy.endpoint})
        for name, (what, faults) in BAD_NETWORKS.items():
            if name in only and siege.goes_on:
                before = proxy.done.total()
                strike = surroundings.spoil_network(proxy, faults)
                outcome = siege.lay(name, what, [strike] * times(OTHERS, share))
                yield replace(outcome, notes=(f"{proxy.done.total() - before} requests were struck",))
        siege.stand.restart_trainer({"FLUXSMITH_STORE_ENDPOINT": direct})


def _two_workers(siege: Siege, folder: Path, only: Collection[str], share: float) -> Iterator[Outcome]:
    if STOPPED in only and siege.goes_on:
        siege.stand.restart_trainer(TWO_WORKERS)
        what = "SIGSTOP until another worker has its jobs, then SIGCONT"
        yield siege.lay(STOPPED, what, [scenarios.stop_worker] * times(OTHERS, share))
    if CLOCK in only and siege.goes_on:
        what = "an hour forward and back, the trainer's alone for a while, then all for good with a worker killed"
        if surroundings.MovableClock.library() is None:
            yield _not_run(CLOCK, what, "libfaketime is missing")
            return
        clock = surroundings.MovableClock(folder / "clock")
        siege.stand.restart_trainer({**TWO_WORKERS, **clock.environment})
        yield siege.lay(CLOCK, what, _moves(clock))
        siege.stand.restart_trainer({"LD_PRELOAD": ""})


def _moves(clock: surroundings.MovableClock) -> list[Callable[[Siege], Struck]]:
    offsets = (HOUR_S, -HOUR_S)
    wrong_for_a_while = [surroundings.move_clock(clock, seconds) for seconds in offsets]
    return [*wrong_for_a_while, *(surroundings.move_all_clocks(seconds) for seconds in offsets)]


def _disk(folder: Path, seed: int, share: float, told: Callable[[str], None]) -> Outcome:
    what = "not a byte is free for store and database for some seconds"
    try:
        with surroundings.small_disk(folder / "disk") as disk, Stand(disk) as stand:
            siege = Siege(stand, Random(seed), told)  # noqa: S311
            siege.learn_references()
            return siege.lay(DISK, what, [surroundings.fill_disk(disk)] * times(OTHERS, share))
    except subprocess.CalledProcessError as error:
        return _not_run(DISK, what, f"no file system can be mounted here: {error.stderr.decode().strip()}")


def _not_run(scenario: str, what: str, why: str) -> Outcome:
    """A scenario that could not be run counts as a problem: nobody should take it for passed."""
    problem = Problem(job=scenario, charge=Charge.LOST, text=f"not run: {why}")
    return Outcome(
        scenario=scenario, what=what, faults=0, jobs=0, recoveries_s=(), problems=(problem,), wall_s=0.0, notes=(why,)
    )


def times(count: int, share: float) -> int:
    """A share of so many, at least one."""
    return max(1, round(count * share))
