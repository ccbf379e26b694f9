"""What others write reaches the terminal as text: names of files and words of services give it no orders."""

import json

import pytest
from fluxsmith import errors
from fluxsmith.cli.app import run
from fluxsmith.cli.text import to_json
from fluxsmith.v1 import encoder_pb2 as encoder
from fluxsmith.v1 import trainer_pb2 as trainer
from grpc import StatusCode

from tests.clients.recording import CONTENT, DIGEST, Recorder
from tests.clients.test_status import FailedCall, info, translate

ORDER = "\x1b]0;owned\x07\x1b[31m\x9b2J\r\u2028"  # a title, a color, an erased screen, a line that is overwritten
SHOWN = r"\x1b]0;owned\x07\x1b[31m\x9b2J"


@pytest.fixture
def hostile(services: Recorder) -> Recorder:
    """Services that put orders for the terminal into all they say of a job."""
    job = services.job
    job.display_name = job.user_id = ORDER
    job.failure.reason, job.failure.message, job.failure.remedy = "R", f"failed {ORDER}", f"mend {ORDER}"
    job.state = trainer.TRAINING_JOB_STATE_FAILED
    name = f"previews/{ORDER}.png"
    job.result.artifacts.add(artifact_name=name, uri="s3://b/x", size_bytes=len(CONTENT), content_digest=DIGEST)
    services.encoded.display_name = ORDER
    services.encoded.problems.add(sample_name=ORDER, message=ORDER, reason=encoder.SAMPLE_PROBLEM_REASON_NOT_AN_IMAGE)
    warning = trainer.JobWarning(reason="SHORT_RUN", message=f"careful {ORDER}")
    services.happened(trainer.TrainingEvent(warning=warning))
    services.happened(trainer.TrainingEvent(state_changed=trainer.StateChanged(state=job.state, message=ORDER)))
    return services


@pytest.mark.parametrize(
    "command", ["jobs", "files j", "watch j", "logs j", "jobs --json", "watch j --json", "logs j --json"]
)
def test_no_command_hands_orders_of_a_service_to_the_terminal(
    hostile: Recorder, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    run(command.split())
    said = "".join(capsys.readouterr())
    assert "owned" in said
    assert not set(ORDER) & set(said) & {"\x1b", "\x07", "\x9b", "\r", "\u2028"}


def test_orders_in_a_files_name_are_shown(services: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", f"ink{ORDER}", "-o", "out.safetensors"]) == 2
    said = capsys.readouterr().err
    assert SHOWN in said
    assert "\x1b" not in said


def test_orders_in_an_error_of_a_service_are_shown_whoever_prints_it() -> None:
    refused = translate(FailedCall(StatusCode.INVALID_ARGUMENT, f"no {ORDER}", info(f"Do {ORDER}")))
    assert SHOWN in refused.message
    assert SHOWN in refused.remedy
    assert str(errors.InvalidFolder(f"a{ORDER}", remedy="Mend it.")).startswith(f"a{SHOWN}")


def test_json_is_the_same_value_without_control_characters() -> None:
    text = to_json({"name": ORDER})
    assert text.isascii()
    assert json.loads(text) == {"name": ORDER}
