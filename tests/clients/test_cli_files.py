"""The files of a job on the command line: listed, and fetched one by one or all."""

import json
from pathlib import Path

import pytest
from fluxsmith.cli.app import run
from fluxsmith.v1 import trainer_pb2

from tests.clients.recording import CONTENT, DIGEST, Recorder


@pytest.fixture
def made(services: Recorder) -> Recorder:
    """Services whose job has made three files."""
    for name in ("lora.safetensors", "report.html", "previews/0-1.png"):
        services.job.result.artifacts.add(
            artifact_name=name, uri=f"s3://b/{name}", size_bytes=len(CONTENT), content_digest=DIGEST
        )
    return services


def written() -> list[str]:
    return sorted(path.as_posix() for path in Path().rglob("*") if path.is_file())


def test_files_are_listed(made: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["files", "j"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["name", "lora.safetensors", "previews/0-1.png", "report.html"]
    assert lines[-1].split()[1:] == [str(len(CONTENT)), "bytes"]


def test_files_are_listed_as_json(made: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["files", "j", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0] == {
        "artifact_name": "lora.safetensors",
        "uri": "s3://b/lora.safetensors",
        "size_bytes": len(CONTENT),
        "content_digest": DIGEST,
    }


def test_no_files_are_said_and_nothing_printed(services: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    assert (run(["files", "j"]), run(["download", "j", "--all"])) == (0, 0)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "No files yet.\n" * 2)


@pytest.mark.parametrize(
    ("arguments", "asked", "files"),
    [
        ([], [""], ["j.safetensors"]),
        (["ink.safetensors"], [""], ["ink.safetensors"]),
        (["--artifact", "report.html"], ["report.html"], ["report.html"]),
        (["--artifact", "previews/0-1.png"], ["previews/0-1.png"], ["0-1.png"]),
        (["x.png", "--artifact", "previews/0-1.png"], ["previews/0-1.png"], ["x.png"]),
        (
            ["--all"],
            ["lora.safetensors", "previews/0-1.png", "report.html"],
            ["j/lora.safetensors", "j/previews/0-1.png", "j/report.html"],
        ),
        (
            ["out", "--all"],
            ["lora.safetensors", "previews/0-1.png", "report.html"],
            ["out/lora.safetensors", "out/previews/0-1.png", "out/report.html"],
        ),
    ],
)
def test_download_writes_what_was_asked_for(
    made: Recorder, capsys: pytest.CaptureFixture[str], arguments: list[str], asked: list[str], files: list[str]
) -> None:
    assert run(["download", "j", *arguments]) == 0
    assert [request.artifact_name for request in made.asked(trainer_pb2.CreateDownloadUrlRequest)] == asked
    assert written() == files
    assert capsys.readouterr().out.splitlines() == [f"{file} ({len(CONTENT)} bytes)" for file in files]


def test_files_left_alone_are_told_as_unchanged(made: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["download", "j", "--all"]) == 0
    Path("j/report.html").write_text("old")
    capsys.readouterr()
    assert run(["download", "j", "--all"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "j/lora.safetensors (unchanged)",
        "j/previews/0-1.png (unchanged)",
        f"j/report.html ({len(CONTENT)} bytes)",
    ]


def test_one_file_and_all_exclude_each_other(made: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["download", "j", "--all", "--artifact", "report.html"]) == 2
    assert "exclude each other" in capsys.readouterr().err
    assert not made.requests
