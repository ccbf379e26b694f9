"""A job's checkpoints in store and database together: found again, passed over when damaged, thinned out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from services.common.errors import Unavailable
from services.common.object_store import ObjectStore
from services.trainer.checkpoints.checkpoints import Checkpoints
from services.trainer.checkpoints.sets import CheckpointOfOtherBase
from services.trainer.checkpoints.state import RunState
from services.trainer.config import TrainConfig
from services.trainer.database.job_store import JobStore, LostJob
from services.trainer.jobs import CheckpointWritten, DatasetReference, Event, Job, JobWarning, NewJob
from services.trainer.milestones import MilestonesState
from services.trainer.results.job_files import checkpoints_prefix
from services.trainer.train import TrainingState
from tests.services.trainer.checkpoints.runs import FINGERPRINTS
from tests.services.trainer.database.test_job_store import take

HELD_S = 60.0


def state_at(step: int) -> RunState:
    """A small state after a step."""
    training = TrainingState(
        parameters={"w": torch.full((2,), float(step))}, optimizer={}, average=None, steps_done=step, skipped_in_a_row=0
    )
    milestones = MilestonesState(
        losses={}, best=None, to_beat=1.0, not_better=0, previewed=frozenset(), missed_in_a_row=0
    )
    return RunState(training=training, milestones=milestones, pissa_factors={}, skipped_steps=0)


class Bench:
    """A claimed job with its checkpoints, on a real store and database."""

    def __init__(self, store: ObjectStore, jobs: JobStore, job: Job) -> None:
        self.store, self.jobs, self.job = store, jobs, job
        self.checkpoints = self.of(job)

    def of(self, job: Job, store: ObjectStore | None = None, base: str = "b" * 64) -> Checkpoints:
        """The checkpoints as the holder of a claim has them."""

        def write_events(events: Sequence[Event]) -> None:
            self.jobs.claims.append(job, events)

        here = FINGERPRINTS.model_copy(update={"base": base})
        return Checkpoints(job, store or self.store, self.jobs.claims, write_events, here)

    def claimed_again(self) -> Job:
        """The job under its next epoch."""
        self.jobs.claims.release(self.job, "again")
        return take(self.jobs)

    def folders(self) -> list[str]:
        """Names of the sets of which anything is in the store."""
        prefix = checkpoints_prefix(self.job.tenant, self.job.job_id)
        return sorted({key.removeprefix(prefix).partition("/")[0] for key in self.store.keys(prefix)})

    def known(self) -> list[str]:
        """Identifiers of the checkpoints in the database, newest first."""
        return [each.checkpoint_id for each in self.jobs.claims.checkpoints(self.job)]

    def events(self, kind: type[Event]) -> list[Event]:
        """Events of a kind."""
        return [one.event for one in self.jobs.events_after(self.job.job_id, 0) if isinstance(one.event, kind)]

    def damage(self, checkpoint_id: str) -> None:
        """Cut a part of a set."""
        self.store.put(
            f"{checkpoints_prefix(self.job.tenant, self.job.job_id)}{checkpoint_id}/adapter.safetensors", b"cut"
        )


@pytest.fixture
def make_bench(store: ObjectStore, tenant: str, tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """Makes a bench whose job has these fields of its configuration."""
    jobs = JobStore(f"sqlite:///{tmp_path / 'jobs.sqlite'}")

    def make(**fields: object) -> Bench:
        dataset = DatasetReference(dataset_id="ds-1", manifest_digest="d" * 64)
        jobs.create(tenant, NewJob(dataset=dataset, config=TrainConfig.model_validate({"steps": 100, **fields})))
        return Bench(store, jobs, take(jobs))

    yield make
    jobs.close()


def step_of(state: RunState | None) -> int | None:
    """The step of a state that was found."""
    return state.training.steps_done if state else None


def test_job_without_checkpoints_begins_anew(make_bench: Callable[..., Bench]) -> None:
    assert make_bench().checkpoints.newest() is None


def test_next_claim_finds_the_newest(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    for step in (10, 20):
        bench.checkpoints.write(state_at(step), b"lora", 0.5)
    found = bench.of(bench.claimed_again()).newest()
    assert found
    assert found.training.steps_done == 20
    assert torch.equal(found.training.parameters["w"], torch.full((2,), 20.0))
    assert not bench.events(JobWarning)
    assert [event.checkpoint.held_out_loss for event in bench.events(CheckpointWritten)] == [0.5, 0.5]  # type: ignore[union-attr]


def test_damaged_one_is_passed_over_and_forgotten(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    for step in (10, 20):
        bench.checkpoints.write(state_at(step), b"lora", None)
    bench.damage("000020-1")
    assert step_of(bench.checkpoints.newest()) == 10
    assert bench.known() == ["000010-1"]
    (warning,) = bench.events(JobWarning)
    assert isinstance(warning, JobWarning)
    assert warning.reason == "CHECKPOINT_SKIPPED"
    assert "checkpoint 000020-1: adapter.safetensors is not what was written" in warning.message


def test_job_all_of_whose_checkpoints_are_damaged_begins_anew(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    for step in (10, 20):
        bench.checkpoints.write(state_at(step), b"lora", None)
        bench.damage(f"{step:06}-1")
    assert bench.checkpoints.newest() is None
    assert bench.known() == []
    assert len(bench.events(JobWarning)) == 2


def test_checkpoint_of_another_base_is_left_for_who_has_that(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    bench.checkpoints.write(state_at(10), b"lora", None)
    with pytest.raises(CheckpointOfOtherBase):
        bench.of(bench.job, base="0" * 64).newest()
    assert step_of(bench.checkpoints.newest()) == 10


def test_older_ones_make_room_in_store_and_database(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(checkpoints_kept=2, checkpoint_keep_interval_steps=20)
    for step, loss in ((10, 0.1), (20, 0.5), (25, 0.5), (30, 0.5), (35, 0.5)):
        bench.checkpoints.write(state_at(step), b"lora", loss)
    kept = ["000010-1", "000020-1", "000030-1", "000035-1"]
    assert bench.folders() == kept
    assert bench.known() == kept[::-1]
    assert len(bench.events(CheckpointWritten)) == 5


def test_writing_again_changes_nothing(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    first = bench.checkpoints.write(state_at(10), b"lora", None)
    objects = list(bench.store.listed(checkpoints_prefix(bench.job.tenant, bench.job.job_id)))
    assert bench.checkpoints.write(state_at(10), b"other", None) == first
    assert list(bench.store.listed(checkpoints_prefix(bench.job.tenant, bench.job.job_id))) == objects
    assert len(bench.events(CheckpointWritten)) == 1


class AwayOnDelete(ObjectStore):
    """A real store that once does not answer when something is to be deleted."""

    def __init__(self, store: ObjectStore) -> None:
        vars(self).update(vars(store))
        self._away = True

    def delete(self, key: str) -> None:
        """Fail once."""
        if self._away:
            self._away = False
            raise Unavailable(f"no answer for {key}", reason="STORE_UNAVAILABLE", remedy="Wait.")
        super().delete(key)


def test_what_could_not_be_deleted_is_deleted_when_it_is_tried_again(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(checkpoints_kept=1)
    bench.checkpoints.write(state_at(10), b"lora", None)
    checkpoints = bench.of(bench.job, AwayOnDelete(bench.store))
    with pytest.raises(Unavailable):
        checkpoints.write(state_at(20), b"lora", None)
    assert bench.folders() == ["000010-1", "000020-1"]
    checkpoints.write(state_at(20), b"lora", None)
    assert bench.folders() == bench.known() == ["000020-1"]
    assert len(bench.events(CheckpointWritten)) == 2


def test_worker_that_lost_the_job_writes_no_checkpoint(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    job = bench.claimed_again()
    with pytest.raises(LostJob):
        bench.checkpoints.write(state_at(10), b"lora", None)
    assert bench.of(job).newest() is None
