"""What happens between steps: the best adapter is kept, and a run ends when the held-out loss no longer falls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from diffusers import FluxTransformer2DModel

from services.trainer import reporter
from services.trainer.adapters.adapter import adapter_layers, attached
from services.trainer.adapters.files import AdapterSnapshot, snapshot
from services.trainer.config import TrainConfig
from services.trainer.database.job_store import JobStore
from services.trainer.encoder_link import EncoderAway
from services.trainer.jobs import DatasetReference, Job, JobWarning, NewJob, PreviewRendered, ValidationCompleted
from services.trainer.milestones import Milestones, StopEarly
from services.trainer.previews import Previews
from services.trainer.reporter import Reporter, StopWorker
from services.trainer.results.history import History
from services.trainer.settings import TrainerSettings
from services.trainer.train import NonFiniteLoss, Step, Training
from tests.services.trainer.database.test_job_store import take

CONFIG = TrainConfig(rank=1, alpha=1.0, steps=10, validation_interval_steps=1, gradient_checkpointing=False)


class Noted(Previews):
    """Previews that are not made, only noted: when they are asked for is the claim."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.away: set[int] = set()
        self.interrupted: set[int] = set()
        self.checks: list[Callable[[], None]] = []
        self.unread: list[str] = []

    def render(self, step: int, check: Callable[[], None]) -> list[PreviewRendered]:
        """Note the step and what would be called meanwhile; fails or is interrupted where it is told to be."""
        if step in self.interrupted:
            raise StopWorker
        self.steps.append(step)
        self.checks.append(check)
        if step in self.away:
            raise EncoderAway("the encoder does not answer", "Start it.")
        return []


class Clock:
    """Takes the place of `time`, and goes on when it is told to."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def monotonic(self) -> float:
        """The time now."""
        return self._now_s

    def go_on(self, seconds: float) -> None:
        """Let time pass."""
        self._now_s += seconds


class Run:
    """A run whose held-out losses are given: what it makes of them is the claim. Without losses none is measured."""

    def __init__(self, transformer: FluxTransformer2DModel, job: Job, jobs: JobStore, losses: Sequence[float]) -> None:
        self.jobs, self.job = jobs, job
        self.training = Training(transformer, job.config, 10)
        self.stop = threading.Event()
        self.reporter = Reporter(jobs.claims, job, TrainerSettings(), self.stop)
        self.reporter.total_steps = 10
        self.taken: list[AdapterSnapshot] = []
        self.modes: list[bool] = []
        self.previews = Noted()
        self.stopped_early = False
        self.while_measuring: Callable[[], None] = lambda: None
        coming = iter(losses)

        def measure() -> float:
            self.modes.append(any(layer.training for layer in adapter_layers(transformer).values()))
            self.while_measuring()
            return next(coming)

        def copy() -> AdapterSnapshot:
            self.taken.append(snapshot(transformer, job.config))
            return self.taken[-1]

        self.milestones = Milestones(
            self.training,
            job.config,
            self.reporter,
            History(),
            measure=measure if losses else None,
            snapshot=copy,
            previews=self.previews if job.config.preview_prompts else None,
        )

    def go(self, before_step: Callable[[], None] = lambda: None, *, after: int = 0) -> int:
        """Take the steps after one; return how many were taken in all."""
        one = torch.tensor(1.0)
        self.training.steps_done = after
        try:
            self.milestones.catch_up()
            for number in range(after + 1, 11):
                before_step()
                self.training.steps_done = number
                self.milestones.on_step(Step(number=number, loss=one, gradient_norm=one, learning_rate=1.0))
        except StopEarly:
            self.stopped_early = True
        return self.training.steps_done


@pytest.fixture
def make_run(transformer: FluxTransformer2DModel, job_store: JobStore) -> Iterator[object]:
    """Makes runs with an adapter attached."""
    with attached(transformer, CONFIG):

        def make(losses: Sequence[float], **fields: object) -> Run:
            config = CONFIG.model_copy(update=fields)
            job_store.create("t", NewJob(dataset=DatasetReference(dataset_id="ds-1"), config=config))
            return Run(transformer, take(job_store), job_store, losses)

        yield make


def test_best_measurement_is_kept_with_its_adapter(make_run) -> None:  # type: ignore[no-untyped-def]
    run = make_run([5.0, 4.0, 3.0, 3.5, 2.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0])
    assert run.go() == 10
    assert (run.milestones.best.step, run.milestones.best.loss) == (4, 2.0)
    assert run.milestones.best.snapshot is run.taken[-1]
    assert len(run.taken) == 4  # of the base, and after steps 1, 2 and 4


@pytest.mark.parametrize(
    ("losses", "fields", "ended"),
    [
        ([5.0, 4.0, 3.0, 3.5, 3.5], {"early_stopping_patience": 2}, 4),
        ([5.0, 4.0, 3.0, 3.5, 2.5, 2.6, 2.7], {"early_stopping_patience": 2}, 6),
        ([5.0, 4.99, 4.98, 4.97], {"early_stopping_patience": 3, "early_stopping_min_delta": 0.1}, 3),
        ([5.0, 5.0], {"early_stopping_patience": 1}, 1),
        ([5.0, 6.0, 6.0, 6.0, 6.0, 6.0, 6.0, 6.0, 6.0, 6.0, 6.0], {}, 10),
    ],
)
def test_run_ends_after_so_many_measurements_that_were_not_better(make_run, losses, fields, ended) -> None:  # type: ignore[no-untyped-def]
    assert make_run(losses, **fields).go() == ended


def test_slow_improvement_counts_from_the_last_one_that_was_enough(make_run) -> None:  # type: ignore[no-untyped-def]
    losses = [5.0, 4.95, 4.85, 4.8, 4.7, 4.6, 4.5, 4.4, 4.3, 4.2, 4.1]  # each pair of steps falls by more than 0.1
    run = make_run(losses, early_stopping_patience=2, early_stopping_min_delta=0.1)
    assert run.go() == 10


def test_losses_are_told_in_order_and_measured_without_dropout(make_run) -> None:  # type: ignore[no-untyped-def]
    run = make_run([3.0, 2.0, 1.0], steps=2, validation_interval_steps=5)
    run.reporter.total_steps = 2
    run.milestones.catch_up()
    run.milestones.on_step(Step(number=2, loss=torch.tensor(1.0), gradient_norm=torch.tensor(1.0), learning_rate=1.0))
    stored = [one.event for one in run.jobs.events_after(run.job.job_id, 0)]
    told = [(event.step, event.loss) for event in stored if isinstance(event, ValidationCompleted)]
    assert told == [(0, 3.0), (2, 2.0)]
    assert run.modes == [False, False]


def test_held_out_loss_that_is_not_finite_ends_the_run(make_run) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(NonFiniteLoss, match="held-out loss nan after step 0"):
        make_run([float("nan")]).go()


def test_of_equal_measurements_the_earlier_is_the_best(make_run) -> None:  # type: ignore[no-untyped-def]
    run = make_run([5.0, 4.0, 2.0, 3.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0])
    run.go()
    assert run.milestones.best.step == 2
    assert run.milestones.best.snapshot is run.taken[2]


def test_run_that_has_come_to_its_end_has_not_been_stopped(make_run) -> None:  # type: ignore[no-untyped-def]
    falling = [5.0, 4.9, 4.8, 4.7, 4.6, 4.5, 4.4, 4.3, 4.2]
    run = make_run([*falling, 4.5, 4.5], early_stopping_patience=2)
    assert (run.go(), run.stopped_early) == (10, False)
    run = make_run([*falling[:-1], 4.5, 4.5], early_stopping_patience=2)
    assert (run.go(), run.stopped_early) == (9, True)


@pytest.mark.parametrize(
    ("losses", "fields", "shown"),
    [
        ([], {"preview_interval_steps": 4}, [0, 4, 8, 10]),
        ([], {"preview_interval_steps": 5}, [0, 5, 10]),
        ([], {"preview_interval_steps": 11}, [0, 10]),
        ([], {}, [0, 3, 6, 9, 10]),
        ([5.0] * 5, {"preview_interval_steps": 3, "early_stopping_patience": 4}, [0, 3, 4]),
        ([5.0] * 5, {"preview_interval_steps": 4, "early_stopping_patience": 4}, [0, 4]),
    ],
)
def test_pictures_are_made_at_the_start_now_and_then_and_at_the_end(make_run, losses, fields, shown) -> None:  # type: ignore[no-untyped-def]
    run = make_run(losses, preview_prompts=("a cat",), **fields)
    run.go()
    assert run.previews.steps == shown
    assert set(run.previews.checks) == {run.reporter.check}


@pytest.mark.parametrize("losses", [[], [5.0] * 11])
def test_only_its_own_time_counts_as_a_steps(make_run, monkeypatch: pytest.MonkeyPatch, losses) -> None:  # type: ignore[no-untyped-def]
    clock = Clock()
    monkeypatch.setattr(reporter, "time", clock)
    run = make_run(losses, validation_interval_steps=5)
    run.while_measuring = lambda: clock.go_on(100)
    clock.go_on(50)  # for reading the data, say
    run.go(before_step=lambda: clock.go_on(1))
    assert run.reporter.durations_s == [1.0] * 10


@pytest.mark.parametrize(
    ("away", "asked"),
    [
        ({0, 2}, [0, 2, 10]),
        ({0, 2, 10}, [0, 2, 10]),
        ({0, 4}, [0, 2, 4, 6, 8, 10]),
        ({2, 4}, [0, 2, 4, 10]),
        ({0, 4, 6}, [0, 2, 4, 6, 10]),
    ],
)
def test_pictures_are_given_up_after_two_in_a_row_but_for_the_last(make_run, away, asked) -> None:  # type: ignore[no-untyped-def]
    run = make_run([], preview_prompts=("a cat",), preview_interval_steps=2)
    run.previews.away = away
    run.go()
    assert run.previews.steps == asked
    stored = [one.event for one in run.jobs.events_after(run.job.job_id, 0)]
    warnings = [event.message for event in stored if isinstance(event, JobWarning)]
    assert [f"after step {step}:" in message for step, message in zip(sorted(away), warnings, strict=True)]
    assert any("left out, but for the last" in message for message in warnings) == (2 * len(asked) - 2 < 10)


def interrupt(run: Run, what: str, at: int) -> None:
    """Have a run interrupted: while it measures or makes pictures after step `at`, or right after that step."""

    def while_measuring() -> None:
        if run.training.steps_done == at:
            raise StopWorker

    match what:
        case "measuring":
            run.while_measuring = while_measuring
        case "previewing":
            run.previews.interrupted = {at}
        case "step":
            original = run.reporter.on_step

            def on_step(step: Step) -> None:
                if step.number == at:
                    run.stop.set()
                original(step)

            run.reporter.on_step = on_step  # type: ignore[method-assign]


INTERRUPTIONS = [
    *(("measuring", at) for at in (0, 1, 4, 6)),
    *(("previewing", at) for at in (0, 2, 4, 6)),
    *(("step", at) for at in (1, 4, 6)),
]


@pytest.mark.parametrize(("what", "at"), INTERRUPTIONS)
@pytest.mark.parametrize("away", [set(), {2, 4}])
def test_run_that_is_interrupted_anywhere_goes_on_as_if_it_were_not(make_run, what, at, away) -> None:  # type: ignore[no-untyped-def]
    losses = [5.0, 4.9, 4.8, 4.7, 4.8, 4.9, 5.0]
    fields = {"early_stopping_patience": 3, "preview_prompts": ("a cat",), "preview_interval_steps": 2}
    whole, first = make_run(losses, **fields), make_run(losses, **fields)
    whole.previews.away = first.previews.away = away
    assert (whole.go(), whole.stopped_early) == (6, True)
    interrupt(first, what, at)
    with pytest.raises(StopWorker):
        first.go()
    state = first.milestones.state()
    second = make_run(losses[len(state.losses) :], **fields)
    second.previews.away = away
    second.milestones.load_state(state)
    assert (second.go(after=at), second.stopped_early) == (6, True)
    assert second.milestones.state().losses == whole.milestones.state().losses
    assert second.milestones.best.step == whole.milestones.best.step
    assert first.previews.steps + second.previews.steps == whole.previews.steps
    assert ends_of(second) == ends_of(whole)


def ends_of(run: Run) -> tuple[object, ...]:
    """What a run would go on from, but for the adapter."""
    state = run.milestones.state()
    return state.to_beat, state.not_better, state.previewed, state.missed_in_a_row


def test_run_that_was_interrupted_before_its_early_end_is_told_so_at_once(make_run) -> None:  # type: ignore[no-untyped-def]
    fields = {"early_stopping_patience": 1, "preview_prompts": ("a cat",), "preview_interval_steps": 4}
    first = make_run([5.0, 6.0], **fields)
    first.previews.interrupted = {1}  # it would be the last
    with pytest.raises(StopWorker):
        first.go()
    second = make_run([9.0], **fields)
    second.milestones.load_state(first.milestones.state())
    assert (second.go(after=1), second.stopped_early) == (1, True)
    assert second.modes == []  # what was measured stays so
    assert second.previews.steps == [1]


def test_state_stays_as_it_was_while_the_run_goes_on(make_run) -> None:  # type: ignore[no-untyped-def]
    run = make_run([5.0] * 11, preview_prompts=("a cat",))
    run.milestones.catch_up()
    state = run.milestones.state()
    run.go(after=0)
    assert (dict(state.losses), state.previewed, state.not_better) == ({0: 5.0}, {0}, 0)


def test_catching_up_again_does_nothing(make_run) -> None:  # type: ignore[no-untyped-def]
    run = make_run([5.0], preview_prompts=("a cat",))
    run.milestones.catch_up()
    run.milestones.catch_up()
    assert (run.milestones.losses, run.previews.steps) == ({0: 5.0}, [0])


def test_words_of_prompts_that_nobody_reads_are_told_once(make_run) -> None:  # type: ignore[no-untyped-def]
    run = make_run([], preview_prompts=("a",), preview_interval_steps=5)
    run.previews.unread = ["'\u043a\u043e\u0442': T5 has no token for it"]
    run.go()
    assert len(run.previews.steps) == 3
    events = [stored.event for stored in run.jobs.events_after(run.job.job_id, 0)]
    told = [(event.reason, event.message) for event in events if isinstance(event, JobWarning)]
    assert told == [("PROMPT_NOT_READ", "preview prompt '\u043a\u043e\u0442': T5 has no token for it")]
