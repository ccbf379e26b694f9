"""Bad input gets a clear status with a reason and a remedy; the command line prints one line and fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fluxsmith
import pytest
from fluxsmith import errors, read_folder

from services.stack import Stack
from tests.integration.conftest import drawing, write_drawings


def test_a_file_that_is_no_image_is_named(client: fluxsmith.Client, tmp_path: Path) -> None:
    write_drawings(tmp_path, 2, shade=3)
    (tmp_path / "broken.png").write_bytes(b"this is text")
    (tmp_path / "broken.txt").write_text("a broken file")
    with pytest.raises(errors.DatasetFailed, match=r"broken\.png") as raised:
        client.datasets.create_from_folder(tmp_path)
    assert [problem.reason.value for problem in raised.value.dataset.problems] == ["NOT_AN_IMAGE"]


def test_a_truncated_image_is_named(client: fluxsmith.Client, tmp_path: Path) -> None:
    write_drawings(tmp_path, 2, shade=4)
    (tmp_path / "half.png").write_bytes(drawing(5, shade=4)[:-60])
    (tmp_path / "half.txt").write_text("half a file")
    with pytest.raises(errors.DatasetFailed) as raised:
        client.datasets.create_from_folder(tmp_path)
    assert [problem.reason.value for problem in raised.value.dataset.problems] == ["TRUNCATED"]


def test_bad_samples_are_left_out_when_asked(client: fluxsmith.Client, tmp_path: Path) -> None:
    write_drawings(tmp_path, 2, shade=5)
    (tmp_path / "broken.png").write_bytes(b"this is text")
    (tmp_path / "broken.txt").write_text("a broken file")
    dataset = client.datasets.create()
    client.datasets.upload(dataset, read_folder(tmp_path))
    client.datasets.encode(dataset, skip_bad_samples=True)
    finished = client.datasets.wait(dataset)
    assert finished.encoded_count == 2
    assert [problem.sample_name for problem in finished.problems] == ["broken.png"]


def test_an_empty_caption_is_refused(client: fluxsmith.Client, drawings: Path) -> None:
    dataset = client.datasets.create()
    image = fluxsmith.CaptionedImage(name="x.png", captions=("  ",), path=drawings / "circle-0.png")
    with pytest.raises(errors.InvalidRequest) as raised:
        client.datasets.upload(dataset, [image])
    assert raised.value.reason == "CAPTION_EMPTY"


def test_samples_of_any_name_and_caption_are_stored_as_they_are(client: fluxsmith.Client, tmp_path: Path) -> None:
    """What the reading of a folder makes of names and captions is what the encoder takes, and gives back."""
    joined = "\U0001f468\u200d\U0001f469"
    odd = ["3.04\u202fPM", "\u6771\u3000\u4eac", joined, "\u05e9\u200f", "e\u0301", "\u00e9", "a\nb", "x" * 240]
    for number, stem in enumerate(odd):
        (tmp_path / f"{stem}.png").write_bytes(drawing(number, shade=7))
        (tmp_path / f"{stem}.txt").write_text(f"Mr\u00a0{stem.strip()}\n\t\u732b")
    images = read_folder(tmp_path)
    dataset = client.datasets.create(name=f"Mr\u00a0{joined}")
    client.datasets.upload(dataset, images)
    stored = {sample.name: sample.captions for sample in client.datasets.samples(dataset)}
    assert stored == {image.name: image.captions for image in images}
    assert len(stored) == len(odd)
    assert client.datasets.get(dataset.id).name == f"Mr\u00a0{joined}"
    client.datasets.delete(dataset)


def test_an_unknown_dataset_is_not_found(client: fluxsmith.Client) -> None:
    for call in (lambda: client.datasets.get("ds-none"), lambda: client.train("ds-none", steps=1)):
        with pytest.raises(errors.NotFound) as raised:
            call()
        assert raised.value.reason == "DATASET_NOT_FOUND"


def test_every_violation_of_a_configuration_comes_at_once(client: fluxsmith.Client, ready: str) -> None:
    with pytest.raises(errors.InvalidRequest) as raised:
        client.train(ready, rank=0, learning_rate=-1.0, batch_size=1000)
    assert {violation.field for violation in raised.value.violations} == {
        "config.rank",
        "config.learning_rate",
        "config.batch_size",
    }


def test_a_job_before_encoding_has_finished_is_refused(client: fluxsmith.Client) -> None:
    dataset = client.datasets.create()
    with pytest.raises(errors.FailedPrecondition) as raised:
        client.train(dataset, steps=1)
    assert raised.value.reason == "DATASET_NOT_READY"
    assert "wait until it is READY" in raised.value.remedy


def test_encoding_an_empty_dataset_is_refused(client: fluxsmith.Client) -> None:
    with pytest.raises(errors.FailedPrecondition) as raised:
        client.datasets.encode(client.datasets.create())
    assert raised.value.reason == "DATASET_EMPTY"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "no-such-folder"], "no-such-folder"),
        (["train", "."], "no images"),
        (["watch", "job-none"], "job-none"),
        (["train", "DRAWINGS", "--rank", "0"], "rank"),
    ],
)
def test_the_command_line_says_it_in_one_line(
    stack: Stack, drawings: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    filled = [str(drawings) if argument == "DRAWINGS" else argument for argument in arguments]
    services = ["--encoder", stack.encoder_address, "--trainer", stack.trainer_address]
    process = subprocess.run(
        [sys.executable, "-m", "fluxsmith", *services, *filled],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode in {1, 2}
    lines = [line for line in process.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert said in lines[0]
    assert "Traceback" not in process.stderr


def test_services_that_are_down_are_named(tmp_path: Path, drawings: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "fluxsmith", "--encoder", "127.0.0.1:9", "--trainer", "127.0.0.1:9", "jobs"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 3
    assert "127.0.0.1:9" in process.stderr
    assert "another address to --trainer" in process.stderr
