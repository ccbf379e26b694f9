"""The whole stack, real in every part: SeaweedFS, encoder, trainer and its worker, flux-tiny."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import fluxsmith
import pytest
from PIL import Image, ImageDraw

from services.stack import Stack

SHORT_LEASE = {"FLUXSMITH_TRAINER_LEASE_S": "3"}


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Shared by the tests that break nothing."""
    with Stack(tmp_path_factory.mktemp("stack"), environment=SHORT_LEASE) as stack:
        yield stack


@pytest.fixture
def own_stack(tmp_path: Path) -> Iterator[Stack]:
    """For a test that kills something."""
    with Stack(tmp_path / "stack", environment=SHORT_LEASE) as stack:
        yield stack


@pytest.fixture
def client(stack: Stack) -> Iterator[fluxsmith.Client]:
    with client_of(stack) as client:
        yield client


@pytest.fixture(scope="session")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten small captioned pictures."""
    return write_drawings(tmp_path_factory.mktemp("drawings"), 10)


@pytest.fixture(scope="session")
def ready(stack: Stack, drawings: Path) -> str:
    """Identifier of an encoded dataset."""
    with client_of(stack) as client:
        return client.datasets.create_from_folder(drawings).id


def client_of(stack: Stack, tenant: str = "default") -> fluxsmith.Client:
    return fluxsmith.Client(encoder=stack.encoder_address, trainer=stack.trainer_address, tenant=tenant)


def learnt(job: fluxsmith.JobHandle, folder: Path) -> bytes:
    """The tensors of the LoRA that a job has made, as bytes; its header has the day on which the job began."""
    job.wait(timeout_s=150)
    data = job.download(folder / f"{job.id}.safetensors").read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :]


def write_drawings(folder: Path, count: int, *, shade: int = 0) -> Path:
    for number in range(count):
        (folder / f"circle-{number}.png").write_bytes(drawing(number, shade=shade))
        (folder / f"circle-{number}.txt").write_text(f"a circle of size {number}")
    return folder


def drawing(number: int, *, shade: int = 0) -> bytes:
    """A PNG file of a circle; every `number` and `shade` gives other pixels."""
    picture = Image.new("RGB", (64, 64), "white")
    radius = 4 + 2 * (number % 13)
    ImageDraw.Draw(picture).ellipse(
        (32 - radius, 32 - radius, 32 + radius, 32 + radius), fill=(number % 251, shade, 90)
    )
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
