"""Pausing, resuming, checkpoints, priorities: what the library and the command ask for, and what they show of it."""

import json
import math
import time
from collections.abc import Iterable
from threading import Timer

import fluxsmith
import grpc
import pytest
from fluxsmith import JobState
from fluxsmith.cli.app import run
from fluxsmith.errors import DeadlineExceeded, InternalError, InvalidRequest
from fluxsmith.v1 import trainer_pb2 as pb
from fluxsmith.v1.encoder_pb2 import CreateDatasetRequest
from google.protobuf.message import Message

from tests.clients.recording import CONTENT, DIGEST, Recorder

MUTATING = {
    pb.PauseTrainingJobRequest,
    pb.ResumeTrainingJobRequest,
    pb.CancelTrainingJobRequest,
    pb.CreateCheckpointRequest,
    pb.DeleteTrainingJobRequest,
}


def add_checkpoint(recorder: Recorder, step: int) -> None:
    name = f"checkpoints/{step}-1/lora.safetensors"
    lora = pb.ArtifactPublished(
        artifact_name=name, uri=f"s3://b/{name}", size_bytes=len(CONTENT), content_digest=DIGEST
    )
    recorder.checkpoints.append(
        pb.Checkpoint(checkpoint_id=f"{step}-1", step=step, uri="s3://b/m", size_bytes=2_000_000, lora=lora)
    )


def test_every_call_that_changes_a_job_has_a_request_id_of_its_own(
    client: fluxsmith.Client, recorder: Recorder
) -> None:
    job = client.job("j")
    for change in (job.pause, job.resume, job.cancel, job.checkpoint, job.delete) * 2:
        change()
    asked = [request for request in recorder.requests if type(request) in MUTATING]
    assert {type(request) for request in asked} == MUTATING
    assert len({request.request_id for request in asked} - {""}) == 10  # type: ignore[attr-defined]


def test_snapshot_is_what_the_last_answer_said(client: fluxsmith.Client, recorder: Recorder) -> None:
    job = client.job("j")
    for change in (job.pause, job.resume, job.cancel, job.checkpoint):
        recorder.job.step += 1
        assert change().step == recorder.job.step == job.snapshot.step


@pytest.mark.parametrize("timeout_s", [None, 100.0])
def test_a_call_without_an_answer_is_not_told_as_the_end_of_a_wait(
    client: fluxsmith.Client, recorder: Recorder, timeout_s: float | None
) -> None:
    job = client.job("j")
    recorder.refusals[pb.GetTrainingJobRequest] = grpc.StatusCode.DEADLINE_EXCEEDED
    with pytest.raises(DeadlineExceeded) as caught:
        job.wait(timeout_s=timeout_s)
    assert caught.value.reason == "DEADLINE_EXCEEDED"


def test_a_job_that_succeeded_without_a_result_is_told(client: fluxsmith.Client, recorder: Recorder) -> None:
    job = client.job("j")
    recorder.job.ClearField("result")
    with pytest.raises(InternalError, match="trainer's log") as caught:
        job.result()
    assert caught.value.reason == "RESULT_MISSING"


@pytest.mark.parametrize("timeout_s", [0, 0.001])
def test_a_job_that_has_ended_is_told_however_short_the_wait(client: fluxsmith.Client, timeout_s: float) -> None:
    assert client.job("j").wait(timeout_s=timeout_s).state is JobState.SUCCEEDED


def test_a_wait_may_have_no_end(client: fluxsmith.Client) -> None:
    assert client.job("j").wait(timeout_s=math.inf).state is JobState.SUCCEEDED


def test_checkpoints_go_only_when_asked(client: fluxsmith.Client, recorder: Recorder) -> None:
    client.job("j").cancel()
    client.job("j").cancel(discard_checkpoints=True)
    asked = recorder.asked(pb.CancelTrainingJobRequest)
    assert [request.discard_checkpoints for request in asked] == [False, True]


def test_checkpoints_are_listed_as_they_come(client: fluxsmith.Client, recorder: Recorder) -> None:
    for step in (100, 50):
        add_checkpoint(recorder, step)
    found = client.job("j").checkpoints()
    assert [(checkpoint.id, checkpoint.step) for checkpoint in found] == [("100-1", 100), ("50-1", 50)]
    assert found[0].lora.artifact_name == "checkpoints/100-1/lora.safetensors"


def test_priority_travels_with_the_job_and_with_its_check(client: fluxsmith.Client, recorder: Recorder) -> None:
    client.train("d", priority=7)
    client.validate(fluxsmith.TrainConfig(), priority=-7)
    assert [request.priority for request in recorder.asked(pb.CreateTrainingJobRequest)] == [7, -7]


@pytest.mark.parametrize("priority", [2**31, "high", 1.5])
def test_priority_that_cannot_travel_is_named(client: fluxsmith.Client, recorder: Recorder, priority: object) -> None:
    with pytest.raises(InvalidRequest, match="priority") as caught:
        client.train("d", priority=priority)  # type: ignore[arg-type]
    assert [violation.field for violation in caught.value.violations] == ["priority"]
    assert not recorder.requests


def test_waiting_outlasts_a_pause(client: fluxsmith.Client, recorder: Recorder) -> None:
    recorder.job.state = pb.TRAINING_JOB_STATE_PAUSED
    job = client.job("j")

    def end() -> None:
        recorder.job.state = pb.TRAINING_JOB_STATE_SUCCEEDED

    Timer(0.3, end).start()
    assert job.wait().state is JobState.SUCCEEDED


@pytest.mark.parametrize(
    ("command", "request_type"),
    [
        ("pause", pb.PauseTrainingJobRequest),
        ("resume", pb.ResumeTrainingJobRequest),
        ("cancel", pb.CancelTrainingJobRequest),
    ],
)
def test_command_asks_for_the_change_and_says_the_state(
    services: Recorder, capsys: pytest.CaptureFixture[str], command: str, request_type: type[pb.PauseTrainingJobRequest]
) -> None:
    services.job.state = pb.TRAINING_JOB_STATE_PAUSING
    assert run([command, "j"]) == 0
    assert [request.job_id for request in services.asked(request_type)] == ["j"]
    assert capsys.readouterr().out == "job j is pausing\n"


def test_command_discards_checkpoints_only_when_told(services: Recorder) -> None:
    assert (run(["cancel", "j"]), run(["cancel", "j", "--discard-checkpoints"])) == (0, 0)
    asked = services.asked(pb.CancelTrainingJobRequest)
    assert [request.discard_checkpoints for request in asked] == [False, True]


def test_command_lists_checkpoints_with_the_names_to_fetch_them_by(
    services: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    add_checkpoint(services, 50)
    services.checkpoints[0].held_out_loss = 0.25
    assert run(["checkpoints", "j"]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert line.split() == ["checkpoints/50-1/lora.safetensors", "50", "0.2500", "2.0", "MB"]
    assert run(["checkpoints", "j", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["lora"]["artifact_name"] == line.split()[0]


REMOVED = "removed: 2 checkpoints, written after step 3, 6"
NO_LONGER_NEEDED = "the job has succeeded, and those of every few minutes were to go on from"
KEEP = (
    "To keep more of the next job's, set checkpoint_interval_steps and checkpoints_kept, or "
    "checkpoint_keep_interval_steps"
)


@pytest.mark.parametrize(
    ("state", "config", "said"),
    [
        (
            pb.TRAINING_JOB_STATE_SUCCEEDED,
            pb.TrainConfig(),
            f"No checkpoints.|{REMOVED}: {NO_LONGER_NEEDED}. {KEEP}",
        ),
        (
            pb.TRAINING_JOB_STATE_RUNNING,
            pb.TrainConfig(checkpoint_interval_steps=3, checkpoints_kept=1),
            f"No checkpoints yet.|{REMOVED}: checkpoints_kept is 1. {KEEP}",
        ),
        (
            pb.TRAINING_JOB_STATE_CANCELLED,
            pb.TrainConfig(),
            f"No checkpoints.|{REMOVED}",
        ),
    ],
)
def test_removed_checkpoints_are_told_with_what_keeps_them(
    services: Recorder,
    capsys: pytest.CaptureFixture[str],
    state: pb.TrainingJobState.ValueType,
    config: pb.TrainConfig,
    said: str,
) -> None:
    services.job.state, services.removed_steps = state, [3, 6]
    services.job.config.CopyFrom(config)
    assert run(["checkpoints", "j"]) == 0
    assert capsys.readouterr().err.splitlines() == said.split("|")


def test_many_removed_checkpoints_are_told_as_a_range(services: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    add_checkpoint(services, 500)
    services.removed_steps = list(range(10, 500, 10))
    assert run(["checkpoints", "j"]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 2
    assert captured.err.startswith("removed: 49 checkpoints, written after steps 10 to 490: ")


def test_command_asks_for_a_checkpoint_and_says_where_to_look(
    services: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["checkpoint", "j"]) == 0
    assert len(services.asked(pb.CreateCheckpointRequest)) == 1
    assert "fluxsmith checkpoints j" in capsys.readouterr().out


def test_jobs_show_their_place_and_the_time_left(services: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    services.job.state, services.job.queue_position = pb.TRAINING_JOB_STATE_QUEUED, 3
    assert run(["jobs"]) == 0
    assert "queued, 3 ahead" in capsys.readouterr().out
    services.job.state, services.job.time_left.seconds = pb.TRAINING_JOB_STATE_RUNNING, 187
    assert run(["jobs"]) == 0
    assert "3:07 min" in capsys.readouterr().out


def test_watch_shows_how_a_waiting_job_moves_up(
    services: Recorder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def pass_by(_: float) -> None:
        services.job.queue_position -= 1
        if not services.job.queue_position:
            services.job.state = pb.TRAINING_JOB_STATE_SUCCEEDED

    monkeypatch.setattr(time, "sleep", pass_by)
    services.job.state, services.job.queue_position = pb.TRAINING_JOB_STATE_QUEUED, 2
    services.happened(pb.TrainingEvent(state_changed=pb.StateChanged(state=pb.TRAINING_JOB_STATE_QUEUED)))
    assert run(["watch", "j"]) == 0
    assert capsys.readouterr().err.splitlines() == ["queued", "queued: 2 jobs ahead", "queued: 1 job ahead"]


def test_watch_of_an_old_job_begins_with_the_events_that_are_left(services: Recorder) -> None:
    services.job.first_sequence = 9
    assert run(["watch", "j"]) == 0
    assert services.asked(pb.WatchTrainingJobRequest)[0].after_sequence == 8


def test_train_sends_its_priority(services: Recorder, folder: object) -> None:
    assert run(["train", "ink", "--priority", "5"]) == 0
    assert [request.priority for request in services.asked(pb.CreateTrainingJobRequest)] == [5, 5]
    assert run(["train", "ink", "--priority", "101"]) == 2


def test_delete_says_what_it_removed_and_can_be_repeated(
    services: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    add_checkpoint(services, 50)
    services.job.result.artifacts.add(artifact_name="lora.safetensors", size_bytes=1_300_000)
    services.job.result.artifacts.add(artifact_name="checkpoints/50-1/lora.safetensors", size_bytes=1_300_000)
    assert (run(["delete", "j"]), run(["delete", "j"])) == (0, 0)
    assert capsys.readouterr().out.splitlines() == [
        "job j is deleted, with its events, 1 checkpoint (2.0 MB) and 1 file (1.3 MB)",
        "job j was deleted before",
    ]
    assert len(services.asked(pb.DeleteTrainingJobRequest)) == 2


def test_delete_of_a_job_that_never_was_is_bad_input(services: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["delete", "k"]) == 2
    assert "no such job" in capsys.readouterr().err
    assert not services.deleted


def test_watch_left_on_a_paused_job_names_the_command_that_resumes_it(
    services: Recorder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    services.happened(pb.TrainingEvent(state_changed=pb.StateChanged(state=pb.TRAINING_JOB_STATE_RUNNING)))
    services.happened(pb.TrainingEvent(state_changed=pb.StateChanged(state=pb.TRAINING_JOB_STATE_PAUSED)))
    monkeypatch.setattr(fluxsmith.JobHandle, "wait", interrupted)
    assert run(["watch", "j"]) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("job j is paused; let it go on with: fluxsmith resume j ")


def test_watch_shows_the_time_left_as_the_trainer_estimates_it(
    services: Recorder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    services.job.step, services.job.total_steps, services.job.time_left.seconds = 1, 100, 990
    services.job.state = pb.TRAINING_JOB_STATE_RUNNING
    answer = services.answer

    def end_with_the_second_stream(request: Message) -> Iterable[Message]:
        if len(services.asked(pb.WatchTrainingJobRequest)) == 2:
            services.job.state = pb.TRAINING_JOB_STATE_SUCCEEDED
        return answer(request)

    monkeypatch.setattr(services, "answer", end_with_the_second_stream)
    done = pb.StepsCompleted(total_steps=100, steps=[pb.StepMetrics(step=1, loss=1.0)])
    done.steps[0].duration.seconds = 2
    services.happened(pb.TrainingEvent(steps_completed=done))
    assert run(["watch", "j"]) == 0
    shown = capsys.readouterr().err.splitlines()  # and that the recorded stream ended before the job
    assert shown[0] == "step 1 of 100  loss 1.0000 (last step)  2.00 s/step  16:30 min left"


@pytest.mark.parametrize("checkpoint_step", [0, 50])
def test_download_of_a_cancelled_job_names_its_checkpoints_if_it_has_any(
    services: Recorder, capsys: pytest.CaptureFixture[str], checkpoint_step: int
) -> None:
    services.job.state, services.job.checkpoint_step = pb.TRAINING_JOB_STATE_CANCELLED, checkpoint_step
    assert run(["download", "j"]) == 1
    lines = capsys.readouterr().err.splitlines()
    remedy = "Fetch the LoRA of a checkpoint, or train it again." if checkpoint_step else "Train it again."
    assert lines[-1] == f"error: job j was cancelled. {remedy}"
    assert ["fluxsmith checkpoints j" in line for line in lines[:-1]] == [True] * bool(checkpoint_step)


def test_download_of_a_wrong_name_says_so_after_a_cancellation_too(
    services: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    services.job.state = pb.TRAINING_JOB_STATE_CANCELLED
    assert run(["download", "j", "x", "--artifact", "wrong"]) == 2
    assert "no file 'wrong'" in capsys.readouterr().err


def test_a_request_id_of_ones_own_makes_repeating_safe(client: fluxsmith.Client, recorder: Recorder) -> None:
    client.datasets.create(name="ink", request_id="wish-1")
    client.submit("d", fluxsmith.TrainConfig(), request_id="wish-1")
    assert [request.request_id for request in recorder.asked(CreateDatasetRequest)] == ["wish-1"]
    assert [request.request_id for request in recorder.queued()] == ["wish-1"]


def test_a_download_link_is_an_address_and_what_lies_there(client: fluxsmith.Client, recorder: Recorder) -> None:
    link = client.job("j").download_link(artifact_name="report.html")
    (request,) = recorder.asked(pb.CreateDownloadUrlRequest)
    assert request.artifact_name == "report.html"
    assert (link.url, link.artifact.content_digest) == (recorder.store_url, DIGEST)
