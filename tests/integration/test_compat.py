"""The interface of `src.models`: each of its documented examples, as it is written there, against live services."""

from __future__ import annotations

import base64
import contextlib
import io
from typing import Any

import fluxsmith
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from fluxsmith import errors
from pydantic import BaseModel
from src.models import FluxTrainingDataset, InvalidImageFormat, OutOfMemory, Settings, TextEncodingFailed
from src.models.errors import successor_of
from src.models.flux_training_module import FluxLoRATrainingModule, train_lora
from src.models.flux_training_utils import estimate_flux_memory_usage, validate_flux_training_config

from services.stack import Stack
from tests.integration.conftest import drawing

BASIC_TRAINING = """
from src.models.training_module import flux_training_module

# Prepare training data
train_data = [
    {
        "image": base64_encoded_image,
        "description": "A detailed description of the image"
    },
    # ... more samples
]

# Train LoRA
s3_url = flux_training_module.train_lora(
    train_data=train_data,
    user_id=123,
    rank=16,
    alpha=16,
    learning_rate=1e-4,
    epochs=1,
    batch_size=1
)
"""
ADVANCED_CONFIGURATION = """
# Custom training parameters
s3_url = flux_training_module.train_lora(
    train_data=train_data,
    user_id=123,
    rank=32,           # Higher rank for more capacity
    alpha=32,          # Match alpha to rank
    learning_rate=5e-5, # Lower learning rate
    epochs=2,          # More epochs
    batch_size=1       # Keep batch size at 1
)
"""
MEMORY_ESTIMATION = """
from src.models.flux_training_utils import estimate_flux_memory_usage

memory_info = estimate_flux_memory_usage(
    batch_size=1,
    rank=16,
    mixed_precision=True
)
print(f"Recommended VRAM: {memory_info['recommended_vram_gb']:.1f} GB")
"""
CONFIGURATION_VALIDATION = """
from src.models.flux_training_utils import validate_flux_training_config

validate_flux_training_config(
    batch_size=1,
    learning_rate=1e-4,
    rank=16,
    alpha=16
)
"""
API_INTEGRATION = """
# In endpoints.py
from src.models import flux_training_module

@app.post("/train-lora")
async def train_lora(request: TrainLoRARequest):
    s3_url = flux_training_module.train_lora(
        train_data=request.train_data,
        user_id=request.user_id,
        **request.training_params
    )
    return {"model_url": s3_url}
"""
BACKWARD_COMPATIBILITY = """
# Legacy import still works
from src.models import training_module  # Points to flux_training_module
"""


@pytest.fixture(autouse=True)
def addresses(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the services are, as a backend is told it."""
    monkeypatch.setenv("FLUXSMITH_ENCODER", stack.encoder_address)
    monkeypatch.setenv("FLUXSMITH_TRAINER", stack.trainer_address)


def run(code: str, scope: dict[str, Any]) -> None:
    exec(code, scope)  # noqa: S102 - the examples above


def sample(number: int = 1, description: str = "a circle") -> dict[str, str]:
    return {"image": base64.b64encode(drawing(number)).decode(), "description": description}


def newest(client: fluxsmith.Client) -> fluxsmith.TrainingJob:
    return next(iter(client.jobs(user_id="123"))).snapshot


def test_basic_training_then_advanced_configuration(client: fluxsmith.Client) -> None:
    scope: dict[str, Any] = {"base64_encoded_image": sample()["image"]}
    run(BASIC_TRAINING, scope)
    basic = newest(client)
    run(ADVANCED_CONFIGURATION, scope)
    advanced = newest(client)
    for job, rank, rate, epochs in ((basic, 16, 1e-4, 1), (advanced, 32, 5e-5, 2)):
        config = job.config
        assert (config.rank, config.alpha, config.learning_rate, config.epochs) == (rank, rank, rate, epochs)
        assert (config.sigma_sampling, config.timesteps) == (fluxsmith.SigmaSampling.UNIFORM, 1000)
        assert config.guidance is fluxsmith.GuidanceMode.BYPASS
    assert advanced.result
    assert scope["s3_url"] == advanced.result.lora_uri
    assert scope["s3_url"].startswith("s3://")
    with pytest.raises(errors.NotFound):  # the pictures are gone with the end of the job
        client.datasets.get(advanced.dataset_id)


def test_memory_estimation() -> None:
    printed = io.StringIO()
    scope: dict[str, Any] = {}
    with contextlib.redirect_stdout(printed):
        run(MEMORY_ESTIMATION, scope)
    usage = scope["memory_info"]
    assert printed.getvalue() == f"Recommended VRAM: {usage['recommended_vram_gb']:.1f} GB\n"
    assert sum(usage["parts_gb"].values()) == pytest.approx(usage["peak_gb"])
    assert usage["parts_gb"]["weights"] > 15  # of FLUX.1-dev, though flux-tiny is loaded
    assert list(usage["documented_gb"].values()) == [26.0, 28.0, 30.0]


def test_memory_grows_with_batch_rank_and_precision() -> None:
    least = estimate_flux_memory_usage(1, 16)["recommended_vram_gb"]
    assert all(estimate_flux_memory_usage(*more)["recommended_vram_gb"] > least for more in ((2, 16), (1, 32)))
    assert estimate_flux_memory_usage(1, 16, mixed_precision=False)["peak_gb"] > 1.5 * least


def test_configuration_validation() -> None:
    run(CONFIGURATION_VALIDATION, {})
    with pytest.raises(errors.InvalidRequest) as caught:
        validate_flux_training_config(batch_size=0, learning_rate=1e-4, rank=1000, alpha=16)
    assert {violation.field for violation in caught.value.violations} == {"config.batch_size", "config.rank"}


class TrainLoRARequest(BaseModel):
    train_data: list[dict[str, str]]
    user_id: int
    training_params: dict[str, Any]


def test_api_integration(client: fluxsmith.Client) -> None:
    app = FastAPI()
    run(API_INTEGRATION, {"app": app, "TrainLoRARequest": TrainLoRARequest})
    body = {"train_data": [sample()], "user_id": 123, "training_params": {"rank": 4}}
    answer = TestClient(app).post("/train-lora", json=body).json()
    assert answer["model_url"].startswith("s3://")
    assert newest(client).config.rank == 4


def test_backward_compatibility() -> None:
    scope: dict[str, Any] = {}
    run(BACKWARD_COMPATIBILITY, scope)
    assert scope["training_module"].train_lora is train_lora


def test_an_image_that_is_none_is_named_with_the_formats() -> None:
    bad = {"image": base64.b64encode(b"no picture").decode(), "description": "a circle"}
    with pytest.raises(InvalidImageFormat, match=r"^Invalid image format: train_data\[1\].*PNG, JPEG"):
        train_lora(train_data=[sample(), bad], user_id=123)
    with pytest.raises(InvalidImageFormat, match=r"^Invalid image format: the image of train_data\[0\] is not base64"):
        FluxTrainingDataset([{"image": "!", "description": "a circle"}])


@pytest.mark.parametrize("user_id", [None, 1.5, True])
def test_a_user_is_a_number_or_text(user_id: Any) -> None:
    with pytest.raises(errors.InvalidRequest, match="user_id is of type"):
        train_lora([{"image": "", "description": "a"}], user_id)


def test_a_caption_too_long_or_missing_is_told_with_its_limit() -> None:
    with pytest.raises(TextEncodingFailed, match=r"^Text encoding failed: .*9000 bytes.*8192"):
        train_lora(train_data=[sample(description="a" * 9000)], user_id=123)
    with pytest.raises(TextEncodingFailed, match=r"^Text encoding failed: train_data\[0\] has no description"):
        FluxTrainingDataset([sample(description=" ")])


def test_a_caption_longer_than_the_encoders_read_is_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"train_data\[0\].*does not read its end"):
        train_lora(train_data=[sample(description="a circle " * 100)], user_id=123)


def test_what_the_trainer_warns_of_is_a_python_warning() -> None:
    with pytest.warns(UserWarning, match="1 step"):
        train_lora(train_data=[sample()], user_id=123)


def test_lack_of_gpu_memory_is_told_with_figures(client: fluxsmith.Client, ready: str) -> None:
    failure = fluxsmith.JobFailure(fault=fluxsmith.Fault.RESOURCE, reason="GPU_OUT_OF_MEMORY", message="CUDA")
    config = fluxsmith.TrainConfig(batch_size=8, rank=32, gradient_checkpointing=False)
    job = fluxsmith.TrainingJob(
        id="j", state=fluxsmith.JobState.FAILED, config=config, dataset_id=ready, failure=failure
    )
    error = successor_of(errors.JobFailed(job), client, client.datasets.get(ready))
    assert isinstance(error, OutOfMemory)
    assert str(error).startswith("CUDA out of memory: batch size 8 with rank 32 at 64 px needs about ")
    assert "gradient_checkpointing" in error.remedy


def test_settings_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().train_config() == Settings().train_config(rank=16, alpha=16, learning_rate=1e-4, epochs=1)
    monkeypatch.setenv("FLUX_LORA_RANK", "8")
    monkeypatch.setenv("GRADIENT_CHECKPOINTING", "false")
    config = Settings().train_config()
    assert (config.rank, config.gradient_checkpointing) == (8, False)


def test_a_module_of_ones_own_uses_its_client_and_settings(client: fluxsmith.Client) -> None:
    module = FluxLoRATrainingModule(client=client, settings=Settings(FLUX_LORA_RANK=2))
    module.train_lora([sample()], user_id=123)
    assert newest(client).config.rank == 2


def test_an_expectation_that_the_encoder_does_not_meet_is_warned_of(client: fluxsmith.Client) -> None:
    with pytest.warns(UserWarning, match="QUANTIZE_TEXT_ENCODERS is False and the encoder has T5 in int8"):
        Settings(QUANTIZE_TEXT_ENCODERS=False).warn_of_differences(client)


def test_an_equal_dataset_is_encoded_once(client: fluxsmith.Client) -> None:
    dataset = FluxTrainingDataset([sample(5, "a circle of five")])
    assert len(dataset) == 1
    dataset.cache(client)
    assert dataset.cache(client).cached_count == 1
