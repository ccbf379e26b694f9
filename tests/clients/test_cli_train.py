"""`fluxsmith train`: what the trainer refuses is told before any picture is sent, and what came of it in the end."""

from pathlib import Path

import pytest
from fluxsmith.cli.app import run

from tests.clients.recording import CONTENT, DIGEST, Recorder
from tests.clients.test_adapter_upload import ADAPTER


def test_refusal_of_the_trainer_comes_before_anything_is_uploaded(
    services: Recorder, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    services.refusal = "lokr_factor is for LOKR only"
    assert run(["train", str(folder), "--held-out", str(folder)]) == 2
    assert "lokr_factor is for LOKR only" in capsys.readouterr().err
    assert services.names() == ["CreateTrainingJob"]


@pytest.mark.parametrize(
    ("arguments", "held_out", "early"),
    [([], False, False), (["--held-out", "ink"], True, False), (["--start-early", "--steps", "9"], False, True)],
)
def test_trainer_is_told_what_is_to_come(
    services: Recorder, folder: Path, arguments: list[str], held_out: bool, early: bool
) -> None:
    assert run(["train", str(folder), "--rank", "5", *arguments]) == 0
    [request] = services.validated()
    assert (request.held_out_to_come, request.start_while_encoding) == (held_out, early)
    assert (request.config.rank, request.dataset_id) == (5, "")


def test_warm_start_is_uploaded_before_the_configuration_is_checked_with_it(
    services: Recorder, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "old.safetensors").write_bytes(ADAPTER)
    services.refusal = "wrong"
    assert run(["train", str(folder), "--warm-start", "old.safetensors"]) == 2
    assert services.names() == ["CreateAdapterUpload", "CreateTrainingJob"]
    assert services.validated()[0].config.warm_start_uri == "s3://b/adapter"


def test_file_that_was_there_is_told_as_replaced(
    services: Recorder, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    services.job.result.lora_uri = "s3://b/k"
    assert run(["train", str(folder)]) == 0
    assert "written        ink.safetensors" in capsys.readouterr().out
    assert run(["train", str(folder)]) == 0
    assert "replaced       ink.safetensors" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["train", "ink"], ["watch", "j"]])
def test_better_step_is_told_with_the_command_that_fetches_it(
    services: Recorder, folder: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    services.job.step = 60
    services.job.result.best_step = 40
    assert run(["--tenant", "me", *command]) == 0
    advice = "step 40; fetch it with: fluxsmith --tenant me download j --artifact lora-best.safetensors"
    assert f"better on the held-out pictures: {advice}" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["train", "ink"], ["watch", "j"]])
def test_the_last_lines_lead_to_previews_and_report(
    services: Recorder, folder: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("lora.safetensors", "report.html", "previews/000009-0.png"):
        services.job.result.artifacts.add(
            artifact_name=name, uri="s3://b/k", size_bytes=len(CONTENT), content_digest=DIGEST
        )
    assert run(["--tenant", "me", *command]) == 0
    said = "see previews and report with: "
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(said)]
    words, _, opened = line.removeprefix(said).partition("   then open ")
    assert words == "fluxsmith --tenant me download j j --all"
    assert run(words.split()[1:]) == 0
    assert Path(opened).read_bytes() == CONTENT
    assert Path("j/previews/000009-0.png").is_file()
