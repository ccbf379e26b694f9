"""Records of a job that goes on are those of one that was never left."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from services.common.object_store import ObjectStore
from services.trainer.config import TrainConfig
from services.trainer.database.job_store import JobStore
from services.trainer.encoder_link import EncoderLink
from services.trainer.jobs import (
    Artifact,
    ArtifactPublished,
    DatasetReference,
    Event,
    Job,
    JobWarning,
    NewJob,
    PreviewRendered,
    StoredEvent,
    ValidationCompleted,
)
from services.trainer.reporter import Reporter
from services.trainer.results.example import Sampling
from services.trainer.results.records import Records
from services.trainer.settings import TrainerSettings
from tests.services.trainer.database.test_job_store import take
from tests.services.trainer.results.test_history import png_of, steps_of

PROMPT = "red apple"
CONFIG = TrainConfig(steps=100, preview_prompts=(PROMPT,), preview_interval_steps=2)
WARNING = JobWarning(reason="SHORT_RUN", message="100 steps")


class Bench:
    """A claimed job, and what its records are made of."""

    def __init__(self, store: ObjectStore, jobs: JobStore, job: Job) -> None:
        self.store, self.jobs, self.job = store, jobs, job
        stored = store.put(f"{job.tenant}/preview.png", png_of(8))
        self.image = Artifact(
            artifact_name="previews/000002-0.png",
            uri=store.uri(stored.key),
            size_bytes=stored.size_bytes,
            content_digest=stored.digest,
        )

    def records(self) -> tuple[Records, Reporter]:
        """Records of a worker that has just claimed the job, and its reporter."""
        reporter = Reporter(self.jobs.claims, self.job, TrainerSettings(), threading.Event())
        link = EncoderLink("127.0.0.1:9", self.job.tenant)
        return Records(self.job, self.store, reporter, link, Sampling()), reporter

    def replayed(self, step: int) -> Records:
        """Records that begin with what was told up to a step."""
        records, _ = self.records()
        records.replay(self.stored(), step)
        return records

    def stored(self) -> list[StoredEvent]:
        """Everything that was told."""
        return list(self.jobs.events_after(self.job.job_id, 0))

    def told(self, step: int) -> list[Event]:
        """What a worker tells of the steps up to one; pictures and measurements of every second."""
        events: list[Event] = [WARNING, ValidationCompleted(step=0, loss=9.0)]
        for number in range(1, step + 1):
            events.append(steps_of(float(number), first=number))
            if number % 2 == 0:
                events.append(ValidationCompleted(step=number, loss=9.0 - number))
                events.append(PreviewRendered(step=number, prompt=PROMPT, seed=0, image=self.image))
        published = self.image.model_copy(update={"artifact_name": "metrics.csv"})
        return [*events, ArtifactPublished(artifact=published)]


@pytest.fixture
def bench(store: ObjectStore, tenant: str, tmp_path: Path) -> Iterator[Bench]:
    """A job on a real store and database."""
    jobs = JobStore(f"sqlite:///{tmp_path / 'jobs.sqlite'}")
    jobs.create(tenant, NewJob(dataset=DatasetReference(dataset_id="ds-1", manifest_digest="0" * 64), config=CONFIG))
    yield Bench(store, jobs, take(jobs))
    jobs.close()


def told_of(records: Records) -> tuple[object, ...]:
    """Everything that table and report show."""
    history = records.history
    pictures = [(preview.step, preview.picture) for preview in history.previews]
    return history.metrics_csv(), history.warnings, history.held_out, history.total_steps, pictures, records.artifacts


def test_replayed_records_are_those_that_heard_it_all(bench: Bench) -> None:
    heard, reporter = bench.records()
    reporter.write(bench.told(4))
    replayed = bench.replayed(4)
    assert told_of(replayed) == told_of(heard)
    assert replayed.history.durations_s.tolist() == [0.5] * 4
    assert len(replayed.history.previews) == 2


def test_what_came_after_the_checkpoint_is_left_out_since_it_comes_again(bench: Bench) -> None:
    _, reporter = bench.records()
    reporter.write(bench.told(6))
    heard = bench.replayed(3)
    assert heard.history.steps.tolist() == [1, 2, 3]
    assert sorted(heard.history.held_out) == [0, 2]
    assert [preview.step for preview in heard.history.previews] == [2]


def test_job_that_goes_on_ends_with_the_records_of_one_that_was_never_left(bench: Bench) -> None:
    whole, _ = bench.records()
    for event in bench.told(6):
        whole._hear(event)
    _, reporter = bench.records()
    reporter.write(bench.told(5))  # lost now; the checkpoint was after step 3
    second, reporter = bench.records()
    second.replay(bench.stored(), 3)
    reporter.write([event for event in bench.told(6) if _after(event, 3)])
    assert told_of(second) == told_of(whole)
    assert told_of(bench.replayed(6)) == told_of(whole)  # also by who takes over from that one


def _after(event: Event, step: int) -> bool:
    match event:
        case ValidationCompleted() | PreviewRendered():
            return event.step > step
        case JobWarning() | ArtifactPublished():
            return True
    return event.steps[0].step > step  # type: ignore[union-attr]


def test_event_file_has_the_times_at_which_it_was_told(bench: Bench, tmp_path: Path) -> None:
    _, reporter = bench.records()
    reporter.write(bench.told(2))
    name, data = bench.replayed(2)._event_file.content()
    (tmp_path / name).write_bytes(data)
    found = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    at_s = {
        stored.event.step: stored.time_s for stored in bench.stored() if isinstance(stored.event, ValidationCompleted)
    }
    assert {point.step: point.wall_time for point in found.Scalars("held_out/loss")} == at_s
    assert [point.value for point in found.Scalars("train/loss")] == [1.0, 2.0]


def test_warning_that_comes_again_is_shown_once(bench: Bench, tmp_path: Path) -> None:
    records, reporter = bench.records()
    reporter.write([WARNING, WARNING])
    name, data = records._event_file.content()
    (tmp_path / name).write_bytes(data)
    found = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0})
    found.Reload()
    assert len(found.Tensors("warnings/text_summary")) == 1
