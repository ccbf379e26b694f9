"""A client of services that record what they are asked, and a folder to give it."""

from collections.abc import Iterator
from pathlib import Path

import fluxsmith
import pytest
from fluxsmith import RetryPolicy

from tests.clients.recording import Recorder, serving, store


@pytest.fixture(scope="session")
def recording_store_url() -> Iterator[str]:
    with store() as url:
        yield url


@pytest.fixture
def recorder(recording_store_url: str) -> Iterator[Recorder]:
    recorder = Recorder(recording_store_url)
    with serving(recorder):
        yield recorder


@pytest.fixture
def client(recorder: Recorder) -> Iterator[fluxsmith.Client]:
    with fluxsmith.Client(encoder=recorder.address, trainer=recorder.address, retry=RetryPolicy(outage_s=2)) as client:
        yield client


@pytest.fixture
def services(recorder: Recorder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Recorder:
    """The recording services, as those that the command finds; files are written where the test may look."""
    monkeypatch.setenv("FLUXSMITH_ENCODER", recorder.address)
    monkeypatch.setenv("FLUXSMITH_TRAINER", recorder.address)
    monkeypatch.chdir(tmp_path)
    return recorder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of one captioned image, called `ink`."""
    ink = tmp_path / "ink"
    ink.mkdir()
    (ink / "a.png").write_bytes(b"image")
    (ink / "a.txt").write_text("a cat")
    return ink
