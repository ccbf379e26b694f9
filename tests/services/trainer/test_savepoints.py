"""When a run writes a checkpoint, and what becomes of one that cannot be written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
import safetensors.torch
import torch
from diffusers import FluxTransformer2DModel

from services.common.errors import Unavailable
from services.trainer.adapters.adapter import attached
from services.trainer.adapters.files import adapter_form
from services.trainer.checkpoints.savepoints import Savepoints
from services.trainer.checkpoints.state import RunState
from services.trainer.config import TrainConfig
from services.trainer.config.choices import FileDtype
from services.trainer.jobs import DatasetReference, Event, Job, JobState, JobWarning
from services.trainer.milestones import Milestones
from services.trainer.results.history import History
from services.trainer.train import Training
from tests.services.trainer.checkpoints import conftest

two_blocks = conftest.two_blocks
CONFIG = TrainConfig(rank=2, steps=20, file_dtype=FileDtype.FP16, gradient_checkpointing=False)
JOB = Job(
    dataset=DatasetReference(dataset_id="ds-1"),
    config=CONFIG,
    job_id="job-1",
    tenant="t",
    state=JobState.RUNNING,
    create_time_s=0.0,
    start_time_s=0.0,
    end_time_s=None,
    step=0,
    total_steps=20,
    attempt=1,
    epoch=1,
    failure=None,
    result=None,
    last_sequence=1,
)
T = TypeVar("T")


@dataclass
class Told:
    """What a reporter is told and says, without a job behind it."""

    served_s: float = 0.0
    checkpoint_wanted: bool = False
    total_steps: int = 20
    skipped_steps: int = 2
    log: list[str] = field(default_factory=list)

    def flush(self) -> None:
        self.log.append("flush")

    def write(self, events: Sequence[Event]) -> None:
        self.log += [event.reason for event in events if isinstance(event, JobWarning)]

    def patiently(self, action: Callable[[], T]) -> T:
        self.log.append("patiently")
        return action()

    def checkpoint_written(self) -> None:
        self.log.append("written")
        self.checkpoint_wanted = False


class Kept:
    """Keeps what would be written."""

    def __init__(self) -> None:
        self.written: list[tuple[RunState, bytes, float | None]] = []
        self.error: Exception | None = None

    def write(self, state: RunState, lora: bytes, held_out_loss: float | None) -> None:
        if self.error:
            raise self.error
        self.written.append((state, lora, held_out_loss))


@dataclass
class Run:
    """A run with savepoints."""

    training: Training
    told: Told
    kept: Kept
    make: Callable[..., Savepoints]

    def due_at(self, steps: Sequence[int], **changed: Any) -> list[int]:
        """Those of the steps after which one is due."""
        savepoints, due = self.make(CONFIG.model_copy(update=changed)), []
        for self.training.steps_done in steps:
            due += [self.training.steps_done] * savepoints.due()
        return due


@pytest.fixture
def run(two_blocks: FluxTransformer2DModel) -> Iterator[Run]:
    """A run that has taken seven steps."""
    with attached(two_blocks, CONFIG):
        training, told, kept = Training(two_blocks, CONFIG, 20), Told(), Kept()
        training.steps_done = 7
        reporter: Any = told
        checkpoints: Any = kept
        unused: Any = None
        milestones = Milestones(training, CONFIG, reporter, History(), measure=None, snapshot=unused, previews=None)
        milestones.losses[7] = 0.25

        def make(config: TrainConfig, *, lost: int = 0) -> Savepoints:
            form = adapter_form(two_blocks, config)
            provenance = {"fluxsmith.version": "x"}
            job = JOB.model_copy(update={"config": config, "lost": lost})
            return Savepoints(
                training, milestones, reporter, checkpoints, job, form=form, provenance=provenance, interval_s=300.0
            )

        yield Run(training, told, kept, make)


def test_interval_of_steps_rules_when_there_is_one(run: Run) -> None:
    run.told.served_s = 9999.0
    assert run.due_at(range(1, 21), checkpoint_interval_steps=6) == [6, 12, 18]


def test_last_step_is_not_written_unless_it_is_to_be_kept(run: Run) -> None:
    assert run.due_at(range(1, 21), checkpoint_interval_steps=5) == [5, 10, 15]
    kept = {"checkpoint_interval_steps": 15, "checkpoint_keep_interval_steps": 10}
    assert run.due_at(range(1, 21), **kept) == [10, 15, 20]


def test_one_that_was_asked_for_is_due_at_once_and_at_the_last_step(run: Run) -> None:
    run.told.checkpoint_wanted = True
    assert run.due_at([1, 20], checkpoint_interval_steps=6) == [1, 20]


def test_without_a_word_seconds_on_the_base_rule(run: Run) -> None:
    savepoints = run.make(CONFIG)
    due = []
    for served_s in (299.0, 300.0, 310.0, 599.0, 600.0):
        run.told.served_s, run.training.steps_done = served_s, run.training.steps_done + 1
        due.append(savepoints.due())
        if due[-1]:
            savepoints.write()
    assert due == [False, True, False, False, True]


def test_what_is_written_is_the_run_with_its_lora(run: Run) -> None:
    run.make(CONFIG).write()
    ((state, lora, held_out_loss),) = run.kept.written
    assert (state.training.steps_done, state.skipped_steps, held_out_loss) == (7, 2, 0.25)
    assert b'"fluxsmith.step":"7"' in lora
    assert b'"fluxsmith.version":"x"' in lora
    assert run.told.log == ["flush", "patiently", "written"]


def test_step_is_written_once_and_asked_for_again_is_answered(run: Run) -> None:
    savepoints = run.make(CONFIG)
    savepoints.write()
    savepoints.write()
    assert (len(run.kept.written), run.told.log.count("written")) == (1, 2)
    run.training.steps_done = 8
    savepoints.write()
    assert [state.training.steps_done for state, _, _ in run.kept.written] == [7, 8]


def test_step_that_the_run_goes_on_from_is_not_written_again(run: Run) -> None:
    savepoints = run.make(CONFIG)
    savepoints.goes_on()
    savepoints.write()
    assert run.kept.written == []


def test_impatient_one_that_fails_is_not_noted_as_written(run: Run) -> None:
    savepoints = run.make(CONFIG)
    run.kept.error = Unavailable("no", reason="STORE_UNAVAILABLE", remedy="wait")
    with pytest.raises(Unavailable):
        savepoints.write(patient=False)
    assert run.told.log == ["flush"]
    run.kept.error = None
    savepoints.write(patient=False)
    assert len(run.kept.written) == 1


def test_adapter_too_large_for_its_file_is_kept_in_fp32(run: Run) -> None:
    name, parameter = next(iter(run.training.parameters.items()))
    with torch.no_grad():
        parameter.fill_(1e5)  # FP16 ends at 65504
    run.make(CONFIG).write()
    ((state, lora, _),) = run.kept.written
    assert {tensor.dtype for tensor in safetensors.torch.load(lora).values()} == {torch.float32}
    assert float(state.training.parameters[name].max()) == 1e5


def test_adapter_that_is_not_finite_is_told_and_not_written(run: Run) -> None:
    with torch.no_grad():
        next(iter(run.training.parameters.values())).fill_(float("nan"))
    savepoints = run.make(CONFIG)
    savepoints.write()
    savepoints.write()
    assert run.kept.written == []
    assert run.told.log.count("CHECKPOINT_SKIPPED") == 1


def test_job_over_which_a_worker_was_lost_writes_its_first_checkpoint_soon(run: Run) -> None:
    lost = {"checkpoint_interval_steps": 1000}
    run.told.served_s = 0.0
    savepoints = run.make(CONFIG.model_copy(update=lost), lost=1)
    due = []
    for step in (1, 2, 3):
        run.training.steps_done = step
        run.told.served_s = 6.0 * step
        due.append(savepoints.due())
        if due[-1]:
            savepoints.write()
    assert due == [False, True, False]
