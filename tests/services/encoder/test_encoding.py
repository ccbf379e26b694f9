"""Encoding a dataset: through the cache, the models only for what it lacks, the manifest last."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image

from services.common import cache
from services.common.cache import CachedObject, EncodingEnd, EncodingPart, encoding_prefix
from services.common.errors import InvalidInput
from services.encoder.datasets import Datasets
from services.encoder.encoding import DatasetEncoder, Progress
from services.encoder.images.buckets import pixels
from services.encoder.models import EncoderModels, ModelThread
from services.encoder.problems import Problem
from services.encoder.records import EncodingOptions, EncodingOutcome
from services.encoder.settings import EncoderSettings
from tests.services.damage import damage
from tests.services.encoder.conftest import OPTIONS, AddSample, Desk, noise_png, png


def latents_of(desk: Desk, number: int = 0, variant: int = 0) -> CachedObject:
    """The latents of a sample's first view."""
    return desk.manifest.samples[number].views[0].variants[variant].latents


def picture(seed: int = 0) -> Image.Image:
    """The picture of `noise_png`."""
    pixels_HWC = np.random.default_rng(seed).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    return Image.fromarray(pixels_HWC)


def test_manifest_holds_what_the_models_say(desk: Desk, add_sample: AddSample, encoder_models: EncoderModels) -> None:
    add_sample("a", "an apple", "a fruit", seed=0, repeats=3)
    assert desk.encode().problems == ()
    manifest = desk.manifest
    (sample,) = manifest.samples
    mean_Chw, logvar_Chw = encoder_models.encode_image(pixels(picture(0)))
    latents = desk.tensors(latents_of(desk))
    assert torch.equal(latents[cache.LATENT_MEAN], mean_Chw)
    assert torch.equal(latents[cache.LATENT_LOGVAR], logvar_Chw)
    assert (sample.sample_name, sample.repeats) == ("a", 3)
    assert (manifest.latent_shift, manifest.latent_scale) == (encoder_models.latent_shift, encoder_models.latent_scale)
    assert manifest.encoder_fingerprint == encoder_models.fingerprint


def test_every_caption_and_the_empty_one_are_embedded(
    desk: Desk, add_sample: AddSample, encoder_models: EncoderModels
) -> None:
    add_sample("a", "an apple", "a fruit")
    desk.encode()
    manifest = desk.manifest
    captions = [*manifest.samples[0].captions, manifest.empty_caption]
    assert [caption.caption for caption in captions] == ["an apple", "a fruit", ""]
    for caption in captions:
        t5_SD, clip_D = encoder_models.encode_caption(caption.caption)
        found = desk.tensors(caption.embedding)
        assert torch.equal(found[cache.T5_EMBEDDING], t5_SD)
        assert torch.equal(found[cache.CLIP_POOLED], clip_D)


def test_what_is_cached_is_what_the_pipeline_computes(
    desk: Desk, add_sample: AddSample, pipeline: FluxPipeline
) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 80, 3), dtype=np.uint8))
    add_sample("a", "an apple, half eaten", data=png(image))
    desk.encode()
    with torch.inference_mode():
        t5_BSD, clip_BD, _ = pipeline.encode_prompt(
            "an apple, half eaten", None, max_sequence_length=pipeline.tokenizer_2.model_max_length
        )
        posterior = pipeline.vae.encode(pipeline.image_processor.preprocess(image)).latent_dist
    caption, latents = desk.tensors(desk.manifest.samples[0].captions[0].embedding), desk.tensors(latents_of(desk))
    assert torch.equal(caption[cache.T5_EMBEDDING], t5_BSD[0])
    assert torch.equal(caption[cache.CLIP_POOLED], clip_BD[0])
    assert torch.equal(latents[cache.LATENT_MEAN], posterior.mean[0])
    assert torch.equal(latents[cache.LATENT_LOGVAR], posterior.logvar[0])


def test_mean_alone_can_be_kept(desk: Desk, add_sample: AddSample) -> None:
    add_sample("a")
    desk.encode()
    both = desk.tensors(latents_of(desk))
    desk.encode(latent_form="MEAN")
    mean = desk.tensors(latents_of(desk))
    assert set(mean) == {cache.LATENT_MEAN}
    assert torch.equal(mean[cache.LATENT_MEAN], both[cache.LATENT_MEAN])


def test_mask_lies_beside_the_latents(desk: Desk, add_sample: AddSample) -> None:
    transparent = picture(0).convert("RGBA")
    transparent.putalpha(Image.fromarray(np.tile(np.repeat([0, 255], 32).astype(np.uint8), (64, 1))))
    add_sample("a", data=png(transparent))
    desk.encode(alpha_policy="MASK")
    mask = desk.manifest.samples[0].views[0].variants[0].mask
    assert mask
    assert desk.tensors(mask)[cache.LOSS_MASK][0, 0].tolist() == [0.0] * 4 + [1.0] * 4
    latents = latents_of(desk)
    desk.encode()
    assert desk.manifest.samples[0].views[0].variants[0].mask is None
    assert latents_of(desk) == latents  # the mask changes what counts, not what the VAE sees


def test_background_shows_where_a_picture_is_transparent(
    desk: Desk, add_sample: AddSample, encoder_models: EncoderModels
) -> None:
    add_sample("a", data=png(Image.new("RGBA", (64, 64), (1, 2, 3, 0))))
    desk.encode(background_color="#ff8000")
    expected, _ = encoder_models.encode_image(pixels(Image.new("RGB", (64, 64), (255, 128, 0))))
    assert torch.equal(desk.tensors(latents_of(desk))[cache.LATENT_MEAN], expected)


def test_several_resolutions_flip_and_crops_are_all_there(desk: Desk, add_sample: AddSample) -> None:
    add_sample("wide", data=noise_png(0, width=100, height=50))
    desk.encode(resolutions_px=(64, 80), flip=True, random_crops=2, bucket_step_px=32)
    (sample,) = desk.manifest.samples
    assert len(sample.views) == 2
    assert {len(view.variants) for view in sample.views} == {4}
    for view in sample.views:
        shapes = {desk.tensors(variant.latents)[cache.LATENT_MEAN].shape for variant in view.variants}
        assert shapes == {(16, view.height_px // 8, view.width_px // 8)}


def test_trigger_word_is_in_every_caption_but_the_empty_one(desk: Desk, add_sample: AddSample) -> None:
    add_sample("a", "a [trigger] on a wall", "a wall")
    desk.encode(trigger_word="sks")
    assert [caption.caption for caption in desk.manifest.samples[0].captions] == ["a sks on a wall", "sks, a wall"]
    assert desk.manifest.empty_caption.caption == ""


def test_encoding_again_does_no_model_work(desk: Desk, add_sample: AddSample) -> None:
    for name in ("a", "b"):
        add_sample(name)
    desk.encode()
    first, written = desk.manifest, desk.progress[-1].written_bytes
    assert (desk.progress[-1].encoded, desk.progress[-1].cached) == (2, 0)
    assert written > 0
    desk.encode()
    last = desk.progress[-1]
    assert (last.total, last.done, last.encoded, last.cached, last.written_bytes) == (2, 2, 2, 2, 0)
    assert desk.manifest == first


def test_same_pixels_under_another_name_and_in_another_file_need_no_model(desk: Desk, add_sample: AddSample) -> None:
    add_sample("a.png", "an apple", data=png(picture(0)))
    desk.encode()
    add_sample("b.bmp", "an apple", data=png(picture(0), "BMP"))
    outcome = desk.encode()
    assert desk.progress[-1].cached == 2
    assert [problem.problem for problem in outcome.problems] == [Problem.DUPLICATE]


def test_file_known_from_the_index_keeps_its_own_name_and_repeats(desk: Desk, add_sample: AddSample) -> None:
    add_sample("a", "an apple", seed=0)
    desk.encode()
    add_sample("b", "an apple", seed=0, repeats=5)
    desk.encode()
    assert {(sample.sample_name, sample.repeats) for sample in desk.manifest.samples} == {("a", 1), ("b", 5)}
    assert desk.progress[-1].read_bytes == 0  # neither had to be decoded again


def test_new_caption_leaves_the_latents_alone(desk: Desk, add_sample: AddSample) -> None:
    add_sample("a", "an apple", seed=0)
    desk.encode()
    before = latents_of(desk)
    add_sample("a", "a pear", seed=0)
    desk.encode()
    assert latents_of(desk) == before
    assert desk.manifest.samples[0].captions[0].caption == "a pear"
    assert (desk.progress[-1].encoded, desk.progress[-1].cached) == (1, 0)


def test_one_pixel_makes_another_sample_of_it(desk: Desk, add_sample: AddSample) -> None:
    add_sample("a", data=png(picture(0)))
    desk.encode()
    before, caption = latents_of(desk), desk.manifest.samples[0].captions
    changed = picture(0)
    changed.putpixel((3, 3), (1, 2, 3))
    add_sample("a", data=png(changed))
    desk.encode()
    assert latents_of(desk) != before
    assert desk.manifest.samples[0].captions == caption


def test_equal_data_has_an_equal_manifest(
    desk: Desk, add_sample: AddSample, datasets: Datasets, encoder: DatasetEncoder, tenant: str
) -> None:
    add_sample("a", seed=1)
    desk.encode()
    other = Desk(encoder, datasets, tenant, datasets.create(tenant, display_name="", request_id="").dataset_id)
    (record,) = datasets.samples(tenant, desk.dataset_id)
    datasets.put_sample(tenant, other.dataset_id, record, noise_png(1))
    other.encode()
    pointers = [datasets.pointer(tenant, one.dataset_id) for one in (desk, other)]
    assert pointers[0]
    assert pointers[1]
    assert pointers[0].manifest_digest == pointers[1].manifest_digest


@pytest.mark.parametrize("lost", [False, True], ids=["damaged", "lost"])
@pytest.mark.parametrize("what", ["latents", "caption"])
def test_damaged_object_is_found_named_and_encoded_again_and_only_it(
    desk: Desk, add_sample: AddSample, what: str, lost: bool
) -> None:
    for name in ("a", "b", "c"):
        add_sample(name)
    desk.encode()
    first = desk.manifest
    sample = first.samples[1]
    cached = latents_of(desk, 1) if what == "latents" else sample.captions[0].embedding
    if lost:
        desk.datasets.store.delete(cached.key)
    else:
        damage(desk.datasets.store, cached.key)
    (problem,) = desk.encode().problems
    assert (problem.sample_name, problem.problem) == (sample.sample_name, Problem.CACHE_REPAIRED)
    assert cached.key in problem.message
    assert desk.progress[-1].cached == 2
    assert desk.progress[-1].written_bytes == cached.size_bytes
    assert desk.manifest == first
    assert desk.tensors(cached)


def test_progress_tells_every_sample(desk: Desk, add_sample: AddSample) -> None:
    sizes = [add_sample(name).size_bytes for name in ("a", "b", "c")]
    desk.encode()
    assert [(progress.total, progress.done) for progress in desk.progress] == [(3, 1), (3, 2), (3, 3)]
    assert desk.progress[-1].read_bytes == sum(sizes)
    seconds = desk.progress[-1].seconds
    assert min(seconds.prepare, seconds.compute, seconds.store) > 0


def test_numbers_that_are_not_finite_are_never_cached(
    desk: Desk, add_sample: AddSample, encoder_models: EncoderModels, datasets: Datasets
) -> None:
    add_sample("a")
    broken = replace(encoder_models, image_fingerprint="0" * 64, fingerprint="1" * 64)
    vae = encoder_models.loaders.vae()
    with torch.no_grad():
        vae.encoder.conv_in.weight.fill_(torch.nan)
    broken._parts = {**encoder_models._parts, "vae": vae}
    thread = ModelThread(broken)
    encoder = DatasetEncoder(datasets, thread, EncoderSettings())
    outcome = Desk(encoder, datasets, desk.tenant, desk.dataset_id).encode()
    thread.close()
    assert [problem.problem for problem in outcome.problems] == [Problem.NOT_FINITE]
    assert not [key for key in datasets.store.keys(f"{desk.tenant}/cache/") if "/latents/" in key]


def test_captions_are_embedded_in_their_order(encoder: DatasetEncoder, tenant: str) -> None:
    cached = encoder.embed_captions(tenant, ["b", "", "a", "b"])
    assert [caption.caption for caption in cached] == ["b", "", "a", "b"]
    assert cached[0].embedding == cached[3].embedding


def test_caption_that_gives_no_finite_number_is_refused(
    encoder_models: EncoderModels, datasets: Datasets, tenant: str
) -> None:
    broken = replace(encoder_models, text_fingerprint="2" * 64, fingerprint="3" * 64)
    t5 = encoder_models.loaders.t5()
    with torch.no_grad():
        t5.shared.weight.fill_(torch.nan)
    broken._parts = {**encoder_models._parts, "text_encoder_2": t5}
    thread = ModelThread(broken)
    with pytest.raises(InvalidInput, match="not finite"):
        DatasetEncoder(datasets, thread, EncoderSettings()).embed_captions(tenant, ["x"])
    thread.close()


def test_samples_are_listed_while_the_encoding_goes_on(desk: Desk, add_sample: AddSample) -> None:
    for number in range(10):
        add_sample(f"{number}", seed=number)
    wanted = desk.datasets.begin_encoding(desk.tenant, desk.dataset_id, OPTIONS)
    prefix = encoding_prefix(desk.tenant, wanted.encoding_id)
    desk.encode()
    store = desk.datasets.store
    parts = [EncodingPart.model_validate_json(store.get(f"{prefix}{offset:06}.json")) for offset in (0, 4)]
    assert parts[0].samples + parts[1].samples == desk.manifest.samples[:8]
    end = EncodingEnd.model_validate_json(store.get(f"{prefix}end.json"))
    pointer = desk.datasets.pointer(desk.tenant, desk.dataset_id)
    assert pointer
    assert end.manifest_digest == pointer.manifest_digest


def test_two_encoders_at_once_converge(
    desk: Desk, add_sample: AddSample, encoder_models: EncoderModels, datasets: Datasets
) -> None:
    for number in range(6):
        add_sample(f"{number}", seed=number)
    threads_of_models = [ModelThread(encoder_models) for _ in range(2)]
    encoders = [DatasetEncoder(Datasets(datasets.store), thread, EncoderSettings()) for thread in threads_of_models]
    desks = [Desk(encoder, datasets, desk.tenant, desk.dataset_id) for encoder in encoders]
    outcomes: list[EncodingOutcome] = []
    threads = [threading.Thread(target=lambda desk=desk: outcomes.append(desk.encode())) for desk in desks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [outcome.failure for outcome in outcomes] == ["", ""]
    for sample in desk.manifest.samples:
        assert all(desk.tensors(cached) for cached in sample.objects())
    assert datasets.wanted_encoding(desk.tenant, desk.dataset_id) is None
    for models in threads_of_models:
        models.close()


def test_text_can_be_encoded_before_images_on_small_cards(
    desk: Desk, add_sample: AddSample, encoder_models: EncoderModels, datasets: Datasets
) -> None:
    desk_names = ("a", "b", "c")
    for name in desk_names:
        add_sample(name)
    desk.encode()
    expected = desk.manifest
    small = replace(encoder_models, one_at_a_time=True)
    datasets.store.delete_prefix(f"{desk.tenant}/cache/")
    thread = ModelThread(small)
    loads: list[tuple[str, ...]] = []
    seen: list[Progress] = []
    encoder = DatasetEncoder(datasets, thread, EncoderSettings())
    one = Desk(encoder, datasets, desk.tenant, desk.dataset_id)
    wanted = datasets.begin_encoding(desk.tenant, desk.dataset_id, EncodingOptions(resolutions_px=(64,)))

    def on_progress(progress: Progress) -> None:
        loads.append(small.loaded())
        seen.append(progress)

    outcome, pointer = encoder.encode_dataset(desk.tenant, desk.dataset_id, wanted, on_progress)
    datasets.end_encoding(desk.tenant, desk.dataset_id, wanted, outcome, pointer)
    thread.close()
    assert one.manifest == expected
    text, image = ("text_encoder", "text_encoder_2"), ("vae",)
    assert [set(load) for load in loads[:1]] == [set(text)]  # progress is told while captions are encoded
    assert loads[-3:] == [image] * 3  # the text encoders made room once, before the first image
    assert [progress.done for progress in seen] == [0, 0, 0, 1, 2, 3]
    assert seen[2].written_bytes > 0
    assert seen[-1].cached == 0  # though the second round found every caption
