"""The services' collaborators, real and loaded once: models, diffusers' pipeline as the reference, an S3 server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel

from services.common.logs import hide_progress_bars, set_up_logging
from services.common.object_store import ObjectStore
from services.common.settings import ServiceSettings
from services.encoder.models import EncoderModels, ModelThread, load_models
from services.encoder.settings import EncoderSettings
from services.stack import Stack
from services.trainer.transformer import load_transformer


@pytest.fixture(scope="session", autouse=True)
def _quiet_libraries() -> None:
    set_up_logging("WARNING")
    hide_progress_bars()


@pytest.fixture(scope="session")
def service_settings(base_model: Path) -> ServiceSettings:
    """Settings of both services: float32 on the CPU, or what they choose on the device FLUXSMITH_TEST_DEVICE."""
    device = os.environ.get("FLUXSMITH_TEST_DEVICE", "cpu")
    return ServiceSettings(base_model=str(base_model), device=device, dtype="fp32" if device == "cpu" else "auto")


@pytest.fixture(scope="session")
def transformer(service_settings: ServiceSettings) -> FluxTransformer2DModel:
    """The resident base transformer. Shared: whoever attaches something to it takes it off again."""
    return load_transformer(service_settings)


@pytest.fixture(autouse=True)
def transformer_is_left_as_it_was(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test that changes a weight of the shared transformer, not one that comes after it."""
    if "transformer" not in request.fixturenames:
        yield
        return
    weights = dict(request.getfixturevalue("transformer").named_parameters())
    before = {name: checksum(weight) for name, weight in weights.items()}
    yield
    changed = [name for name, weight in weights.items() if checksum(weight) != before[name]]
    assert not changed, f"change a copy: all tests share {changed[0]}"


def checksum(weight: torch.Tensor) -> int:
    """The sum of the weight's bits, read as whole numbers."""
    bits = {2: torch.int16, 4: torch.int32}[weight.element_size()]
    return int(weight.detach().view(bits).sum(dtype=torch.int64))


@pytest.fixture(scope="session")
def pipeline(base_model: Path) -> FluxPipeline:
    """Diffusers' own pipeline over the same folder, the reference for what the services compute."""
    return FluxPipeline.from_pretrained(base_model, dtype=torch.float32)


@pytest.fixture(scope="session")
def encoder_models(service_settings: ServiceSettings) -> EncoderModels:
    """The encoder's models with T5 in float32."""
    return load_models(service_settings, EncoderSettings(t5_precision="fp32"))


@pytest.fixture(scope="session")
def model_thread(encoder_models: EncoderModels) -> Iterator[ModelThread]:
    """The thread that runs the encoder's models."""
    thread = ModelThread(encoder_models)
    yield thread
    thread.close()


@pytest.fixture(scope="session")
def store_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack of which only the S3 server runs."""
    stack = Stack(tmp_path_factory.mktemp("stack"))
    try:
        stack.start_store()
        yield stack
    finally:
        stack.stop()


@pytest.fixture(scope="session")
def store(store_stack: Stack) -> ObjectStore:
    """The object store on a real S3 server. Shared by all tests, so keys begin with a tenant of the test's own."""
    return ObjectStore(store_stack.store_settings)


@pytest.fixture
def tenant(request: pytest.FixtureRequest) -> str:
    """A tenant that no other test uses."""
    return f"t{abs(hash(request.node.nodeid)):x}"
