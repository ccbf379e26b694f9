"""Ctrl-C before there is a job: a quiet end with 130, and what is left behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from fluxsmith.cli.app import run
from fluxsmith.v1 import encoder_pb2 as encoder
from fluxsmith.v1 import trainer_pb2 as trainer
from google.protobuf.message import Message

from tests.clients.recording import Recorder

INTERRUPTED_IMPORT = """
import os, signal, sys, fluxsmith_command

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
fluxsmith_command.main()
"""


@pytest.mark.parametrize("module", ["fluxsmith", "grpc", "fluxsmith.cli.train", "rich.table"])
def test_command_that_is_still_being_imported_ends_quietly(module: str) -> None:
    process = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IMPORT, module], capture_output=True, text=True, check=False
    )
    assert (process.returncode, process.stdout, process.stderr) == (130, "", "")


@pytest.mark.parametrize(
    ("moment", "left"),
    [
        (encoder.EncodeDatasetRequest, "nothing was queued; what was sent stays; list it with: fluxsmith datasets"),
        (trainer.CreateTrainingJobRequest, "may have been queued nevertheless; list it with: fluxsmith jobs"),
    ],
)
def test_interrupted_training_tells_what_is_left(
    services: Recorder,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    moment: type[Message],
    left: str,
) -> None:
    answer = services.answer

    def interrupt(request: Message) -> Iterable[Message]:
        if isinstance(request, moment) and not getattr(request, "validate_only", False):
            os.kill(os.getpid(), signal.SIGINT)
        return answer(request)

    monkeypatch.setattr(services, "answer", interrupt)
    assert run(["train", str(folder)]) == 130
    assert left in capsys.readouterr().err
