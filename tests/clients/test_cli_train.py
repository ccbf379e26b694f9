"""`fluxsmith train`: what the trainer refuses is told before any picture is sent, and what came of it in the end."""

from pathlib import Path

import pytest
from fluxsmith.cli.app import run
from fluxsmith.v1 import trainer_pb2

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


def better(services: Recorder) -> None:
    """Let the job have been best before its end."""
    services.job.step = 60
    services.job.result.best_step = 40
    services.job.result.best_artifact_name = "lora-best.safetensors"
    services.job.result.held_out_loss_best = 0.5
    services.job.result.held_out_loss_lora = 0.75


def test_training_writes_the_best_step_beside_the_last_and_names_it_first(
    services: Recorder, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    better(services)
    assert run(["train", str(folder)]) == 0
    asked = services.asked(trainer_pb2.CreateDownloadUrlRequest)
    assert [request.artifact_name for request in asked] == ["", "lora-best.safetensors"]
    written = [line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines() if line.startswith("written")]
    assert written == ["ink-best.safetensors (best step, 40)", "ink.safetensors (last step, 60)"]


def test_who_watches_is_told_both_files_the_best_first(services: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    better(services)
    assert run(["--tenant", "me", "watch", "j"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "Fetch the best step's file (40) with: fluxsmith --tenant me download j --artifact lora-best.safetensors",
        "Fetch the last step's (60) with: fluxsmith --tenant me download j",
    ]


def test_who_downloads_the_last_step_hears_of_the_better_one(
    services: Recorder, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    better(services)
    assert run(["download", "j"]) == 0
    heard = capsys.readouterr().err
    assert "that is the last step's; best step 40: 0.5000; last step 60: 0.7500" in heard
    assert "fluxsmith download j --artifact lora-best.safetensors" in heard
    assert run(["download", "j", "--artifact", "lora-best.safetensors"]) == 0
    assert capsys.readouterr().err == ""


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


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--name", "a\nb"], "--name 'a\\nb' has the control character U+000A"),
        (["--name", "x" * 201], "has 201 characters; use 200 at most"),
        (["--name", "\u200b"], "has spaces and invisible characters alone"),
        (["--user", "\x07"], "--user '\\x07' has the control character U+0007"),
        (["--user", "u" * 65], "has 65 characters; use 64 at most"),
        (["--trigger-word", "a\x1b"], "'--trigger-word': it has the control character U+001B"),
        (["--trigger-word", "\u200b"], "'--trigger-word': it has spaces and invisible characters alone"),
        (["-o", "ink"], "the output ink is a folder"),
        (["-o", "none/ink"], "is in a folder that does not exist"),
        (["-o", "none/"], "the output none/ is in a folder that does not exist"),
        (["-o", "ink/"], "the output ink is a folder"),
        (["-o", "ink/a.png/ink"], "is in something that is no folder"),
        (["-o", "x" * 300], "cannot be written: File name too long"),
        (["-o", "/dev/null"], "it is no file"),
    ],
)
def test_what_the_job_could_not_end_with_is_told_before_anything_is_asked(
    services: Recorder, folder: Path, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", str(folder), *arguments]) == 2
    assert told in capsys.readouterr().err
    assert services.names() == []


@pytest.mark.parametrize(
    ("given", "written"),
    [("mylora", "mylora.safetensors"), ("v1.2", "v1.2.safetensors"), ("A.SafeTensors", "A.SafeTensors")],
)
def test_output_gets_the_suffix_by_which_programs_find_it(
    services: Recorder, folder: Path, given: str, written: str, tmp_path: Path
) -> None:
    assert run(["train", str(folder), "-o", given]) == 0
    assert (tmp_path / written).is_file()


def test_a_folder_of_any_name_can_be_trained_on(
    services: Recorder, folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("a\nb\u00a0c", "\u732b" * 85, "\u200b"):
        folder = folder.rename(tmp_path / name)
        assert run(["train", str(folder)]) == 0, capsys.readouterr().err
    assert [request.display_name for request in services.queued()] == ["a_b\u00a0c", "\u732b" * 85, ""]
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {
        "a_b\u00a0c.safetensors", "\u732b" * 66 + ".safetensors", "fluxsmith.safetensors",
    }  # fmt: skip


@pytest.mark.parametrize("command", ["train", "contact-sheet"])
def test_what_a_folder_has_beside_its_pictures_is_told_before_the_upload(
    services: Recorder, folder: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "b.jp2").write_bytes(b"x")
    assert run([command, str(folder)]) == 0
    told, _, rest = capsys.readouterr().err.partition("upload ink")
    assert f"left out of {folder}: 1 file of another format (b.jp2)" in told
    assert "left out" not in rest


def test_refused_captions_come_with_the_option_that_leaves_them_out(
    services: Recorder, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bare.png").write_bytes(b"image")
    assert run(["train", str(folder)]) == 2
    assert "Or leave them out with --skip-bad." in capsys.readouterr().err
    assert run(["train", str(folder), "--skip-bad"]) == 0
    assert "1 image without a caption file (bare.png)" in capsys.readouterr().err
