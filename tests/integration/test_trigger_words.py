"""The trigger word is in every caption and in every preview, whichever way they come to the services."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fluxsmith
import pytest
from fastapi.testclient import TestClient
from fluxsmith import AsyncClient, JobHandle, JobWarning, PreviewRendered
from fluxsmith.cli.app import run
from gateway.app import create_app
from gateway.settings import GatewaySettings
from src.models import FluxTrainingDataset

from services.common import cache
from services.common.object_store import ObjectStore
from services.stack import Stack
from tests.integration.conftest import client_of, drawing

CAPTIONS = ("[trigger] standing", "a drawing")
SHOWN = ["ohwx standing", "ohwx, a drawing"]
QUICK: dict[str, Any] = {"rank": 1, "steps": 1, "preview_sampling_steps": 1, "preview_height_px": 32}
TENANT = "trigger"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures, one of whose captions says where the trigger word goes."""
    into = tmp_path / "pictures"
    into.mkdir()
    for number, caption in enumerate(CAPTIONS):
        (into / f"p{number}.png").write_bytes(drawing(number, shade=7))
        (into / f"p{number}.txt").write_text(caption)
    return into


@pytest.fixture(autouse=True)
def named(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stack is where commands, gateway and clients look."""
    monkeypatch.setenv("FLUXSMITH_ENCODER", stack.encoder_address)
    monkeypatch.setenv("FLUXSMITH_TRAINER", stack.trainer_address)
    monkeypatch.setenv("FLUXSMITH_TENANT", TENANT)


def prompts(events: Iterable[fluxsmith.Event]) -> list[str]:
    """The prompts of the pictures after the only step."""
    return [event.prompt for event in events if isinstance(event, PreviewRendered) and event.step == 1]


def newest(client: fluxsmith.Client) -> JobHandle:
    """The job that was created last."""
    return next(iter(client.jobs()))


def captions(stack: Stack, dataset: fluxsmith.Dataset) -> list[str]:
    """What the encoder has made of a dataset's captions."""
    store = ObjectStore(stack.store_settings)
    pointer = cache.read_pointer(store, TENANT, dataset.id)
    assert pointer
    samples = cache.read_manifest(store, TENANT, pointer.manifest_digest).samples
    return [caption.caption for sample in samples for caption in sample.captions]


@pytest.mark.parametrize(
    ("given", "shown"), [([], SHOWN), (["--preview", "[trigger] on a beach"], ["ohwx on a beach"])]
)
def test_command_shows_what_was_trained(
    stack: Stack, folder: Path, tmp_path: Path, given: list[str], shown: list[str]
) -> None:
    settings = [part for name, value in QUICK.items() for part in ("--set", f"{name}={value}")]
    arguments = ["train", str(folder), "--trigger-word", "ohwx", "-o", str(tmp_path / "x.safetensors")]
    assert run([*arguments, *given, *settings]) == 0
    with client_of(stack, TENANT) as client:
        job = newest(client)
        assert prompts(job.watch()) == shown
        report = tmp_path / "report.html"
        job.download(report, artifact_name="report.html")
        assert shown[0] in report.read_text()
        assert captions(stack, client.datasets.get(job.snapshot.dataset_id)) == SHOWN


@pytest.mark.asyncio
async def test_job_that_begins_while_samples_are_encoded_shows_them_too(stack: Stack, folder: Path) -> None:
    async with AsyncClient(stack.encoder_address, stack.trainer_address, tenant=TENANT) as client:
        dataset = await client.datasets.create_from_folder(folder, trigger_word="ohwx", wait=False)
        job = await client.train(dataset, start_while_encoding=True, preview_prompts=list(CAPTIONS), **QUICK)
        assert prompts([event async for event in job.watch()]) == SHOWN


def test_gateway_takes_a_trigger_word(stack: Stack) -> None:
    samples = [
        {"image": base64.b64encode(drawing(number, shade=8)).decode(), "description": caption}
        for number, caption in enumerate(CAPTIONS)
    ]
    params = {**QUICK, "preview_prompts": list(CAPTIONS)}
    body = {"train_data": samples, "user_id": 1, "trigger_word": "ohwx", "training_params": params}
    with TestClient(create_app(GatewaySettings()), headers={"Fluxsmith-Tenant": TENANT}) as web:
        answer = web.post("/train-lora", json=body)
        assert answer.status_code == 200, answer.text
    with client_of(stack, TENANT) as client:
        job = client.job(answer.json()["job_id"])
        assert prompts(job.watch()) == SHOWN
        assert captions(stack, client.datasets.get(job.snapshot.dataset_id)) == SHOWN


def test_interface_of_src_models_takes_a_trigger_word(stack: Stack) -> None:
    samples = [
        {"image": base64.b64encode(drawing(number, shade=9)).decode(), "description": caption}
        for number, caption in enumerate(CAPTIONS)
    ]
    with client_of(stack, TENANT) as client:
        dataset = FluxTrainingDataset(samples).cache(client, trigger_word="ohwx")
        assert captions(stack, dataset) == SHOWN


def test_place_without_a_trigger_word_stays_and_is_warned_of(stack: Stack, folder: Path) -> None:
    with client_of(stack, TENANT) as client:
        dataset = client.datasets.create_from_folder(folder)
        job = client.train(dataset, preview_prompts=["[trigger] on a beach"], **QUICK)
        job.wait()
        events = list(job.watch())
    assert prompts(events) == ["[trigger] on a beach"]
    (warning,) = [event for event in events if isinstance(event, JobWarning) and event.reason == "TRIGGER_MISSING"]
    assert "1 preview prompt and the captions of 1 sample" in warning.message
