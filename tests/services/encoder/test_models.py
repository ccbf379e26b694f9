"""What the encoder computes is what diffusers' FluxPipeline computes, whichever of its models are in memory."""

from __future__ import annotations

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import bitsandbytes
import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import cosine_similarity, mse_loss

from services.common.settings import ServiceSettings
from services.encoder.images.buckets import pixels
from services.encoder.inference import CaptionTokenizer
from services.encoder.models import EncoderModels, ModelThread, load_models
from services.encoder.settings import EncoderSettings

CAPTIONS = ["a red apple", "", "  Ünïcode, 日本 & emoji 🍎  ", "a very long caption " * 60]
SIZES = [(48, 64), (64, 48), (64, 64), (16, 256), (208, 80)]


def photograph(width: int = 48, height: int = 64) -> Image.Image:
    """Something to encode."""
    return Image.fromarray(np.random.default_rng(1).integers(0, 255, (height, width, 3), dtype=np.uint8))


def drawing(base_model: Path, size: tuple[int, int]) -> Image.Image:
    """Something that the VAE knows, enlarged to more than one tile."""
    path = base_model.parent / "demo" / "train" / "balloon.png"
    return Image.open(path).convert("RGB").resize(size, Image.Resampling.LANCZOS)


@pytest.fixture(scope="module")
def int8_models(service_settings: ServiceSettings) -> EncoderModels:
    """The models as they are by default."""
    return load_models(service_settings, EncoderSettings())


@pytest.fixture
def one_at_a_time(service_settings: ServiceSettings) -> EncoderModels:
    """The models of which either the image part or the text part is in memory."""
    return load_models(service_settings, EncoderSettings(t5_precision="fp32", models="one"))


@pytest.fixture(scope="module")
def tiled_models(service_settings: ServiceSettings) -> EncoderModels:
    """The models with a VAE in tiles, of 64 px with flux-tiny."""
    return load_models(service_settings, EncoderSettings(t5_precision="fp32", vae_tiling=True))


def test_text_is_padded_to_what_the_model_folder_says(encoder_models: EncoderModels, pipeline: FluxPipeline) -> None:
    assert encoder_models.t5_tokens == pipeline.tokenizer_2.model_max_length


@pytest.mark.parametrize("tokens", [32, 512])
@pytest.mark.parametrize("caption", CAPTIONS)
def test_captions_are_embedded_as_the_pipeline_embeds_them(
    encoder_models: EncoderModels, pipeline: FluxPipeline, caption: str, tokens: int
) -> None:
    tokenizer = CaptionTokenizer(encoder_models.t5_tokenizer.tokenizer, tokens)
    t5_SD, clip_D = replace(encoder_models, t5_tokenizer=tokenizer).encode_caption(caption)
    with torch.inference_mode():
        t5_BSD, clip_BD, _ = pipeline.encode_prompt(caption, None, max_sequence_length=tokens)
    assert len(t5_SD) == tokens  # padded to the full length, whatever the caption's
    assert torch.equal(t5_SD, t5_BSD[0])
    assert torch.equal(clip_D, clip_BD[0])


def test_captions_one_by_one_are_the_pipelines_in_one_batch(
    encoder_models: EncoderModels, pipeline: FluxPipeline
) -> None:
    with torch.inference_mode():
        t5_BSD, clip_BD, _ = pipeline.encode_prompt(CAPTIONS, None, max_sequence_length=encoder_models.t5_tokens)
    ours = [encoder_models.encode_caption(caption) for caption in CAPTIONS]
    assert torch.equal(torch.stack([t5_SD for t5_SD, _ in ours]), t5_BSD)
    assert torch.equal(torch.stack([clip_D for _, clip_D in ours]), clip_BD)


@pytest.mark.parametrize("size", SIZES)
def test_images_are_encoded_as_the_pipeline_encodes_them(
    encoder_models: EncoderModels, pipeline: FluxPipeline, size: tuple[int, int]
) -> None:
    image = photograph(*size)
    mean_Chw, logvar_Chw = encoder_models.encode_image(pixels(image))
    with torch.inference_mode():
        posterior = pipeline.vae.encode(pipeline.image_processor.preprocess(image)).latent_dist
    assert mean_Chw.shape == (16, size[1] // 8, size[0] // 8)
    assert torch.equal(mean_Chw, posterior.mean[0])
    assert torch.equal(logvar_Chw, posterior.logvar[0])


def test_the_order_of_pixels_in_memory_changes_nothing(encoder_models: EncoderModels) -> None:
    channels_first = pixels(photograph())
    channels_last = np.ascontiguousarray(channels_first.transpose(1, 2, 0)).transpose(2, 0, 1)
    first, last = (encoder_models.encode_image(each) for each in (channels_first, channels_last))
    assert all(torch.equal(*pair) for pair in zip(first, last, strict=True))


@pytest.mark.parametrize("size", SIZES)
def test_latents_are_decoded_as_the_pipeline_decodes_them(
    encoder_models: EncoderModels, pipeline: FluxPipeline, size: tuple[int, int]
) -> None:
    latents_Chw = torch.randn(16, size[1] // 8, size[0] // 8, generator=torch.Generator().manual_seed(0))
    config = pipeline.vae.config
    with torch.inference_mode():
        unscaled = latents_Chw[None] / config.scaling_factor + config.shift_factor
        theirs = pipeline.image_processor.postprocess(pipeline.vae.decode(unscaled).sample, output_type="pil")[0]
    ours = encoder_models.decode_latents(latents_Chw)
    assert (ours.mode, ours.size) == ("RGB", size)
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_shift_scale_and_size_are_the_vaes(encoder_models: EncoderModels, pipeline: FluxPipeline) -> None:
    config = pipeline.vae.config
    assert (encoder_models.latent_shift, encoder_models.latent_scale) == (config.shift_factor, config.scaling_factor)
    assert encoder_models.default_resolution_px == config.sample_size


@pytest.mark.parametrize(("precision", "least"), [("int8", 0.99), ("nf4", 0.9), ("bf16", 0.999)])
def test_every_precision_of_t5_is_close_to_the_original(
    encoder_models: EncoderModels, service_settings: ServiceSettings, precision: str, least: float
) -> None:
    models = load_models(service_settings, EncoderSettings.model_validate({"t5_precision": precision}))
    for caption in CAPTIONS[:2]:
        (exact, clip_D), (rounded, same) = (each.encode_caption(caption) for each in (encoder_models, models))
        assert rounded.dtype == torch.float32
        assert least < float(cosine_similarity(exact, rounded, dim=-1).min())
        assert not torch.equal(exact, rounded)
        assert torch.equal(clip_D, same)


def test_int8_is_deterministic(int8_models: EncoderModels) -> None:
    first, again = (int8_models.encode_caption("a red apple")[0] for _ in range(2))
    assert torch.equal(first, again)


def test_int8_lets_what_else_is_in_a_batch_change_the_result() -> None:
    layer = bitsandbytes.nn.Linear8bitLt(32, 8, bias=False, has_fp16_weights=False, threshold=6.0).to("cpu")
    row, other = torch.randn(2, 1, 32, generator=torch.Generator().manual_seed(0))
    other[0, 5] = 50.0  # an outlier: its column is taken out of 8 bit for all rows
    with torch.inference_mode():
        assert not torch.equal(layer(row)[0], layer(torch.cat([row, other]))[0])


def test_at_first_use_a_part_is_loaded_and_the_other_freed(one_at_a_time: EncoderModels) -> None:
    assert one_at_a_time.loaded() == ()
    one_at_a_time.encode_caption("a red apple")
    assert one_at_a_time.loaded() == ("text_encoder", "text_encoder_2")
    mean_Chw, _ = one_at_a_time.encode_image(pixels(photograph()))
    assert one_at_a_time.loaded() == ("vae",)
    one_at_a_time.encode_caption("a red apple")
    one_at_a_time.decode_latents(mean_Chw)
    assert one_at_a_time.loaded() == ("vae",)


def test_one_at_a_time_computes_the_same(one_at_a_time: EncoderModels, encoder_models: EncoderModels) -> None:
    for models in (one_at_a_time, encoder_models):
        assert models.fingerprint == encoder_models.fingerprint
        outputs = [*models.encode_caption("a red apple"), *models.encode_image(pixels(photograph()))]
        expected = [*encoder_models.encode_caption("a red apple"), *encoder_models.encode_image(pixels(photograph()))]
        assert all(torch.equal(*pair) for pair in zip(outputs, expected, strict=True))


def test_all_stay_loaded_until_freed_one_by_one(encoder_models: EncoderModels) -> None:
    models = replace(encoder_models)
    models.load("vae", "text_encoder", "text_encoder_2")
    models.free("text_encoder_2")
    assert models.loaded() == ("vae", "text_encoder")
    models.encode_caption("a red apple")
    assert models.loaded() == ("vae", "text_encoder", "text_encoder_2")


def test_memory_peak_is_that_of_this_process(encoder_models: EncoderModels) -> None:
    before = encoder_models.memory_peak_bytes()
    kept = np.ones(before // 8)  # as much as was ever held
    assert 50e6 < before < encoder_models.memory_peak_bytes() <= before + kept.nbytes + 1e6


@pytest.mark.parametrize("size", [(256, 192), (72, 64)])
def test_tiles_give_nearly_the_same_latents(
    encoder_models: EncoderModels, tiled_models: EncoderModels, base_model: Path, size: tuple[int, int]
) -> None:
    image = pixels(drawing(base_model, size))
    whole, tiled = (models.encode_image(image)[0] for models in (encoder_models, tiled_models))
    assert whole.shape == tiled.shape
    assert 0 < mse_loss(whole, tiled) < 0.1 * whole.var()


def test_tiles_change_nothing_for_a_picture_of_one_tile(
    encoder_models: EncoderModels, tiled_models: EncoderModels
) -> None:
    whole, tiled = (models.encode_image(pixels(photograph()))[0] for models in (encoder_models, tiled_models))
    assert torch.equal(whole, tiled)


def test_tiles_are_decoded_to_nearly_the_same_picture(
    encoder_models: EncoderModels, tiled_models: EncoderModels, base_model: Path
) -> None:
    mean_Chw, _ = encoder_models.encode_image(pixels(drawing(base_model, (160, 128))))
    latents_Chw = (mean_Chw - encoder_models.latent_shift) * encoder_models.latent_scale
    whole, tiled = (
        np.asarray(models.decode_latents(latents_Chw), dtype=float) for models in (encoder_models, tiled_models)
    )
    assert whole.shape == tiled.shape == (128, 160, 3)
    assert 0 < np.abs(whole - tiled).mean() < 8


def test_fingerprint_changes_with_whatever_changes_the_output(service_settings: ServiceSettings) -> None:
    bf16 = service_settings.model_copy(update={"dtype": "bf16"})
    choices: list[tuple[ServiceSettings, EncoderSettings]] = [
        (service_settings, EncoderSettings(models="one")),
        (service_settings, EncoderSettings(models="one", t5_precision="nf4")),
        (service_settings, EncoderSettings(models="one", t5_precision="bf16")),
        (service_settings, EncoderSettings(models="one", t5_precision="fp32")),
        (service_settings, EncoderSettings(models="one", vae_tiling=True)),
        (bf16, EncoderSettings(models="one")),
    ]
    models = [load_models(*each) for each in choices]
    assert len({each.fingerprint for each in models}) == 6
    assert len({each.image_fingerprint for each in models}) == 3  # T5's precision does not touch images
    assert len({each.text_fingerprint for each in models}) == 5  # nor tiles captions


@pytest.fixture
def copied(base_model: Path, tmp_path: Path) -> Path:
    """A copy of the model folder that a test may change."""
    shutil.copytree(base_model, tmp_path / "copied", ignore=shutil.ignore_patterns("transformer", "*.png"))
    return tmp_path / "copied"


def fingerprints(folder: Path) -> tuple[str, str]:
    """Of images and of captions."""
    service = ServiceSettings(base_model=str(folder), device="cpu", dtype="fp32")
    models = load_models(service, EncoderSettings(t5_precision="fp32", models="one"))
    return models.image_fingerprint, models.text_fingerprint


def test_fingerprint_is_that_of_the_files_wherever_they_lie(encoder_models: EncoderModels, copied: Path) -> None:
    (copied / "vae" / ".DS_Store").write_bytes(b"of no account")
    assert fingerprints(copied) == (encoder_models.image_fingerprint, encoder_models.text_fingerprint)


def test_fingerprint_covers_files_in_folders_of_a_part(encoder_models: EncoderModels, copied: Path) -> None:
    (copied / "tokenizer" / "nested").mkdir()
    (copied / "tokenizer" / "nested" / "more.json").write_text("{}")
    image, text = fingerprints(copied)
    assert (image, text != encoder_models.text_fingerprint) == (encoder_models.image_fingerprint, True)


def test_words_that_are_not_read_are_given_by_encoder(encoder_models: EncoderModels) -> None:
    assert encoder_models.lost_words("a red apple") == {}
    caption = "apple " * 75 + "banana cherry"  # 75 and two special ones are what CLIP reads
    lost = encoder_models.lost_words(caption)
    assert lost["CLIP"] == "banana cherry"
    assert lost["T5"].endswith("apple banana cherry")
    assert "CLIP" not in encoder_models.lost_words("apple " * 75)


def test_parts_without_a_token_are_given_by_encoder_and_only_of_what_is_read(encoder_models: EncoderModels) -> None:
    cat = "\u043a\u043e\u0442"  # in Russian
    assert encoder_models.unknown_words("a red apple") == {}
    assert encoder_models.unknown_words(f"a {cat} and a {cat}") == {"T5": (cat,)}
    assert encoder_models.unknown_words("apple " * 600 + cat) == {}


@settings(deadline=None)
@given(caption=st.text(max_size=200))
def test_what_is_lost_is_the_end_and_the_rest_is_read(encoder_models: EncoderModels, caption: str) -> None:
    for tokenizer in (encoder_models.clip_tokenizer, encoder_models.t5_tokenizer):
        lost = tokenizer.lost_words(caption)
        assert caption.rstrip().endswith(lost)
        read = caption.rstrip().removesuffix(lost)
        assert not tokenizer.lost_words(read)
        if not lost:
            assert len(tokenizer.tokenizer(caption.rstrip()).input_ids) <= tokenizer.tokens


def test_tokenizers_may_be_used_by_many_threads(encoder_models: EncoderModels) -> None:
    def both(number: int) -> tuple[dict[str, str], torch.Tensor]:
        caption = CAPTIONS[number % 4]
        return encoder_models.lost_words(caption), encoder_models.t5_tokenizer.ids(caption)

    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(both, range(200)))
    for number, (lost, ids_BS) in enumerate(results):
        assert lost == results[number % 4][0]
        assert torch.equal(ids_BS, results[number % 4][1])


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
