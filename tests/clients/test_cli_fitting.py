"""Tables on narrow terminals: nothing that matters is cut or broken, whatever the width."""

import dataclasses
from datetime import UTC, datetime
from io import StringIO

import pytest
from fluxsmith import JobState, TrainConfig, TrainingJob, TrainingResult
from fluxsmith.cli.doctor import Check, State, _show
from fluxsmith.cli.fitting import at_words, fitted
from fluxsmith.cli.listing import _jobs_table, empty_table
from fluxsmith.cli.session import Session
from fluxsmith.cli.text import report_lines
from rich.cells import cell_len
from rich.console import Console

MOMENT = datetime(2026, 11, 28, 7, 20, tzinfo=UTC)
CREATED = MOMENT.astimezone().strftime("%Y-%m-%d %H:%M")
RESULT = TrainingResult(
    lora_uri="s3://b/k", lora_bytes=1, lora_digest="", held_out_loss_base=1.8, held_out_loss_lora=0.86
)
RUNNING = TrainingJob(
    id="job-0123456789abcdef0123",
    state=JobState.RUNNING,
    config=TrainConfig(),
    dataset_id="d",
    create_time=MOMENT,
    step=483,
    total_steps=1000,
    time_left_s=7500,
)
ENDED = TrainingJob(
    id="job-0123456789abcdef0124",
    state=JobState.SUCCEEDED,
    config=TrainConfig(),
    dataset_id="d",
    create_time=MOMENT,
    step=1000,
    total_steps=1000,
    user_id="[ada]",
    name="夏の絵" * 20,
    result=RESULT,
)


def shown(*jobs: TrainingJob, width: int, terminal: bool = True) -> list[str]:
    console = Console(file=StringIO(), force_terminal=terminal, width=width, color_system=None)
    console.print(fitted(_jobs_table(list(jobs)), console))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [200, 120, 80, 60, 40])
def test_jobs_keep_state_progress_date_and_time_left_unbroken(width: int) -> None:
    lines = shown(RUNNING, ENDED, width=width)
    assert all(cell_len(line) <= width for line in lines)
    for fact in (RUNNING.id, "running", "483 of 1000", "2:05 h", ENDED.id, "succeeded", "1000 of 1000", "[ada]"):
        assert any(fact in line for line in lines), fact
    assert sum(CREATED in line for line in lines) == 2
    assert any("1.8000 to 0.8600" in line for line in lines)


def test_jobs_that_fit_are_a_table_without_empty_columns() -> None:
    heading, row = shown(RUNNING, width=80)
    assert heading.split() == ["job", "state", "step", "left", "created"]
    assert row.split()[:2] == [RUNNING.id, "running"]


def test_a_listed_job_tells_its_best_loss_and_the_step_where_it_is_not_the_last() -> None:
    best = dataclasses.replace(RESULT, best_step=40, held_out_loss_best=0.75)
    _, row = shown(dataclasses.replace(ENDED, step=60, result=best), width=240, terminal=False)
    assert "1.8000 to 0.7500 at step 40" in row


def test_pipe_gets_every_column_and_a_line_a_job() -> None:
    heading, row = shown(RUNNING, width=240, terminal=False)
    assert heading.split() == ["job", "state", "step", "left", "created", "held-out", "loss", "user", "name"]
    assert CREATED in row


def test_identifier_that_is_wider_than_the_terminal_is_not_cut() -> None:
    table = empty_table("name", "size")
    table.add_row(name := "events.out.tfevents.job-0123456789abcdef0123", "9.1 kB")
    out = StringIO()
    console = Console(file=out, force_terminal=True, width=40, color_system=None)
    console.print(fitted(table, console))
    assert name in out.getvalue().replace("\n", "")
    assert "size 9.1 kB" in out.getvalue()


def terminal_of(width: int) -> Console:
    return Console(file=StringIO(), force_terminal=True, width=width, color_system=None)


@pytest.mark.parametrize("width", [80, 60, 40])
def test_lines_are_broken_between_words_and_say_the_same(width: int) -> None:
    said = "the volume 夏の絵 holds no weights (`git lfs pull`). Put the file that belongs to it beside its parts."
    lines = at_words(said, terminal_of(width)).splitlines()
    assert max(map(cell_len, lines)) <= width
    assert " ".join(line.strip() for line in lines) == said
    assert any("`git lfs pull`" in line for line in lines)


def test_what_follows_stands_below_the_fact() -> None:
    assert at_words("held-out loss  1.8000 before, 0.8600 after (-52.2%)", terminal_of(45)) == (
        "held-out loss  1.8000 before, 0.8600 after\n               (-52.2%)"
    )


def test_commands_are_never_broken_so_that_they_can_be_copied() -> None:
    command = f"fluxsmith --trainer gpu:7402 download {ENDED.id} {ENDED.id} --all"
    lines = at_words(f"see previews and report with: {command}   then open the page", terminal_of(40)).splitlines()
    assert lines == ["see previews and report with:", f"  {command}", "  then open the page"]


def test_a_pipe_gets_each_line_whole() -> None:
    pipe = Console(file=StringIO(), width=40)
    assert at_words("word " * 100, pipe) == "word " * 100


def test_doctor_and_the_lines_of_an_ended_job_fit_60_columns() -> None:
    session = Session(encoder=None, trainer=None, tenant=None)
    session.out = terminal_of(60)
    check = Check(name="gpu", state=State.WARN, found="none in use, " * 9, remedy="A large [model] needs one. " * 3)
    _show(check, session)
    session.out.print(at_words("\n".join(report_lines(ENDED, command=session.command)), session.out), soft_wrap=True)
    assert isinstance(session.out.file, StringIO)
    shown = session.out.file.getvalue()
    assert max(map(cell_len, shown.splitlines())) <= 60
    assert "[model]" in shown
    assert shown.startswith("WARN  gpu: none in use,")
