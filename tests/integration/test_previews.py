"""Previews with a real encoder: the pictures that FluxPipeline makes with the file, or a word why there are none."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from fluxsmith import read_folder
from PIL import Image

from services.common.object_store import ObjectStore
from services.common.settings import ServiceSettings
from services.stack import Stack
from services.trainer.adapters.adapter import adapter_parameters, attached
from services.trainer.adapters.files import peft_file, snapshot
from services.trainer.config import TrainConfig
from services.trainer.encoder_link import EMBED_S, EncoderAway, EncoderLink
from services.trainer.jobs import PreviewRendered
from services.trainer.previews import Previews, Size
from services.trainer.transformer import load_transformer
from tests.integration.conftest import client_of, write_drawings

TENANT = "painter"
FOLDER = f"{TENANT}/jobs/job-0123456789abcdef0123/2/"
PROMPTS = ("a red circle", "Ünïcode & emoji 🍎")
CONFIG = TrainConfig(rank=4, preview_prompts=PROMPTS, preview_sampling_steps=4, preview_seed=5)
SIZE = Size(height_px=64, width_px=48)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack of which only the store runs; T5 in float32 as FluxPipeline has it."""
    stack = Stack(tmp_path_factory.mktemp("stack"), environment={"FLUXSMITH_ENCODER_T5_PRECISION": "fp32"})
    try:
        stack.start_store()
        yield stack
    finally:
        stack.stop()


@pytest.fixture(scope="module")
def encoder(stack: Stack) -> Stack:
    """The same with an encoder."""
    stack.start_service("encoder", stack.encoder_address)
    stack.wait_for_service("encoder", stack.encoder_address)
    return stack


@pytest.fixture
def store(stack: Stack) -> ObjectStore:
    return ObjectStore(stack.store_settings)


@pytest.fixture
def link(stack: Stack) -> Iterator[EncoderLink]:
    with EncoderLink(stack.encoder_address, TENANT) as link:
        yield link


@pytest.fixture(scope="module")
def base_transformer(base_model: Path) -> FluxTransformer2DModel:
    return load_transformer(ServiceSettings(base_model=str(base_model), device="cpu", dtype="fp32"))


@pytest.fixture
def previews(
    store: ObjectStore, link: EncoderLink, base_transformer: FluxTransformer2DModel, base_model: Path
) -> Previews:
    return Previews(
        store, link, CONFIG, base_transformer, scheduler_folder=base_model / "scheduler", folder=FOLDER, size=SIZE
    )


def pixels(store: ObjectStore, preview: PreviewRendered) -> np.ndarray:
    """The picture of a preview, its digest checked."""
    data = store.get(store.key_of(preview.image.uri) or "", digest=preview.image.content_digest)
    assert len(data) == preview.image.size_bytes
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture).astype(int)


# The first test: none of the others has had the encoder started.
def test_an_encoder_that_is_away_costs_previews_until_it_is_there(
    previews: Previews, store: ObjectStore, request: pytest.FixtureRequest
) -> None:
    begin_s = time.monotonic()
    with pytest.raises(EncoderAway, match="does not answer"):
        previews.render(0, lambda: None)
    assert time.monotonic() - begin_s < EMBED_S / 2  # a second or five, where one that is slow has a minute
    assert list(store.keys(FOLDER)) == []
    request.getfixturevalue("encoder")
    assert len(previews.render(1, lambda: None)) == len(PROMPTS)


@pytest.mark.usefixtures("encoder")
def test_previews_are_the_pictures_that_the_pipeline_makes_with_the_file(
    previews: Previews, store: ObjectStore, base_transformer: FluxTransformer2DModel, base_model: Path, tmp_path: Path
) -> None:
    draw = torch.Generator().manual_seed(0)
    with attached(base_transformer, CONFIG):
        of_base = previews.render(0, lambda: None)
        for parameter in adapter_parameters(base_transformer).values():
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=draw)
        of_adapter = previews.render(50, lambda: None)
        data = peft_file(snapshot(base_transformer, CONFIG), CONFIG, {})
    (tmp_path / "lora.safetensors").write_bytes(data)
    pipeline = FluxPipeline.from_pretrained(base_model, dtype=torch.float32)
    assert_pictures_of(pipeline, of_base, store)
    pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    assert_pictures_of(pipeline, of_adapter, store)
    assert np.abs(pixels(store, of_base[0]) - pixels(store, of_adapter[0])).mean() > 1


def assert_pictures_of(pipeline: FluxPipeline, rendered: list[PreviewRendered], store: ObjectStore) -> None:
    """Assert that the pipeline makes the same pictures, but for rounding of the last of 256 levels here and there."""
    for preview in rendered:
        (picture,) = pipeline(
            preview.prompt,
            height=SIZE.height_px,
            width=SIZE.width_px,
            num_inference_steps=CONFIG.preview_sampling_steps,
            guidance_scale=CONFIG.preview_guidance_scale,
            max_sequence_length=pipeline.tokenizer_2.model_max_length,
            generator=torch.Generator("cpu").manual_seed(preview.seed),
        ).images
        apart = np.abs(pixels(store, preview) - np.asarray(picture).astype(int))
        assert apart.max() <= 1
        assert (apart > 0).mean() < 0.01


@pytest.mark.usefixtures("encoder")
def test_previews_are_named_by_step_and_prompt_and_nothing_else_is_left(previews: Previews, store: ObjectStore) -> None:
    store.delete_prefix(f"{FOLDER}previews/")
    rendered = previews.render(7, lambda: None)
    names = ["previews/000007-0.png", "previews/000007-1.png"]
    assert [(one.step, one.prompt, one.seed) for one in rendered] == [(7, prompt, 5) for prompt in PROMPTS]
    assert [one.image.artifact_name for one in rendered] == names
    assert [store.key_of(one.image.uri) for one in rendered] == [f"{FOLDER}{name}" for name in names]
    assert list(store.keys(f"{FOLDER}previews/")) == [f"{FOLDER}{name}" for name in names]


@pytest.mark.usefixtures("encoder")
def test_prompts_are_embedded_once(previews: Previews, store: ObjectStore) -> None:
    previews.render(1, lambda: None)
    store.delete_prefix(f"{TENANT}/cache/")
    previews.render(2, lambda: None)
    assert not [key for key in store.keys(f"{TENANT}/cache/") if key.endswith(".safetensors")]


@pytest.mark.usefixtures("encoder")
def test_the_configured_size_comes_before_that_of_the_samples(
    store: ObjectStore, link: EncoderLink, base_transformer: FluxTransformer2DModel, base_model: Path
) -> None:
    config = CONFIG.model_copy(update={"preview_height_px": 96, "preview_prompts": PROMPTS[:1]})
    (preview,) = Previews(
        store, link, config, base_transformer, scheduler_folder=base_model / "scheduler", folder=FOLDER, size=SIZE
    ).render(0, lambda: None)
    assert pixels(store, preview).shape == (96, 48, 3)


def test_without_prompts_the_encoder_is_not_asked(
    store: ObjectStore, base_transformer: FluxTransformer2DModel, base_model: Path
) -> None:
    config, scheduler = CONFIG.model_copy(update={"preview_prompts": ()}), base_model / "scheduler"
    with EncoderLink("127.0.0.1:1", TENANT) as nowhere:
        previews = Previews(
            store, nowhere, config, base_transformer, scheduler_folder=scheduler, folder=FOLDER, size=SIZE
        )
        assert previews.render(0, lambda: None) == []


@pytest.mark.usefixtures("encoder")
def test_a_cancelled_preview_leaves_no_latents(previews: Previews, store: ObjectStore) -> None:
    calls = iter(range(CONFIG.preview_sampling_steps + 3))  # into the second picture

    def check() -> None:
        if next(calls, None) is None:
            raise InterruptedError

    store.delete_prefix(f"{FOLDER}previews/")
    with pytest.raises(InterruptedError):
        previews.render(3, check)
    assert not [key for key in store.keys(f"{FOLDER}previews/") if not key.endswith("/")]


@pytest.mark.usefixtures("encoder")
def test_nothing_is_sampled_that_nobody_would_decode(previews: Previews) -> None:
    previews.render(0, lambda: None)
    with EncoderLink("127.0.0.1:1", TENANT) as nowhere:
        previews._link = nowhere  # as when the encoder goes away
        with pytest.raises(EncoderAway):
            previews.render(1, lambda: pytest.fail("a step was sampled"))


@pytest.mark.usefixtures("encoder")
def test_an_encoder_with_another_bucket_is_told(
    stack: Stack, link: EncoderLink, base_transformer: FluxTransformer2DModel, base_model: Path
) -> None:
    other, scheduler = stack.store_settings.model_copy(update={"bucket": "other"}), base_model / "scheduler"
    previews = Previews(
        ObjectStore(other), link, CONFIG, base_transformer, scheduler_folder=scheduler, folder=FOLDER, size=SIZE
    )
    with pytest.raises(EncoderAway, match="another bucket"):
        previews.render(0, lambda: None)


def test_contact_sheet_of_a_dataset_is_a_picture_in_the_store(
    encoder: Stack, store: ObjectStore, link: EncoderLink, tmp_path: Path
) -> None:
    with client_of(encoder, TENANT) as client:
        dataset = client.datasets.create(name="circles")
        client.datasets.upload(dataset, read_folder(write_drawings(tmp_path, 2)))
    sheet = link.contact_sheet(dataset.id)
    data = store.get(store.key_of(sheet.uri) or "", digest=sheet.content_digest)
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.format == "PNG"


@pytest.mark.usefixtures("encoder")
def test_what_the_encoder_refuses_is_told_with_its_remedy(link: EncoderLink, store: ObjectStore) -> None:
    with pytest.raises(EncoderAway, match="DATASET_NOT_FOUND") as caught:
        link.contact_sheet("ds-none")
    assert caught.value.remedy == "List the datasets of your tenant, or create one."
    with pytest.raises(EncoderAway, match="LATENTS_NOT_FOUND"):
        link.decode([store.uri("another/latents")])
