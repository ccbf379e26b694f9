"""What the command prints: sizes, times, reports and JSON."""

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fluxsmith import (
    Artifact,
    Dataset,
    DatasetPhase,
    DatasetProgress,
    DatasetState,
    EncodingProgress,
    JobState,
    SampleProblem,
    SampleProblemReason,
    TrainConfig,
    TrainingJob,
    TrainingResult,
)
from fluxsmith.cli.session import Session
from fluxsmith.cli.text import (
    Fetched,
    duration_text,
    error_line,
    fetch_lines,
    problem_lines,
    progress_facts,
    rate_text,
    report_lines,
    size_text,
    speed_text,
    to_json,
)

JOB = TrainingJob(
    id="j-1",
    state=JobState.SUCCEEDED,
    config=TrainConfig(rank=16),
    dataset_id="d-1",
    create_time=datetime(2026, 1, 2, tzinfo=UTC),
    result=TrainingResult(
        lora_uri="s3://bucket/lora.safetensors",
        lora_bytes=1_400_000,
        lora_digest="0" * 64,
        held_out_loss_base=1.5,
        held_out_loss_lora=1.2,
        step_time_s=0.1111,
    ),
)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1400, "1.4 kB"), (2.5e9, "2.5 GB"), (7e12, "7000.0 GB")],
)
def test_size(size_bytes: int, text: str) -> None:
    assert size_text(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (60, "1:00 min"), (187, "3:07 min"), (7500, "2:05 h")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("step_s", "text"), [(0.0123, "0.012 s/step"), (0.1111, "0.11 s/step"), (12.34, "12.3 s/step")]
)
def test_speed(step_s: float, text: str) -> None:
    assert speed_text(step_s) == text


@pytest.mark.parametrize(
    ("per_s", "text"), [(0.04, "0.04 a second"), (3.12, "3.1 a second"), (1200.0, "1200 a second")]
)
def test_rate(per_s: float, text: str) -> None:
    assert rate_text(per_s) == text


def test_encoding_that_has_only_begun_tells_no_figures() -> None:
    progress = DatasetProgress(
        phase=DatasetPhase.ENCODE, done_count=0, total_count=40, encoding=EncodingProgress(elapsed_s=0.2)
    )
    assert progress_facts(progress) == []


def encoded(*, bad: int, warned: int, problem_count: int = 0) -> Dataset:
    problems = tuple(
        SampleProblem(sample_name=f"{n}", reason=SampleProblemReason.UNKNOWN, message=f"is {n}", warning=n >= bad)
        for n in range(bad + warned)
    )
    count = problem_count or len(problems)
    return Dataset(id="d", state=DatasetState.READY, problems=problems, problem_count=count)


def test_samples_left_out_come_before_warnings() -> None:
    assert problem_lines(encoded(bad=1, warned=2)) == ["left out: 0: is 0", "warning: 1: is 1", "warning: 2: is 2"]
    assert problem_lines(encoded(bad=0, warned=0)) == []


def test_samples_that_share_a_problem_share_its_line() -> None:
    what = "T5 cannot read '\u732b': it sees <unk>, as for every character it does not know; leave it"
    problems = tuple(
        SampleProblem(
            sample_name=f"{n}.png",
            reason=SampleProblemReason.CAPTION_UNREADABLE,
            message=f"caption '{n}: \u732b': {what}",
            warning=True,
        )
        for n in range(5)
    )
    dataset = Dataset(id="d", state=DatasetState.READY, problems=problems, problem_count=7)
    assert problem_lines(dataset) == [f"warning: 5 images (0.png, 1.png, 2.png and 2 more): {what}", "and 2 more"]


def test_ten_problems_of_a_kind_are_told_and_the_rest_counted() -> None:
    lines = problem_lines(encoded(bad=17, warned=12))
    assert len(lines) == 22
    assert (lines[10], lines[21]) == ("and 7 more", "and 2 more")


@pytest.mark.parametrize(("bad", "warned"), [(100, 0), (0, 100), (88, 12)])
def test_problems_that_did_not_travel_are_counted_too(bad: int, warned: int) -> None:
    lines = problem_lines(encoded(bad=bad, warned=warned, problem_count=130))
    more = sum(int(line.split()[1]) for line in lines if line.startswith("and "))
    assert more + sum(": " in line for line in lines) == 130


def test_error_is_one_line_whatever_it_quotes() -> None:
    assert error_line("first\n  second\tthird") == "error: first second third"


def report(job: TrainingJob, file: Fetched | None = None, best: Fetched | None = None) -> list[str]:
    session = Session(encoder=None, trainer="host:1", tenant=None)
    return report_lines(job, file=file, best=best, command=session.command)


def test_report_names_address_size_losses_and_file() -> None:
    text = "\n".join(report(JOB, Fetched(path=Path("style.safetensors"))))
    facts = (
        "s3://bucket/lora.safetensors",
        "1.4 MB",
        "held-out loss  last step 0: 1.2000 (base 1.5000)",
        "written        style.saf",
    )
    for fact in facts:
        assert fact in text


def test_report_tells_that_a_file_was_replaced() -> None:
    assert report(JOB, Fetched(path=Path("x"), replaced=True))[-1] == "replaced       x"


def test_report_tells_skipped_steps_memory_and_files() -> None:
    names = ["lora-best.safetensors", "previews/0-1.png", "previews/9-1.png", "report.html"]
    assert JOB.result is not None
    result = dataclasses.replace(
        JOB.result,
        artifacts=tuple(
            Artifact(artifact_name=name, uri="s3://b/k", size_bytes=1, content_digest="0") for name in names
        ),
        skipped_steps=2,
        memory_peak_bytes=12_300_000_000,
    )
    assert report(dataclasses.replace(JOB, result=result))[4:] == [
        "skipped steps  2, whose loss or gradient was not finite",
        "speed          0.11 s/step",
        "memory         12.3 GB at most",
        "files          lora-best.safetensors, report.html, 2 previews",
        "see previews and report with: fluxsmith --trainer host:1 download j-1 j-1 --all   then open j-1/report.html",
    ]


def measured(*, best_step: int, stopped_early: bool = False, min_delta: float = 0) -> TrainingJob:
    """The job after 60 of 100 steps."""
    assert JOB.result is not None
    result = dataclasses.replace(
        JOB.result,
        best_step=best_step,
        held_out_loss_best=1.1,
        held_out_loss_zero=2.0,
        best_artifact_name="lora.safetensors" if best_step == 60 else "lora-best.safetensors",
        stopped_early=stopped_early,
        step_time_s=None,
    )
    config = TrainConfig(early_stopping_min_delta=min_delta)
    return dataclasses.replace(JOB, config=config, step=60, total_steps=100, result=result)


def test_report_tells_the_best_step_before_the_last_and_which_file_is_which() -> None:
    files = {"file": Fetched(path=Path("x.safetensors")), "best": Fetched(path=Path("x-best.safetensors"))}
    assert report(measured(best_step=40, stopped_early=True), **files) == [
        "job            j-1",
        "held-out loss  best step 40: 1.1000 (base 1.5000, predicting nothing 2.0000); last step 60: 1.2000",
        "best LoRA      lora-best.safetensors (best step, 40)",
        "LoRA           s3://bucket/lora.safetensors (last step, 60)",
        "size           1.4 MB",
        "ended early    after step 60 of 100: the held-out loss no longer fell",
        "written        x-best.safetensors (best step, 40)",
        "written        x.safetensors (last step, 60)",
    ]


def test_the_file_of_the_best_step_is_the_first_to_fetch() -> None:
    command = Session(encoder=None, trainer="host:1", tenant=None).command
    assert fetch_lines(measured(best_step=40), command) == [
        "Fetch the best step's file (40) with: "
        "fluxsmith --trainer host:1 download j-1 --artifact lora-best.safetensors",
        "Fetch the last step's (60) with: fluxsmith --trainer host:1 download j-1",
    ]
    assert fetch_lines(measured(best_step=60), command) == [
        "Fetch the file with: fluxsmith --trainer host:1 download j-1"
    ]


def test_report_says_nothing_of_another_file_when_the_last_is_best() -> None:
    assert report(measured(best_step=60))[1:3] == [
        "held-out loss  best step 60, the last: 1.1000 (base 1.5000, predicting nothing 2.0000)",
        "LoRA           s3://bucket/lora.safetensors",
    ]


def test_report_offers_no_file_when_training_made_it_worse() -> None:
    assert report(measured(best_step=0))[1:] == [
        "held-out loss  best before the first step: 1.1000 (predicting nothing 2.0000); last step 60: 1.2000",
        "LoRA           s3://bucket/lora.safetensors",
        "size           1.4 MB",
        "better on the held-out pictures: before the first step; training made it worse",
    ]


def test_what_a_warm_start_began_with_is_not_called_the_base() -> None:
    config = TrainConfig(warm_start_uri="s3://b/k")
    assert "(start 1.5000, " in dataclasses.replace(measured(best_step=40), config=config).held_out_line


def test_early_end_names_by_how_much_the_loss_had_to_fall() -> None:
    text = "\n".join(report(measured(best_step=60, stopped_early=True, min_delta=0.5)))
    assert "the held-out loss no longer fell by more than 0.5" in text


def test_json_holds_every_field_of_the_job() -> None:
    job = json.loads(to_json(JOB))
    assert job["state"] == "SUCCEEDED"
    assert job["config"]["rank"] == 16
    assert job["result"]["held_out_loss_lora"] == 1.2
    assert job["create_time"] == "2026-01-02T00:00:00+00:00"
