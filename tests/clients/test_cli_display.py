"""Progress: the figures from the steps, and plain lines where there is no terminal."""

import dataclasses
from io import StringIO

import pytest
from fluxsmith import (
    Artifact,
    Checkpoint,
    CheckpointWritten,
    DatasetPhase,
    DatasetProgress,
    EncodingProgress,
    Event,
    JobState,
    JobWarning,
    PreviewRendered,
    StateChanged,
    StepMetrics,
    StepsCompleted,
    TrainConfig,
    TrainingJob,
    ValidationCompleted,
)
from fluxsmith.cli.display import BarDisplay, LineDisplay, display_for
from fluxsmith.cli.meter import TrainingMeter
from rich.cells import cell_len
from rich.console import Console


def steps(*numbers: int, loss: float = 1.0, duration_s: float = 0.5, total: int = 100) -> StepsCompleted:
    metrics = tuple(
        StepMetrics(step=number, loss=loss, learning_rate=1e-4, gradient_norm=1.0, duration_s=duration_s)
        for number in numbers
    )
    return StepsCompleted(sequence=1, steps=metrics, total_steps=total)


def test_meter_gives_loss_speed_and_time_left() -> None:
    meter = TrainingMeter()
    meter.take(steps(1, 2, 3, 4))
    assert meter.loss == "loss 1.0000 (mean of last 4)"
    assert meter.step_s == pytest.approx(0.5)
    assert meter.left_s == pytest.approx(48.0)
    assert str(meter) == "loss 1.0000 (mean of last 4)  0.50 s/step  48 s left"


def test_loss_is_the_mean_of_the_steps_that_its_name_says() -> None:
    meter = TrainingMeter()
    for number in range(1, 101):
        meter.take(steps(number, loss=10.0 - 0.05 * number))
    assert meter.loss == f"loss {10.0 - 0.05 * (81 + 100) / 2:.4f} (mean of last 20)"


def test_losses_of_steps_that_are_done_again_do_not_count() -> None:
    meter = TrainingMeter()
    meter.take(steps(*range(1, 91), loss=9.0))
    meter.take(steps(51, 52, loss=3.0))
    assert meter.loss == "loss 3.0000 (mean of last 2)"


def test_slow_first_step_is_forgotten() -> None:
    meter = TrainingMeter()
    meter.take(steps(1, duration_s=60.0))
    meter.take(steps(*range(2, 30), duration_s=0.1))
    assert meter.step_s == pytest.approx(0.1)


def test_time_left_counts_from_the_checkpoint_after_a_lost_worker() -> None:
    meter = TrainingMeter()
    meter.take(steps(*range(1, 91)))
    meter.take(steps(51))
    assert meter.left_s == pytest.approx(24.5)


def test_time_left_is_the_trainers_own_where_it_has_told_one() -> None:
    meter = TrainingMeter()
    job = TrainingJob(id="j", state=JobState.RUNNING, config=TrainConfig(), dataset_id="d", step=10, total_steps=100)
    meter.hear(dataclasses.replace(job, time_left_s=180.0))
    meter.take(steps(11, 12, 13))
    assert meter.step_s == pytest.approx(0.5)
    assert meter.left_s == pytest.approx(174.0)
    meter.hear(job)
    assert meter.left_s == pytest.approx(43.5)


def skipped(number: int) -> StepsCompleted:
    event = steps(number, loss=float("nan"))
    return dataclasses.replace(event, steps=(dataclasses.replace(event.steps[0], skipped=True),))


def test_skipped_steps_are_counted_and_leave_the_loss_alone() -> None:
    meter = TrainingMeter()
    for event in (steps(1), skipped(2), skipped(3), steps(4)):
        meter.take(event)
    assert str(meter) == "loss 1.0000 (mean of last 2)  0.50 s/step  48 s left  2 skipped"


def test_meter_without_any_loss_still_tells_the_speed() -> None:
    meter = TrainingMeter()
    meter.take(skipped(1))
    assert str(meter) == "0.50 s/step  50 s left  1 skipped"


def test_meter_is_silent_before_the_first_step() -> None:
    assert str(TrainingMeter()) == ""


def test_bars_are_for_terminals_only() -> None:
    assert isinstance(display_for(Console(file=StringIO())), LineDisplay)
    assert isinstance(display_for(Console(file=StringIO(), force_terminal=True)), BarDisplay)


def test_lines_come_now_and_then_but_the_last_step_always() -> None:
    out = StringIO()
    display = LineDisplay(Console(file=out), clock=lambda: 0.0)
    for number in range(1, 101):
        display.event(steps(number))
    lines = out.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 1 of 100", "step 100 of 100"]


def test_last_step_is_told_before_the_end_without_a_time_left() -> None:
    out = StringIO()
    display = LineDisplay(Console(file=out), clock=lambda: 0.0)
    for number in (1, 2, 3):
        display.event(steps(number))
    display.event(StateChanged(sequence=2, state=JobState.CANCELLED))
    assert out.getvalue().splitlines() == [
        "step 1 of 100  loss 1.0000 (last step)  0.50 s/step  50 s left",
        "step 3 of 100  loss 1.0000 (mean of last 3)  0.50 s/step",
        "cancelled",
    ]


def test_last_step_that_was_shown_is_not_told_again() -> None:
    out = StringIO()
    display = LineDisplay(Console(file=out), clock=lambda: 0.0)
    display.event(StateChanged(sequence=1, state=JobState.FAILED))
    assert out.getvalue() == "failed\n"
    display.event(steps(100))
    display.event(StateChanged(sequence=3, state=JobState.SUCCEEDED))
    assert out.getvalue().count("step 100 of 100") == 1


@pytest.mark.parametrize("terminal", [False, True])
def test_steps_of_the_past_have_no_time_left(terminal: bool) -> None:
    out = StringIO()
    with display_for(Console(file=out, force_terminal=terminal, width=120)) as display:
        display.event(steps(1), past=True)
    assert "0.50 s/step" in out.getvalue()
    assert "left" not in out.getvalue()


def test_bar_of_an_ended_job_has_no_time_left() -> None:
    out = StringIO()
    with BarDisplay(Console(file=out, force_terminal=True, width=120)) as display:
        display.event(steps(1))
        display.event(StateChanged(sequence=2, state=JobState.CANCELLED))
    drawn_last = out.getvalue().rpartition("train")[2]
    assert "0.50 s/step" in drawn_last
    assert "left" not in drawn_last


def test_held_out_loss_warnings_and_states_are_always_told() -> None:
    out = StringIO()
    display = LineDisplay(Console(file=out), clock=lambda: 0.0)
    display.event(StateChanged(sequence=1, state=JobState.RUNNING))
    display.event(ValidationCompleted(sequence=2, step=0, loss=1.5))
    display.event(ValidationCompleted(sequence=3, step=10, loss=1.25, held_out_loss_zero=2.5))
    display.event(JobWarning(sequence=4, reason="SHORT_RUN", message="only [10] steps"))
    assert out.getvalue().splitlines() == [
        "running",
        "held-out loss 1.5000 before the first step",
        "held-out loss 1.2500 after step 10 (predicting nothing 2.5000)",
        "warning: only [10] steps",
    ]


@pytest.mark.parametrize("terminal", [False, True])
def test_checkpoints_are_told_shortly(terminal: bool) -> None:
    out = StringIO()
    file = Artifact(artifact_name="checkpoints/5-1/lora.safetensors", uri="s3://b/k", size_bytes=1, content_digest="0")
    checkpoint = Checkpoint(id="5-1", step=5, uri="s3://b/m", size_bytes=1, lora=file)
    with display_for(Console(file=out, force_terminal=terminal, width=120, highlight=False)) as display:
        display.event(CheckpointWritten(sequence=1, checkpoint=checkpoint))
    assert "checkpoint after step 5\n" in out.getvalue().replace(" \n", "\n")


def test_place_in_the_queue_is_a_line_only_when_it_changes() -> None:
    out = StringIO()
    display = LineDisplay(Console(file=out), clock=lambda: 0.0)
    for ahead in (2, 2, 1, 0):
        display.queued(ahead)
    assert out.getvalue().splitlines() == ["queued: 2 jobs ahead", "queued: 1 job ahead", "queued: next in line"]


def test_bar_of_a_job_that_stands_still_says_so_in_place_of_figures() -> None:
    out = StringIO()
    with BarDisplay(Console(file=out, force_terminal=True, width=120)) as display:
        display.event(steps(1, 2))
        display.event(StateChanged(sequence=3, state=JobState.PAUSED))
    assert "paused" in out.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_previews_are_told_with_their_name_and_address(terminal: bool) -> None:
    out = StringIO()
    image = Artifact(artifact_name="previews/5-1.png", uri="s3://b/k", size_bytes=1, content_digest="0")
    with display_for(Console(file=out, force_terminal=terminal, width=120, highlight=False)) as display:
        event = PreviewRendered(sequence=1, step=5, prompt="a [cat]", seed=0, image=image)
        display.preview(event, lambda: "http://store/5-1")
    assert "preview after step 5: previews/5-1.png (a [cat])" in out.getvalue()
    assert ("http://store/5-1" if terminal else "s3://b/k") in out.getvalue()


def test_dataset_progress_names_phase_and_cache() -> None:
    out = StringIO()
    show = LineDisplay(Console(file=out), clock=lambda: 0.0).dataset("ink")
    show(DatasetProgress(phase=DatasetPhase.UPLOAD, done_count=24, total_count=24))
    show(DatasetProgress(phase=DatasetPhase.ENCODE, done_count=24, total_count=24, cached_count=20))
    assert out.getvalue().splitlines() == [
        "upload ink: 24 of 24 samples",
        "encode ink: 24 of 24 samples, 20 from the cache",
    ]


MOVING = DatasetProgress(
    phase=DatasetPhase.ENCODE,
    done_count=12,
    total_count=40,
    encoding=EncodingProgress(done_count=12, samples_per_s=3.12, remaining_s=9.0, written_bytes=12_000_000),
)


def test_line_of_an_encoding_has_speed_time_left_and_bytes() -> None:
    out = StringIO()
    LineDisplay(Console(file=out), clock=lambda: 0.0).dataset("ink")(MOVING)
    assert out.getvalue() == "encode ink: 12 of 40 samples, 9 s left, 3.1 a second, 12.0 MB written\n"


def test_end_of_an_encoding_is_told_once() -> None:
    out = StringIO()
    show = LineDisplay(Console(file=out), clock=lambda: 0.0).dataset("ink")
    last = dataclasses.replace(MOVING, done_count=40)
    for progress in (MOVING, last, last, dataclasses.replace(last, encoding=None)):
        show(progress)
    lines = [line.partition(",")[0] for line in out.getvalue().splitlines()]
    assert lines == ["encode ink: 12 of 40 samples", "encode ink: 40 of 40 samples"]


@pytest.mark.parametrize("width", [80, 120])
def test_bar_of_an_encoding_has_speed_time_left_and_bytes(width: int) -> None:
    out = StringIO()
    with BarDisplay(Console(file=out, force_terminal=True, width=width)) as display:
        display.dataset("ink")(MOVING)
    assert "12/40" in out.getvalue()
    assert "9 s left, 3.1 a second, 12.0 MB written" in out.getvalue()


def test_bar_shows_steps_and_figures() -> None:
    out = StringIO()
    with BarDisplay(Console(file=out, force_terminal=True, width=120)) as display:
        display.event(StateChanged(sequence=1, state=JobState.QUEUED))
        display.event(steps(1, 2))
    assert "2/100" in out.getvalue()
    assert "loss 1.0000" in out.getvalue()


def drawn_last(width: int, *events: Event) -> str:
    """The line that a bar leaves on a terminal of this width, without color."""
    out = StringIO()
    with BarDisplay(Console(file=out, force_terminal=True, width=width, color_system=None)) as display:
        for event in events:
            display.event(event)
    lines = [line for line in out.getvalue().rpartition("\x1b[2K")[2].splitlines() if "train" in line]
    assert len(lines) == 1, lines
    assert cell_len(lines[0]) == width
    return lines[0].rstrip()


@pytest.mark.parametrize("width", [120, 80, 60, 40])
def test_bar_keeps_progress_and_time_left_on_one_line_of_any_width(width: int) -> None:
    line = drawn_last(width, steps(*range(1, 484), duration_s=0.5, total=1000))
    assert line.startswith("train 483/1000 ")
    assert "4:18 min left" in line
    assert ("loss 1.0000 (mean of last 20)" in line) is (width >= 60)
    assert "…" not in line


@pytest.mark.parametrize("width", [80, 60, 40])
@pytest.mark.parametrize(
    ("state", "said"),
    [
        (JobState.SUCCEEDED, "ended early at step 60 of 100"),
        (JobState.FAILED, "failed at step 60 of 100"),
        (JobState.CANCELLED, "cancelled at step 60 of 100"),
    ],
)
def test_bar_of_a_run_that_ended_early_says_so(state: JobState, said: str, width: int) -> None:
    line = drawn_last(width, steps(*range(1, 61)), StateChanged(sequence=2, state=state))
    assert line.startswith("train")
    assert said in line
    assert "left" not in line
    assert "60/100" not in line


def test_bar_of_a_run_that_ended_early_is_full_and_stands_still() -> None:
    out = StringIO()
    display = BarDisplay(Console(file=out, force_terminal=True, width=120))
    display.event(steps(*range(1, 61)))
    display.event(StateChanged(sequence=2, state=JobState.SUCCEEDED))
    (task,) = display._progress.tasks
    assert (task.percentage, task.finished, task.fields["moves"]) == (100, True, False)
