"""The report of a real job, as it lies beside the job's files once all are downloaded."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image

from services.stack import Stack
from tests.integration.conftest import client_of
from tests.services.trainer.results.test_report import Page

PROMPT = 'a circle, "blue"'


@pytest.fixture(scope="module")
def folder(stack: Stack, ready: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All files of a short job."""
    with client_of(stack) as client:
        job = client.train(
            ready,
            steps=2,
            learning_rate=0.05,
            rank=4,
            preview_prompts=[PROMPT],
            preview_seed=3,
            preview_sampling_steps=4,
        )
        job.wait()
        target = tmp_path_factory.mktemp("files")
        job.download_all(target)
    return target


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_the_example_of_use_draws_the_last_preview_verbatim(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Page((folder / "report.html").read_bytes())
    monkeypatch.chdir(folder)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    exec(page.code(), {})  # noqa: S102 - as a reader of the page does
    drawn, last, base = (
        pixels(folder / name) for name in ("picture.png", "previews/000002-0.png", "previews/000000-0.png")
    )
    assert drawn.shape == last.shape
    assert np.abs(drawn - last).mean() < 0.2 * np.abs(drawn - base).mean()


def test_every_link_of_the_page_opens(folder: Path) -> None:
    page = Page((folder / "report.html").read_bytes())
    places = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    addresses = [attributes["href"] or "" for attributes in page.all("a")]
    files = {unquote(address) for address in addresses if not address.startswith("#")}
    assert {"./lora.safetensors", "./metrics.csv", "./previews/000000-0.png", "./previews/000002-0.png"} <= files
    assert all((folder / name).is_file() for name in files)
    assert {address[1:] for address in addresses if address.startswith("#")} <= places


def test_the_pictures_of_the_dataset_are_there_with_their_captions(folder: Path) -> None:
    page = Page((folder / "report.html").read_bytes())
    assert sum("circle-" in str(image["alt"]) for image in page.all("img")) == 10
    assert "a circle of size 9" in page.text
