"""The command's way of failing: one line on standard error, no traceback, a documented exit code."""

import dataclasses
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import typer
from fluxsmith import (
    Dataset,
    DatasetState,
    JobState,
    SampleProblem,
    SampleProblemReason,
    TrainConfig,
    TrainingJob,
    errors,
)
from fluxsmith.cli.app import app, exit_code, run
from fluxsmith.cli.session import Session

from tests.clients.recording import Recorder, Refused


def dataset_failed(*problems: SampleProblem) -> errors.DatasetFailed:
    dataset = Dataset(id="d", state=DatasetState.FAILED, problems=problems, failure_message="the encoding failed")
    return errors.DatasetFailed(dataset)


PROBLEM = SampleProblem(sample_name="a.png", reason=SampleProblemReason.NOT_AN_IMAGE, message="is no image")
JOB = TrainingJob(id="j", state=JobState.FAILED, config=TrainConfig(), dataset_id="d")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.JobFailed(JOB), 1),
        (errors.JobCancelled(JOB), 1),
        (errors.InternalError("broken"), 1),
        (errors.DownloadFailed("broken"), 1),
        (dataset_failed(), 1),
        (dataset_failed(PROBLEM), 2),
        (errors.InvalidRequest("wrong"), 2),
        (errors.InvalidFolder("wrong"), 2),
        (errors.NotFound("no such job"), 2),
        (errors.FailedPrecondition("not yet"), 2),
        (errors.Unavailable("away"), 3),
        (errors.DeadlineExceeded("late"), 3),
    ],
)
def test_error_has_its_exit_code(error: errors.FluxsmithError, code: int) -> None:
    assert exit_code(error) == code


def test_failed_dataset_names_each_sample_once() -> None:
    second = SampleProblem(sample_name="b.png", reason=SampleProblemReason.TRUNCATED, message="ends too early.")
    dataset = Dataset(
        id="d", state=DatasetState.FAILED, problems=(PROBLEM, second), failure_message="2 of 9 are bad, first a.png"
    )
    assert str(errors.DatasetFailed(dataset)) == (
        "dataset d could not be encoded: 2 of 9 are bad, first a.png; b.png: ends too early. "
        "Mend or remove these samples and try again. Or leave them out with skip_bad_samples=True."
    )


def test_failed_dataset_does_not_blame_samples_that_are_used() -> None:
    warning = SampleProblem(
        sample_name="b.png", reason=SampleProblemReason.DUPLICATE, message="is there twice", warning=True
    )
    assert str(dataset_failed(warning)) == (
        "dataset d could not be encoded: the encoding failed. Encode it again, or read the encoder's log."
    )
    assert exit_code(dataset_failed(warning)) == 1


@pytest.mark.parametrize(("problem_count", "more"), [(14, "and 2 more"), (30, "and at least 2 more")])
def test_failed_dataset_counts_what_it_does_not_name(problem_count: int, more: str) -> None:
    bad = [dataclasses.replace(PROBLEM, sample_name=f"{number:02}.png") for number in range(12)]
    warnings = [dataclasses.replace(PROBLEM, warning=True)] * 2 if problem_count == 14 else []
    problems = (*bad, *warnings)
    dataset = Dataset(id="d", state=DatasetState.FAILED, problems=problems, problem_count=problem_count)
    assert more in str(errors.DatasetFailed(dataset))


@pytest.fixture
def closed_address() -> Iterator[str]:
    """An address that refuses connections for as long as the test runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{probe.getsockname()[1]}"


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["train"],
        ["train", "nowhere"],
        ["train", ".", "--rank", "0"],
        ["train", ".", "--steps", "many"],
        ["train", ".", "--start-early"],
        ["contact-sheet"],
        ["contact-sheet", "./nowhere"],
        ["contact-sheet", ".", "--per-page", "101"],
        ["--encoder", "http://somewhere", "datasets"],
        ["--tenant", "My Team", "jobs"],
        ["watch", "\udcff"],  # what a byte that is not UTF-8 comes as
    ],
)
def test_bad_usage_is_one_line_and_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    only_line(capsys)


def test_output_in_a_missing_folder_is_refused_before_anything_is_sent(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(["train", str(tmp_path), "--output", str(tmp_path / "nowhere" / "x")]) == 2
    assert "folder that does not exist" in only_line(capsys)


def test_absent_service_is_one_line_and_code_3(capsys: pytest.CaptureFixture[str], closed_address: str) -> None:
    assert run(["--trainer", closed_address, "jobs"]) == 3
    line = only_line(capsys)
    assert closed_address in line
    assert "another address to --trainer" in line


def test_choice_that_is_none_is_told_plainly(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["estimate", "--model", "sdxl"]) == 2
    assert only_line(capsys).startswith("error: Invalid value for '--model': 'sdxl' is not one of 'loaded'")


def test_command_that_is_misspelt_is_asked_after(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["trian"]) == 2
    assert only_line(capsys) == "error: No such command 'trian'. Did you mean 'train'? See fluxsmith --help."


@pytest.mark.parametrize(
    ("arguments", "reason", "remedy"),
    [
        (["watch", "another"], "JOB_NOT_FOUND", "List jobs with: fluxsmith --tenant me jobs"),
        (["delete", "another"], "JOB_NOT_FOUND", "List jobs with: fluxsmith --tenant me jobs"),
        (["datasets", "delete", "d"], "DATASET_NOT_FOUND", "List datasets with: fluxsmith --tenant me datasets"),
        (["contact-sheet", "inc"], "DATASET_NOT_FOUND", "List datasets with: fluxsmith --tenant me datasets"),
    ],
)
def test_what_is_not_there_is_told_with_the_command_that_lists(
    services: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    reason: str,
    remedy: str,
) -> None:
    def refuse(request: object) -> list[object]:
        raise Refused("there is none", code=grpc.StatusCode.NOT_FOUND, reason=reason)

    monkeypatch.setattr(services, "answer", refuse)
    assert run(["--tenant", "me", *arguments]) == 2
    assert only_line(capsys).endswith(remedy)


def every_command(group: Any, *path: str) -> Iterator[list[str]]:
    """The words of each command, those of groups in groups too."""
    yield list(path)
    for name, command in getattr(group, "commands", {}).items():
        yield from every_command(command, *path, name)


def test_help_has_neither_types_of_flags_nor_braces(capsys: pytest.CaptureFixture[str]) -> None:
    for words in every_command(typer.main.get_command(app)):
        assert run([*words, "--help"]) == 0
    out = capsys.readouterr().out
    assert "datasets delete" in out
    assert not re.findall(r"<bool>|[{}]|\[\[", out)


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["train", "--help"], ["contact-sheet", "--help"], []])
def test_help_and_version_succeed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 0
    assert "fluxsmith" in capsys.readouterr().out


def test_advice_names_the_same_services_and_tenant() -> None:
    session = Session(encoder=None, trainer="host:1", tenant="me")
    assert session.command("watch", "j 1") == "fluxsmith --trainer host:1 --tenant me watch 'j 1'"
