"""The short form of chaos: one fault of each quick kind upon one queue of jobs. The full form is `make chaos`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from tests.chaos import scenarios
from tests.chaos.kinds import ADAMW_8BIT, PRODIGY
from tests.chaos.siege import Siege, Struck
from tests.chaos.stand import Stand

SEED = 20261122
FAULTS: tuple[Callable[[Siege], Struck], ...] = (
    scenarios.kill_worker,
    scenarios.damage_newest_checkpoint,
    scenarios.stop_worker,
    scenarios.lock_database(3.0),
    scenarios.kill_store,
    scenarios.kill_server,
)


@pytest.fixture
def siege(tmp_path: Path) -> Iterator[Siege]:
    with Stand(tmp_path, workers=2) as stand:
        siege = Siege(stand, Random(SEED))  # noqa: S311
        siege.learn_references([ADAMW_8BIT, PRODIGY])
        yield siege


@pytest.mark.timeout(400)
def test_whatever_is_struck_no_job_is_lost_torn_or_changed(siege: Siege) -> None:
    outcome = siege.lay("short", "one fault of each kind", FAULTS, quiet_s=1.0)
    assert not [str(problem) for problem in outcome.problems]
    assert len(outcome.recoveries_s) == len(FAULTS)
    assert outcome.jobs > 3
