"""`fluxsmith watch`: what is told of steps that were there before anybody watched."""

from io import StringIO
from itertools import count

import fluxsmith
import pytest
from fluxsmith.cli.app import run
from fluxsmith.cli.display import LineDisplay
from fluxsmith.cli.following import follow
from fluxsmith.cli.session import Session
from fluxsmith.v1 import trainer_pb2 as trainer
from rich.console import Console

from tests.clients.recording import Recorder


def stepped(services: Recorder, *numbers: int) -> None:
    for number in numbers:
        step = trainer.StepMetrics(step=number, loss=1)
        services.happened(trainer.TrainingEvent(steps_completed=trainer.StepsCompleted(steps=[step], total_steps=5000)))


def test_watch_of_an_ended_job_tells_its_last_step_and_no_time_left(
    services: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    stepped(services, 1, 128)
    services.job.state = trainer.TRAINING_JOB_STATE_CANCELLED
    services.happened(trainer.TrainingEvent(state_changed=trainer.StateChanged(state=services.job.state)))
    assert run(["watch", "j"]) == 1
    first, last, state, _ = capsys.readouterr().err.splitlines()
    assert first.startswith("step 1 of 5000")
    assert last.startswith("step 128 of 5000")
    assert state == "cancelled"
    assert "left" not in first + last


@pytest.mark.parametrize("name", ["report.html", "metrics.csv"])
def test_watch_of_a_job_that_failed_leads_to_its_report_if_there_is_one(
    services: Recorder, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    services.job.state = trainer.TRAINING_JOB_STATE_FAILED
    services.happened(trainer.TrainingEvent(artifact_published=trainer.ArtifactPublished(artifact_name=name)))
    assert run(["watch", "j"]) == 1
    said = "see how far it came with: fluxsmith download j j --all   then open j/report.html"
    assert (said in capsys.readouterr().err.splitlines()) is (name == "report.html")


def test_time_left_is_told_from_the_newest_event_of_a_running_job_on(services: Recorder) -> None:
    services.job.state = trainer.TRAINING_JOB_STATE_RUNNING
    stepped(services, 1, 2)
    out, clock = StringIO(), count(step=10)
    with fluxsmith.Client() as client:
        job = client.job("j")
        stepped(services, 3)
        services.job.state = trainer.TRAINING_JOB_STATE_SUCCEEDED
        display = LineDisplay(Console(file=out), clock=lambda: float(next(clock)))
        follow(job, display, Session(encoder=None, trainer=None, tenant=None))
    assert ["left" in line for line in out.getvalue().splitlines()] == [False, True, True]
