"""What a notebook shows of a job: drawn from its events, escaped, in the place of the last drawing."""

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
from fluxsmith import (
    Dataset,
    DatasetState,
    JobState,
    JobWarning,
    PreviewRendered,
    SampleProblem,
    SampleProblemReason,
    StepMetrics,
    StepsCompleted,
    TrainConfig,
    TrainingJob,
    TrainingResult,
    ValidationCompleted,
)
from fluxsmith._curve import loss_curve, smoothed
from fluxsmith._html import job_card
from fluxsmith.artifacts import Artifact
from fluxsmith.notebook import JobView
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import RichOutput, capture_output

JOB = TrainingJob(
    id="job-1",
    name="<ink>",
    state=JobState.RUNNING,
    config=TrainConfig(),
    dataset_id="ds-1",
    step=2,
    total_steps=4,
    time_left_s=83.4,
)


def steps(*losses: float) -> StepsCompleted:
    told = [
        StepMetrics(step=at, loss=loss, learning_rate=1e-4, gradient_norm=1.0, duration_s=0.1)
        for at, loss in enumerate(losses, start=1)
    ]
    return StepsCompleted(sequence=1, steps=tuple(told), total_steps=4)


def preview(sequence: int, step: int) -> PreviewRendered:
    image = Artifact(artifact_name="previews/a.png", uri="", size_bytes=1, content_digest="")
    return PreviewRendered(sequence=sequence, step=step, prompt="a <cat>", seed=0, image=image)


@pytest.fixture(autouse=True)
def shell() -> Iterator[None]:
    InteractiveShell.instance()
    yield
    InteractiveShell.clear_instance()


@pytest.fixture
def view() -> JobView:
    return JobView()


def drawn(view: JobView, job: TrainingJob = JOB) -> Iterator[str]:
    with capture_output() as captured:
        view.draw(job)
    outputs: list[RichOutput] = captured.outputs
    yield from (output.data["text/html"] for output in outputs)


def test_figures_losses_and_warnings_are_shown_escaped(view: JobView) -> None:
    view.take(steps(1.0, 3.0))
    view.take(ValidationCompleted(sequence=2, step=2, loss=0.75))
    view.take(JobWarning(sequence=3, reason="X", message="<script>"))
    (html,) = drawn(view)
    assert "&lt;ink&gt;" in html
    assert "warning: &lt;script&gt;" in html
    assert "<script>" not in html
    mean = "loss 2.0000 (mean of last 2)"
    for fact in ("running", "step 2 of 4", "0:01:23 left", mean, "held-out loss 0.7500", "width:50.0%"):
        assert fact in html


def test_losses_of_steps_that_are_done_again_do_not_count(view: JobView) -> None:
    view.take(steps(9.0, 9.0, 9.0))
    view.take(steps(1.0, 2.0))
    (html,) = drawn(view)
    assert "loss 1.5000 (mean of last 2)" in html


def test_newest_preview_of_each_prompt_is_shown(view: JobView) -> None:
    view.take(preview(1, step=0))
    view.take(preview(2, step=2))
    (missing,) = view.missing_pictures()
    assert missing.step == 2
    view.put_picture(missing, b"png")
    _, strip = drawn(view)
    assert "step 2: a &lt;cat&gt;" in strip
    assert strip.count("<img") == 1
    assert not view.missing_pictures()


def test_what_has_not_changed_is_not_drawn_again(view: JobView) -> None:
    assert len(list(drawn(view))) == 1
    assert not list(drawn(view))


def test_drawings_are_a_second_apart() -> None:
    now = [10.0]
    view = JobView(clock=lambda: now[0])
    assert view.is_due()
    list(drawn(view))
    assert not view.is_due()
    now[0] += 1.0
    assert view.is_due()


def test_without_a_notebook_it_is_lines(view: JobView, capsys: pytest.CaptureFixture[str]) -> None:
    InteractiveShell.clear_instance()
    view.draw(JOB)
    assert capsys.readouterr().out == "<ink>: running, step 2 of 4, 0:01:23 left\n"


def test_table_of_a_dataset_names_its_first_problems_escaped() -> None:
    problem = SampleProblem(sample_name="<a>.png", reason=SampleProblemReason.TRUNCATED, message="it ends early")
    dataset = Dataset(id="ds-1", name="<ink>", state=DatasetState.FAILED, problems=(problem,) * 7, problem_count=9)
    html = dataset._repr_html_()
    assert html.count("&lt;a&gt;.png: it ends early") == 5
    assert "and 4 more problems" in html
    assert "<ink>" not in html


def test_table_of_a_job_tells_its_losses() -> None:
    result = TrainingResult(
        lora_uri="s3://b/k", lora_bytes=1, lora_digest="", held_out_loss_base=2.0, held_out_loss_lora=1.0
    )
    html = job_card(replace(JOB, state=JobState.SUCCEEDED, result=result))
    assert "last step 2: 1.0000 (base 2.0000)" in html
    assert "s3://b/k" in html


def test_the_best_step_and_its_file_are_shown_first(view: JobView) -> None:
    result = TrainingResult(
        lora_uri="s3://b/k",
        lora_bytes=1,
        lora_digest="",
        held_out_loss_base=2.0,
        held_out_loss_lora=1.0,
        best_step=1,
        held_out_loss_best=0.5,
        held_out_loss_zero=3.0,
        best_artifact_name="lora-best.safetensors",
    )
    job = replace(JOB, state=JobState.SUCCEEDED, result=result)
    for html in (job_card(job), *drawn(view, job)):
        assert "best step 1: 0.5000 (base 2.0000, predicting nothing 3.0000); last step 2: 1.0000" in html
        assert html.index("lora-best.safetensors (best step, 1)") < html.index("s3://b/k (last step, 2)")


def test_curve_has_the_yardstick_as_a_level_line_and_a_ring_at_the_best() -> None:
    svg = loss_curve({1: 2.5}, {0: 2.0, 2: 0.5, 4: 1.0}, last_step=4, zero=3.0)
    assert "predicting nothing" in svg
    (level,) = re.findall(r'points="([^"]+)" fill="none" stroke="#b07d2b"', svg)
    (left, height), (right, other) = (point.split(",") for point in level.split())
    assert height == other
    (ring,) = re.findall(r'<circle cx="([^"]+)" cy="[^"]+" r="6"', svg)
    assert float(left) < float(ring) < float(right)
    assert "best held-out loss 0.5000 after step 2" in svg
    assert "predicting nothing" not in loss_curve({1: 2.5}, {0: 2.0}, last_step=4)


def test_curve_is_empty_without_a_finite_loss() -> None:
    assert loss_curve({1: float("nan")}, {}, last_step=4) == ""


def test_curve_stays_inside_its_drawing_whatever_the_losses() -> None:
    losses = {step: 0.5 + 0.1 * (step % 7) for step in range(1, 2001)} | {7: 1e9}
    svg = loss_curve(losses, {0: 0.7, 2000: 0.4}, last_step=2000)
    points = [tuple(map(float, pair.split(","))) for path in re.findall('points="(.*?)"', svg) for pair in path.split()]
    assert all(0 <= x <= 640 and 0 <= y <= 220 for x, y in points)
    assert len(points) < 1000
    assert svg.count("<circle") == 3  # two measurements, and the ring at the better


@pytest.mark.parametrize("loss", [0.5, 0.0])
def test_single_step_can_be_seen(loss: float) -> None:
    assert len(re.findall("polyline", loss_curve({1: loss}, {}, last_step=1))) == 1


def test_mean_of_a_falling_loss_lies_on_it_and_not_above() -> None:
    losses = [(step, 4.0 - 0.01 * step) for step in range(1, 251)]
    mean = smoothed(losses)
    assert (mean[0][0], mean[-1][0]) == (6, 245)
    assert [loss for _, loss in mean] == pytest.approx([4.0 - 0.01 * step for step, _ in mean])


def test_curve_names_the_mean_that_it_draws() -> None:
    assert "centered mean of 11 steps" in loss_curve(dict.fromkeys(range(1, 251), 1.0), {}, last_step=250)
    short = loss_curve(dict.fromkeys(range(1, 41), 1.0), {}, last_step=250)
    assert "mean" not in short
    assert "loss of each step" in short
