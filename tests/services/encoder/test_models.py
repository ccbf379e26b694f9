"""What the encoder computes is what diffusers' FluxPipeline computes."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image
from torch.nn.functional import cosine_similarity

from services.common.base_model import BaseModelError
from services.common.settings import ServiceSettings
from services.encoder.images import Bucket, crop_to
from services.encoder.models import EncoderModels, ModelThread, load_models
from services.encoder.settings import EncoderSettings

CAPTIONS = ["a red apple", "", "  Ünïcode, 日本 & emoji 🍎  ", "a very long caption " * 60]


def photograph(width: int = 48, height: int = 64) -> Image.Image:
    """Something to encode."""
    return Image.fromarray(np.random.default_rng(1).integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="session")
def int8_models(service_settings: ServiceSettings) -> EncoderModels:
    """The models as they are by default."""
    return load_models(service_settings, EncoderSettings())


def test_text_is_padded_to_what_the_model_folder_says(encoder_models: EncoderModels, pipeline: FluxPipeline) -> None:
    assert encoder_models.t5_tokens == pipeline.tokenizer_2.model_max_length


@pytest.mark.parametrize("tokens", [32, 512])
@pytest.mark.parametrize("caption", CAPTIONS)
def test_captions_are_embedded_as_the_pipeline_embeds_them(
    encoder_models: EncoderModels, pipeline: FluxPipeline, caption: str, tokens: int
) -> None:
    t5_SD, clip_D = replace(encoder_models, t5_tokens=tokens).encode_caption(caption)
    with torch.inference_mode():
        t5_BSD, clip_BD, _ = pipeline.encode_prompt(caption, None, max_sequence_length=tokens)
    assert len(t5_SD) == tokens  # padded to the full length, whatever the caption's
    assert torch.equal(t5_SD, t5_BSD[0])
    assert torch.equal(clip_D, clip_BD[0])


def test_images_are_encoded_as_the_pipeline_encodes_them(encoder_models: EncoderModels, pipeline: FluxPipeline) -> None:
    image = photograph()
    mean_Chw, logvar_Chw = encoder_models.encode_image(crop_to(image, Bucket(height_px=64, width_px=48)))
    with torch.inference_mode():
        posterior = pipeline.vae.encode(pipeline.image_processor.preprocess(image)).latent_dist
    assert mean_Chw.shape == (16, 8, 6)
    torch.testing.assert_close(mean_Chw, posterior.mean[0])
    torch.testing.assert_close(logvar_Chw, posterior.logvar[0])


def test_int8_t5_is_close_to_the_original(encoder_models: EncoderModels, int8_models: EncoderModels) -> None:
    for caption in CAPTIONS[:2]:
        exact, quantised = (models.encode_caption(caption)[0] for models in (encoder_models, int8_models))
        assert float(cosine_similarity(exact, quantised, dim=-1).min()) > 0.99
        assert not torch.equal(exact, quantised)


def test_int8_is_deterministic(int8_models: EncoderModels) -> None:
    first, again = (int8_models.encode_caption("a red apple")[0] for _ in range(2))
    assert torch.equal(first, again)


def test_decode_of_encode_has_the_size_of_the_picture(encoder_models: EncoderModels) -> None:
    config = encoder_models.vae.config
    mean_Chw, _ = encoder_models.encode_image(crop_to(photograph(), Bucket(height_px=64, width_px=48)))
    decoded = encoder_models.decode_latents((mean_Chw - config.shift_factor) * config.scaling_factor)
    assert (decoded.mode, decoded.size) == ("RGB", (48, 64))


def test_latents_are_decoded_as_the_pipeline_decodes_them(
    encoder_models: EncoderModels, pipeline: FluxPipeline
) -> None:
    latents_Chw = torch.randn(16, 8, 6, generator=torch.Generator().manual_seed(0))
    config = pipeline.vae.config
    with torch.inference_mode():
        unscaled = latents_Chw[None] / config.scaling_factor + config.shift_factor
        theirs = pipeline.image_processor.postprocess(pipeline.vae.decode(unscaled).sample, output_type="pil")[0]
    assert np.array_equal(np.asarray(encoder_models.decode_latents(latents_Chw)), np.asarray(theirs))


def test_fingerprint_changes_with_whatever_changes_the_output(
    encoder_models: EncoderModels, int8_models: EncoderModels, service_settings: ServiceSettings
) -> None:
    bf16 = load_models(service_settings.model_copy(update={"dtype": "bf16"}), EncoderSettings(t5_precision="fp32"))
    assert len({encoder_models.fingerprint, int8_models.fingerprint, bf16.fingerprint}) == 3


def test_fingerprint_is_that_of_the_files_wherever_they_lie(
    encoder_models: EncoderModels, base_model: Path, tmp_path: Path
) -> None:
    moved = ServiceSettings(base_model=str(tmp_path / "moved"), device="cpu", dtype="fp32")
    (tmp_path / "moved").symlink_to(base_model)
    assert load_models(moved, EncoderSettings(t5_precision="fp32")).fingerprint == encoder_models.fingerprint


def test_tokens_that_are_not_read_are_counted(encoder_models: EncoderModels) -> None:
    assert encoder_models.tokens_cut_off("a red apple") == {}
    tokens = len(encoder_models.clip_tokenizer("apple " * 600).input_ids)
    cut_off = encoder_models.tokens_cut_off("apple " * 600)
    assert set(cut_off) == {"CLIP", "T5"}
    assert cut_off["CLIP"] == tokens - 77


def test_missing_part_of_the_base_is_named(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    with pytest.raises(BaseModelError, match="text_encoder, text_encoder_2, tokenizer, tokenizer_2"):
        load_models(ServiceSettings(base_model=str(tmp_path), device="cpu"), EncoderSettings())


def test_models_run_on_one_thread_in_turn(encoder_models: EncoderModels) -> None:
    thread = ModelThread(encoder_models)
    order: list[tuple[int, int]] = []

    def work(_: EncoderModels, number: int) -> None:
        time.sleep(0.01 * (3 - number))
        order.append((number, threading.get_ident()))

    for future in [thread.submit(partial(work, number=number)) for number in range(3)]:
        future.result()
    thread.close()
    assert [number for number, _ in order] == [0, 1, 2]
    assert len({ident for _, ident in order} | {threading.get_ident()}) == 2
