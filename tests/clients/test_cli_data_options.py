"""The options about data: what they become, that they are checked before anything is sent, and both commands' ways."""

from pathlib import Path

import pytest
from fluxsmith import AlphaPolicy, EncodingOptions, LatentForm
from fluxsmith._wire_datasets import read_options
from fluxsmith.cli.app import run
from fluxsmith.v1 import encoder_pb2

from tests.clients.recording import CONTENT, Recorder

EVERY_OPTION = [
    *("--resolution", "512", "--resolution", "768", "--bucket-step", "64", "--upscale", "--flip"),
    *("--random-crops", "2", "--trigger-word", "sks", "--background", "#80FF80", "--mask-alpha"),
    *("--latents", "mean", "--skip-bad", "--max-bad-share", "0.25"),
]
EVERY_VALUE = EncodingOptions(
    resolutions_px=(512, 768),
    bucket_step_px=64,
    upscale=True,
    flip=True,
    random_crops=2,
    trigger_word="sks",
    background_color="#80FF80",
    alpha_policy=AlphaPolicy.MASK,
    latent_form=LatentForm.MEAN,
    skip_bad_samples=True,
    max_bad_share=0.25,
)


def encoded_with(services: Recorder) -> list[EncodingOptions]:
    return [read_options(asked.options) for asked in services.asked(encoder_pb2.EncodeDatasetRequest)]


def test_train_encodes_with_the_options(services: Recorder, folder: Path) -> None:
    assert run(["train", str(folder), *EVERY_OPTION]) == 0
    assert encoded_with(services) == [EVERY_VALUE]
    assert Path("ink.safetensors").read_bytes() == CONTENT


def test_train_without_options_leaves_all_to_the_encoder(services: Recorder, folder: Path) -> None:
    assert run(["train", str(folder)]) == 0
    assert encoded_with(services) == [EncodingOptions()]


def test_one_resolution_is_sent_as_one(services: Recorder, folder: Path) -> None:
    assert run(["train", str(folder), "--resolution", "512"]) == 0
    assert encoded_with(services) == [EncodingOptions(resolution_px=512)]


def test_held_out_images_are_measured_in_one_plain_view(services: Recorder, folder: Path) -> None:
    assert run(["train", str(folder), "--held-out", str(folder), "--flip", "--random-crops", "2", "--upscale"]) == 0
    assert encoded_with(services) == [
        EncodingOptions(upscale=True),
        EncodingOptions(upscale=True, flip=True, random_crops=2),
    ]


def test_early_start_submits_while_encoding(services: Recorder, folder: Path) -> None:
    assert run(["train", str(folder), "--start-early", "--steps", "9"]) == 0
    [job] = services.queued()
    assert job.start_while_encoding
    assert "WatchDataset" not in services.names()


@pytest.mark.parametrize("early", [[], ["--start-early", "--steps", "9"]])
def test_problems_with_samples_are_told(
    services: Recorder, folder: Path, early: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    services.encoded.problem_count = 1
    services.encoded.problems.add(sample_name="a.png", message="is there twice", warning=True)
    assert run(["train", str(folder), *early]) == 0
    assert "warning: a.png: is there twice" in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("--resolution 72", "'--resolution': 72 is not a multiple of 16"),
        ("--resolution 32", "'--resolution'"),
        ("--resolution 64 " * 5, "'--resolution': 5 are given; give 4 at most"),
        ("--bucket-step 24", "'--bucket-step': 24 is not a multiple of 16"),
        ("--random-crops 9", "'--random-crops'"),
        ("--background white", "'--background': 'white' is not of the form"),
        ("--trigger-word " + "x" * 65, "'--trigger-word': it has 65 characters"),
        ("--random-crops 8 --flip --resolution 64 --resolution 80", "'--random-crops': with --flip and --resolution"),
        ("--latents wild", "'--latents'"),
        ("--max-bad-share 0.5", "'--max-bad-share': it needs --skip-bad"),
        ("--skip-bad --max-bad-share 1.5", "'--max-bad-share'"),
        ("--start-early --epochs 2", "'--start-early': it needs --steps"),
    ],
)
def test_option_out_of_range_is_told_before_anything_is_sent(
    services: Recorder, folder: Path, options: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", str(folder), *options.split()]) == 2
    assert f"Invalid value for {problem}" in capsys.readouterr().err
    assert not services.requests


def test_contact_sheet_of_a_folder_leaves_nothing_behind(
    services: Recorder, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["contact-sheet", str(folder), *EVERY_OPTION, "--per-page", "9"]) == 0
    [asked] = services.asked(encoder_pb2.RenderContactSheetRequest)
    assert read_options(asked.options) == EVERY_VALUE
    assert asked.page_size == 9
    assert services.names() == ["CreateDataset", *["UploadSamples"] * 3, "RenderContactSheet", "DeleteDataset"]
    assert capsys.readouterr().out == f"ink-contact-sheet.png ({len(CONTENT)} bytes)\n"
    assert Path("ink-contact-sheet.png").read_bytes() == CONTENT


def test_contact_sheet_of_a_folder_is_cleared_up_after_a_failure(services: Recorder, folder: Path) -> None:
    services.store_url = "http://127.0.0.1:1"
    assert run(["contact-sheet", str(folder)]) == 3
    assert services.names()[-1] == "DeleteDataset"


def test_contact_sheet_of_a_dataset_only_draws(services: Recorder) -> None:
    services.sheet_pages = 2
    assert run(["contact-sheet", "d", "-o", "sheet.png"]) == 0
    assert services.names() == ["RenderContactSheet"] * 2
    assert not any(asked.HasField("options") for asked in services.asked(encoder_pb2.RenderContactSheetRequest))
    assert sorted(path.name for path in Path().glob("*.png")) == ["sheet-2.png", "sheet.png"]
