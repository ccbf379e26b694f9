"""Prompts are encoded as the encoder service and diffusers' pipeline encode them, and fit the transformer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from fluxsmith.errors import InvalidRequest
from src.models.flux_training_utils import combine_flux_embeddings, encode_prompts_flux

from services.common.settings import ServiceSettings
from services.encoder.inference import EncoderModels
from services.encoder.models import load_models
from services.encoder.settings import EncoderSettings

PROMPTS = ["a red apple", "a very long caption " * 60]


@pytest.fixture(scope="module")
def models(base_model: Path) -> EncoderModels:
    settings = ServiceSettings(base_model=str(base_model), device="cpu")
    return load_models(settings, EncoderSettings(t5_precision="int8"))


@pytest.fixture(scope="module")
def pipeline(base_model: Path) -> FluxPipeline:
    return FluxPipeline.from_pretrained(base_model, dtype=torch.float32)


def test_prompts_are_embedded_as_the_encoder_service_embeds_captions(models: EncoderModels) -> None:
    tokenizers = (models.clip_tokenizer.tokenizer, models.t5_tokenizer.tokenizer)
    clip_BD, t5_BSD = encode_prompts_flux(tokenizers, (models.loaders.clip(), models.loaders.t5()), PROMPTS)
    for number, prompt in enumerate(PROMPTS):
        t5_SD, clip_D = models.encode_caption(prompt)
        assert torch.equal(t5_BSD[number], t5_SD)
        assert torch.equal(clip_BD[number], clip_D)


def test_prompts_are_embedded_as_the_pipeline_embeds_them(pipeline: FluxPipeline) -> None:
    tokenizers = (pipeline.tokenizer, pipeline.tokenizer_2)
    clip_BD, t5_BSD = encode_prompts_flux(tokenizers, (pipeline.text_encoder, pipeline.text_encoder_2), PROMPTS)
    with torch.inference_mode():
        expected_t5, expected_clip, _ = pipeline.encode_prompt(PROMPTS, None, max_sequence_length=t5_BSD.shape[1])
    torch.testing.assert_close(t5_BSD, expected_t5)
    torch.testing.assert_close(clip_BD, expected_clip)


def test_embeddings_take_part_in_a_training(pipeline: FluxPipeline) -> None:
    tokenizers = (pipeline.tokenizer, pipeline.tokenizer_2)
    encoders = (pipeline.text_encoder, pipeline.text_encoder_2)
    for embeds in encode_prompts_flux(tokenizers, encoders, "a red apple"):
        assert not embeds.requires_grad
        weight = torch.ones_like(embeds, requires_grad=True)
        (weight * embeds).sum().backward()
        assert weight.grad is not None
        assert torch.equal(weight.grad, embeds)


def test_no_prompts_are_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"prompts has none\. Give one at least"):
        encode_prompts_flux((None, None), (None, None), [])


def test_combined_embeddings_are_the_transformers_keywords(pipeline: FluxPipeline) -> None:
    tokenizers = (pipeline.tokenizer, pipeline.tokenizer_2)
    encoders = (pipeline.text_encoder, pipeline.text_encoder_2)
    combined = combine_flux_embeddings(*encode_prompts_flux(tokenizers, encoders, "a red apple"))
    with torch.inference_mode():
        velocity_BSD = pipeline.transformer(
            hidden_states=torch.randn(1, 16, 64),
            timestep=torch.tensor([0.5]),
            img_ids=pipeline._prepare_latent_image_ids(1, 4, 4, "cpu", torch.float32),
            guidance=torch.tensor([3.5]),
            **combined,
            return_dict=False,
        )[0]
    assert velocity_BSD.shape == (1, 16, 64)
    assert velocity_BSD.isfinite().all()
    assert not combined["txt_ids"].any()
