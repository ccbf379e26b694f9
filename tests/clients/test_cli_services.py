"""`estimate`, `logs`, `watch --json`, `doctor`, `up`, completion: what they print, and say when they cannot."""

import json
import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import fluxsmith
import pytest
from fluxsmith import MemoryEstimate, errors
from fluxsmith.cli import checkout
from fluxsmith.cli.app import run
from fluxsmith.cli.estimate import fit_text
from fluxsmith.v1 import trainer_pb2 as trainer

from services.ports import free_ports
from tests.clients.recording import Recorder
from tests.policy.sources import ROOT


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is in no checkout, with a client that is not installed from one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fluxsmith, "__file__", str(tmp_path / "site-packages" / "fluxsmith" / "__init__.py"))
    return tmp_path


def test_estimate_sends_the_options_and_shows_the_parts(services: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    services.estimate.parts.add(name="weights", bytes=5, explanation="The base.")
    for change in ("set rank to 4", "set gradient_checkpointing", "encode at a resolution_px of 256", "ask later"):
        services.estimate.savings.add(change=change, bytes=1)
    assert run(["estimate", "--rank", "8", "--resolution", "512", "--model", "flux_1_dev"]) == 0
    [request] = services.asked(trainer.EstimateMemoryRequest)
    assert (request.config.rank, request.resolution_px) == (8, 512)
    assert request.model == trainer.ESTIMATED_MODEL_FLUX_1_DEV
    out = capsys.readouterr().out
    assert "weights" in out
    for option in ("--rank 4", "--set gradient_checkpointing=yes", "--resolution 256", "ask later"):
        assert option in out


def test_estimate_as_json_has_every_field(services: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["estimate", "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == MemoryEstimate.__dataclass_fields__.keys()


@pytest.mark.parametrize(
    ("device_bytes", "says"),
    [(0, "no GPU"), (25_000_000_000, "does not fit"), (28_000_000_000, "just fit"), (48_000_000_000, "It fits")],
)
def test_estimate_says_whether_it_fits(device_bytes: int, says: str) -> None:
    estimate = MemoryEstimate(
        peak_bytes=27_000_000_000, parts=(), recommended_bytes=29_000_000_000, device_bytes=device_bytes
    )
    assert says in fit_text(estimate)


def happened(services: Recorder) -> None:
    services.job.state = trainer.TRAINING_JOB_STATE_FAILED
    services.job.failure.CopyFrom(trainer.JobFailure(reason="NON_FINITE_LOSS", message="diverged", remedy="Go slower."))
    step = trainer.StepMetrics(step=1, loss=float("nan"), skipped=True)
    services.happened(trainer.TrainingEvent(steps_completed=trainer.StepsCompleted(steps=[step], total_steps=9)))
    services.happened(trainer.TrainingEvent(warning=trainer.JobWarning(reason="SHORT_RUN", message="only 9 steps")))
    services.happened(
        trainer.TrainingEvent(state_changed=trainer.StateChanged(state=trainer.TRAINING_JOB_STATE_FAILED))
    )


def test_logs_tell_events_and_why_the_job_failed(services: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    happened(services)
    assert run(["logs", "j"]) == 0
    out = capsys.readouterr().out
    assert "warning: only 9 steps" in out
    assert "failed: diverged (NON_FINITE_LOSS" in out
    assert "remedy: Go slower." in out
    assert "step 1" not in out


def test_logs_as_json_are_lines_without_numbers_that_json_lacks(
    services: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    happened(services)
    assert run(["logs", "j", "--steps", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["type"] for line in lines] == ["steps_completed", "warning", "state_changed"]
    assert lines[0]["steps"][0]["loss"] is None


def test_logs_of_a_service_are_the_last_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "trainer.log").write_text("one\ntwo\nthree\n")
    assert run(["logs", "--service", "trainer", "--lines", "2", "--data", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "two\nthree\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["logs"], "give a job, or a service with --service."),
        (["logs", "j", "--service", "store"], "give a job, or a service with --service, not both."),
        (["logs", "--service", "store"], "or give the folder that the stack runs on to --data."),
        (["logs", "--service", "store", "--data", "."], "fluxsmith up"),
        (["up"], "make setup"),
    ],
)
def test_what_cannot_be_done_says_what_to_do(
    elsewhere: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["logs", "--service", "store", "--data", ".", "--json"], "LOG_NOT_FOUND"),
        (["train", ".", "--json", "--output", "nowhere/lora.safetensors"], "TARGET_UNWRITABLE"),
        (["watch", "another", "--json"], "JOB_NOT_FOUND"),
    ],
)
def test_scripts_are_told_the_reason_and_the_remedy(
    services: Recorder, arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    told = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert told["reason"] == reason
    assert told["error"].startswith(told["message"].rstrip("."))


def test_place_that_is_no_checkout_says_so(elsewhere: Path) -> None:
    with pytest.raises(errors.FailedPrecondition) as caught:
        checkout.require_checkout()
    assert caught.value.reason == "NO_CHECKOUT"


def test_watch_as_json_ends_with_the_job(services: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    succeeded = trainer.StateChanged(state=trainer.TRAINING_JOB_STATE_SUCCEEDED)
    services.happened(trainer.TrainingEvent(state_changed=succeeded))
    assert run(["watch", "j", "--json"]) == 0
    event, job = map(json.loads, capsys.readouterr().out.splitlines())
    assert (event["type"], event["state"]) == ("state_changed", "SUCCEEDED")
    assert (job["type"], job["id"]) == ("job", "j")


@pytest.mark.parametrize("command", ["pause", "resume", "cancel"])
def test_changed_job_as_json(services: Recorder, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "j", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["id"] == "j"


def test_doctor_looks_at_services_and_warns_of_another_version(
    services: Recorder, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["doctor", "--json"]) == 0
    states = {check["name"]: check["state"] for check in json.loads(capsys.readouterr().out)}
    assert states == {"client": "OK", "encoder": "WARN", "trainer": "WARN", "memory of trainer": "OK"}


def test_doctor_says_nothing_of_the_port_of_a_service_that_answers_elsewhere(
    services: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"name": f"port of {name}", "state": "OK", "found": "is free"} for name in ("encoder", "trainer")]
    Path("services").mkdir()  # a checkout, whose own doctor looks at two ports
    for module, source in (("__init__", ""), ("stack", ""), ("doctor", f"print({json.dumps(json.dumps(rows))})")):
        Path("services", f"{module}.py").write_text(source)
    assert run(["--trainer", "127.0.0.1:1", "doctor", "--json"]) == 1
    names = [check["name"] for check in json.loads(capsys.readouterr().out)]
    assert names == ["client", "encoder", "trainer", "port of trainer"]


def test_doctor_fails_where_no_service_answers(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--encoder", "127.0.0.1:1", "--trainer", "127.0.0.1:1", "doctor"]) == 1
    out = capsys.readouterr().out
    assert "FAIL  trainer: 127.0.0.1:1 does not answer. Start the services" in out


def command(*words: str, **environment: str) -> subprocess.Popen[str]:
    """The command as a program of its own."""
    return begun(words, subprocess.PIPE, environment)


def begun(words: Sequence[str], stdout: int | IO[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fluxsmith", *words],
        env={**os.environ, **environment},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def test_up_becomes_the_stack_which_refuses_a_taken_port(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        (free,) = free_ports(1)  # a stack may run beside the tests
        process = command("up", "--data", str(tmp_path), "--encoder-port", port, "--trainer-port", str(free))
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "--encoder-port" in err


@pytest.mark.parametrize(("named", "revision"), [("flux", ""), ("black-forest-labs/FLUX.1-dev", "0" * 40)])
def test_up_hands_on_a_folder_by_its_whole_path_and_the_hubs_name_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, revision: str
) -> None:
    (tmp_path / "flux").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLUXSMITH_BASE_MODEL_REVISION", revision)
    begun_with: list[str] = []
    monkeypatch.setattr(os, "execve", lambda *words: begun_with.append(words[2]["FLUXSMITH_BASE_MODEL"]))
    assert run(["up", "--base-model", named]) == 0
    assert begun_with == [named if revision else str(tmp_path / named)]


def test_up_names_the_option_for_a_model_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FLUXSMITH_BASE_MODEL_REVISION", raising=False)
    monkeypatch.setattr(os, "execve", lambda *_: None)
    assert run(["up", "--base-model", "/nope"]) == 2
    assert "'--base-model': '/nope' is not a folder" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("--version",), ("jobs", "--json"), ("train", "--help")])
def test_output_that_cannot_be_written_is_told(services: Recorder, words: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        process = begun(words, full, {})
        assert process.wait(timeout=30) == 1
    assert process.stderr
    assert process.stderr.read() == "error: standard output cannot be written: No space left on device.\n"


def test_interrupted_command_ends_with_130(services: Recorder) -> None:
    services.job.state = trainer.TRAINING_JOB_STATE_QUEUED
    services.job.queue_position = 1
    queued = trainer.StateChanged(state=trainer.TRAINING_JOB_STATE_QUEUED)
    services.happened(trainer.TrainingEvent(state_changed=queued))
    process = command("watch", "j")
    assert process.stderr
    assert "queued" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "come back with: fluxsmith watch j" in err


def test_command_that_is_ended_by_another_program_gives_the_terminal_back(services: Recorder) -> None:
    services.job.state = trainer.TRAINING_JOB_STATE_RUNNING
    steps = trainer.StepsCompleted(steps=[trainer.StepMetrics(step=1, loss=1)], total_steps=9)
    services.happened(trainer.TrainingEvent(steps_completed=steps))
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        watch = [sys.executable, "-m", "fluxsmith", "watch", "j"]
        process = subprocess.Popen(watch, stdout=terminal, stderr=terminal, env={**os.environ, "TERM": "xterm"})
    shown = b""
    while b"step" not in shown:
        shown += os.read(ours, 4096)
    process.send_signal(signal.SIGTERM)
    with suppress(OSError):  # the terminal's end
        while part := os.read(ours, 4096):
            shown += part
    assert process.wait(timeout=30) == 143
    assert b"Traceback" not in shown
    assert shown.rfind(b"\x1b[?25h") >= shown.rfind(b"\x1b[?25l")  # cursor shown, hidden


def completed(*words: str) -> list[str]:
    """What the shell would offer for the last of the words."""
    environment = {"COMP_WORDS": " ".join(["fluxsmith", *words]), "COMP_CWORD": str(len(words))}
    out, err = command(_FLUXSMITH_COMPLETE="complete_bash", **environment).communicate(timeout=30)
    assert not err
    return out.split()


@pytest.mark.parametrize(
    ("state", "offering"),
    [
        (trainer.TRAINING_JOB_STATE_RUNNING, {"watch", "pause", "cancel"}),
        (trainer.TRAINING_JOB_STATE_PAUSED, {"watch", "resume", "cancel"}),
        (trainer.TRAINING_JOB_STATE_FAILED, {"watch", "delete"}),
    ],
)
def test_shell_offers_a_job_to_the_commands_that_its_state_allows(
    services: Recorder, state: "trainer.TrainingJobState.ValueType", offering: set[str]
) -> None:
    services.job.state = state
    assert {
        name for name in ("watch", "pause", "resume", "cancel", "delete") if completed(name, "") == ["j"]
    } == offering


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("train", "--optimizer", "adamw_"), ["adamw_8bit", "adamw_schedule_free"]),
        (("estimate", "--model", ""), ["loaded", "flux_1_dev"]),
        (("train", "--set", "loss_w"), ["loss_weighting="]),
    ],
)
def test_shell_completes_values(words: tuple[str, ...], offered: list[str]) -> None:
    assert completed(*words) == offered


def test_completion_names_the_files_that_installing_it_changes(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    out, _ = command("--install-completion", "bash", **environment).communicate(timeout=30)
    changed = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(changed) == 2
    assert all(str(path) in " ".join(out.split()) for path in changed)


def test_completion_is_empty_where_nobody_answers() -> None:
    environment = {"_FLUXSMITH_COMPLETE": "complete_bash", "COMP_WORDS": "fluxsmith watch ", "COMP_CWORD": "2"}
    out, err = command(**environment, FLUXSMITH_TRAINER="127.0.0.1:1").communicate(timeout=30)
    assert (out.strip(), err) == ("", "")


def test_checkout_without_its_packages_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkout, "find_spec", lambda _: None)
    with pytest.raises(errors.FailedPrecondition, match="make setup") as caught:
        checkout.python_of(tmp_path)
    assert caught.value.reason == "NOT_SET_UP"
