"""Encoding a dataset: through the cache, the models only for what it lacks, the manifest last."""

from __future__ import annotations

import io

import pytest
import safetensors.torch
import torch
from PIL import Image

from services.common import cache
from services.common.cache import CachedObject, DatasetManifest, read_manifest
from services.common.errors import InvalidInput
from services.common.object_store import ObjectStore
from services.encoder.datasets import Datasets, EncodingOptions, EncodingOutcome
from services.encoder.encoding import DatasetEncoder, Progress, TensorCache, read_latents
from services.encoder.images import Bucket, Problem, crop_to
from services.encoder.models import EncoderModels, ModelThread
from tests.services.damage import damage
from tests.services.encoder.conftest import AddSample, noise_png

OPTIONS = EncodingOptions(resolution_px=64)
SKIP = EncodingOptions(resolution_px=64, skip_bad_samples=True)
BUCKET = Bucket(height_px=64, width_px=64)


class Desk:
    """One dataset and its encoder."""

    def __init__(self, encoder: DatasetEncoder, datasets: Datasets, tenant: str, dataset_id: str) -> None:
        self.encoder, self.datasets, self.tenant, self.dataset_id = encoder, datasets, tenant, dataset_id
        self.progress: list[Progress] = []

    def encode(self, options: EncodingOptions = OPTIONS) -> EncodingOutcome:
        """Encode, keeping every progress."""
        self.progress.clear()
        return self.encoder.encode_dataset(self.tenant, self.dataset_id, options, self.progress.append)

    @property
    def manifest(self) -> DatasetManifest:
        """What the last encoding published."""
        pointer = self.datasets.pointer(self.tenant, self.dataset_id)
        assert pointer
        return read_manifest(self.datasets.store, self.tenant, pointer.manifest_digest)

    def tensors(self, cached: CachedObject) -> dict[str, torch.Tensor]:
        """The tensors of an object, its digest checked."""
        data = self.datasets.store.get(cached.key, digest=cached.digest)
        tensors: dict[str, torch.Tensor] = safetensors.torch.load(data)
        return tensors


@pytest.fixture
def desk(encoder: DatasetEncoder, datasets: Datasets, tenant: str, dataset_id: str) -> Desk:
    """An empty dataset and its encoder."""
    return Desk(encoder, datasets, tenant, dataset_id)


@pytest.fixture
def tensors(store: ObjectStore, model_thread: ModelThread, tenant: str) -> TensorCache:
    """The tensors of a tenant that has none yet."""
    return TensorCache(store, model_thread, tenant)


def picture(seed: int = 0) -> Image.Image:
    """A decoded picture."""
    return Image.open(io.BytesIO(noise_png(seed))).convert("RGB")


def test_manifest_holds_what_the_models_say(desk: Desk, add_sample: AddSample, encoder_models: EncoderModels) -> None:
    add_sample("a", "an apple", "a fruit", seed=0)
    assert desk.encode() == EncodingOutcome()
    manifest, config = desk.manifest, encoder_models.vae.config
    (sample,) = manifest.samples
    mean_Chw, logvar_Chw = encoder_models.encode_image(crop_to(picture(0), BUCKET))
    latents = desk.tensors(sample.latents[0])
    assert torch.equal(latents[cache.LATENT_MEAN], mean_Chw)
    assert torch.equal(latents[cache.LATENT_LOGVAR], logvar_Chw)
    assert (manifest.latent_shift, manifest.latent_scale) == (config.shift_factor, config.scaling_factor)
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


def test_samples_stand_in_the_manifest_by_name(desk: Desk, add_sample: AddSample) -> None:
    for name in ("b", "a/ä", "c"):
        add_sample(name)
    desk.encode()
    assert [sample.sample_name for sample in desk.manifest.samples] == ["a/ä", "b", "c"]


def test_picture_is_cropped_to_its_bucket(desk: Desk, add_sample: AddSample) -> None:
    add_sample("wide", data=noise_png(0, width=100, height=50))
    desk.encode()
    (sample,) = desk.manifest.samples
    assert (sample.height_px, sample.width_px) == (32, 80)
    assert desk.tensors(sample.latents[0])[cache.LATENT_MEAN].shape == (16, 4, 10)


def test_flip_caches_the_mirrored_picture_too(desk: Desk, add_sample: AddSample, encoder_models: EncoderModels) -> None:
    add_sample("a", seed=0)
    desk.encode(OPTIONS.model_copy(update={"flip": True}))
    _, mirrored = desk.manifest.samples[0].latents
    flipped = picture(0).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    expected, _ = encoder_models.encode_image(crop_to(flipped, BUCKET))
    assert torch.equal(desk.tensors(mirrored)[cache.LATENT_MEAN], expected)


def test_encoding_again_does_no_model_work(desk: Desk, add_sample: AddSample) -> None:
    for name in ("a", "b"):
        add_sample(name)
    desk.encode()
    first = desk.manifest
    assert desk.progress[-1] == Progress(total=2, encoded=2, cached=0)
    desk.encode()
    assert desk.progress[-1] == Progress(total=2, encoded=2, cached=2)
    assert desk.manifest == first


def test_new_sample_costs_only_itself(desk: Desk, add_sample: AddSample) -> None:
    add_sample("a")
    desk.encode()
    add_sample("b")
    desk.encode()
    assert [progress.cached for progress in desk.progress] == [1, 1]


def test_damaged_object_is_encoded_again_and_only_it(desk: Desk, add_sample: AddSample) -> None:
    for name in ("a", "b", "c"):
        add_sample(name)
    desk.encode()
    first = desk.manifest
    damage(desk.datasets.store, first.samples[1].latents[0].key)
    desk.encode()
    assert [progress.cached for progress in desk.progress] == [1, 1, 2]
    assert desk.manifest == first
    assert desk.tensors(first.samples[1].latents[0])


def test_progress_tells_every_sample(desk: Desk, add_sample: AddSample) -> None:
    for name in ("a", "b", "c"):
        add_sample(name)
    desk.encode()
    assert [(progress.total, progress.encoded) for progress in desk.progress] == [(3, 1), (3, 2), (3, 3)]


def bad_samples(add_sample: AddSample) -> dict[str, Problem]:
    """Two good samples and one of each bad kind."""
    add_sample("good 1")
    add_sample("good 2")
    add_sample("text", data=b"hello")
    add_sample("half", data=noise_png(0)[:3000])
    add_sample("huge", data=noise_png(0, 101, 101))
    add_sample("tiny", data=noise_png(0, 15, 60))
    return {
        "half": Problem.TRUNCATED,
        "huge": Problem.TOO_LARGE,
        "text": Problem.NOT_AN_IMAGE,
        "tiny": Problem.TOO_SMALL,
    }


def test_bad_samples_fail_the_encoding_and_all_of_them_are_named(desk: Desk, add_sample: AddSample) -> None:
    expected = bad_samples(add_sample)
    outcome = desk.encode()
    assert {problem.sample_name: problem.problem for problem in outcome.problems} == expected
    assert "4 of 6 samples cannot be used, first 'half'" in outcome.failure
    assert desk.datasets.pointer(desk.tenant, desk.dataset_id) is None


def test_bad_samples_can_be_left_out(desk: Desk, add_sample: AddSample) -> None:
    expected = bad_samples(add_sample)
    outcome = desk.encode(SKIP)
    assert outcome.failure == ""
    assert {problem.sample_name: problem.problem for problem in outcome.problems} == expected
    assert [sample.sample_name for sample in desk.manifest.samples] == ["good 1", "good 2"]


@pytest.mark.parametrize("options", [OPTIONS, SKIP])
def test_encoding_without_a_usable_sample_fails(desk: Desk, add_sample: AddSample, options: EncodingOptions) -> None:
    assert "no samples" in desk.encode(options).failure
    add_sample("text", data=b"hello")
    assert "'text'" in desk.encode(options).failure


def test_same_picture_under_two_names_is_warned_of(desk: Desk, add_sample: AddSample) -> None:
    add_sample("a", seed=1)
    add_sample("b", seed=1)
    add_sample("c", seed=2)
    outcome = desk.encode()
    (warning,) = outcome.problems
    assert (outcome.failure, warning.sample_name, warning.problem) == ("", "b", Problem.DUPLICATE)
    assert "'a'" in warning.message
    assert len(desk.manifest.samples) == 3


def test_caption_whose_end_is_not_read_is_warned_of(desk: Desk, add_sample: AddSample) -> None:
    add_sample("a", "apple " * 100)
    first, *rest = desk.encode().problems
    assert {warning.problem for warning in (first, *rest)} == {Problem.CAPTION_TRUNCATED}
    assert "CLIP does not read its last" in first.message


def test_same_thing_twice_runs_no_model(tensors: TensorCache) -> None:
    first = (tensors.latents(picture(), BUCKET), tensors.caption("an apple"))
    assert tensors.model_runs == 2
    assert (tensors.latents(picture(), BUCKET), tensors.caption("an apple")) == first
    assert tensors.model_runs == 2


def test_whatever_changes_the_result_changes_the_key(tensors: TensorCache) -> None:
    keys = {
        tensors.latents(picture(0), BUCKET).key,
        tensors.latents(picture(1), BUCKET).key,
        tensors.latents(picture(0), Bucket(height_px=48, width_px=48)).key,
        tensors.caption("an apple").embedding.key,
        tensors.caption("an apple ").embedding.key,
        tensors.caption("").embedding.key,
    }
    assert len(keys) == 6


def test_cache_is_the_tenants_own(store: ObjectStore, model_thread: ModelThread, tenant: str) -> None:
    for name in (tenant, f"{tenant}-other"):
        tensors = TensorCache(store, model_thread, name)
        assert tensors.caption("an apple").embedding.key.startswith(f"{name}/cache/")
        assert tensors.model_runs == 1


def test_captions_are_embedded_in_their_order(encoder: DatasetEncoder, tenant: str) -> None:
    cached = encoder.embed_captions(tenant, ["b", "", "a", "b"])
    assert [caption.caption for caption in cached] == ["b", "", "a", "b"]
    assert cached[0].embedding == cached[3].embedding


def test_latents_are_decoded_into_a_picture_beside_them(
    desk: Desk, store: ObjectStore, encoder_models: EncoderModels
) -> None:
    latents_Chw = torch.randn(16, 8, 6, generator=torch.Generator().manual_seed(0))
    key = store.put(f"{desk.tenant}/l", safetensors.torch.save({cache.LATENTS: latents_Chw})).key
    image = desk.encoder.decode_to_png(key)
    found = Image.open(io.BytesIO(store.get(image.key, digest=image.digest)))
    assert (image.key, found.format, found.size) == (f"{key}.png", "PNG", (48, 64))
    assert found.tobytes() == encoder_models.decode_latents(latents_Chw).tobytes()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no safetensors",
        safetensors.torch.save({"other": torch.zeros(16, 8, 8)}),
        safetensors.torch.save({"latents": torch.zeros(1, 16, 8, 8)}),
        safetensors.torch.save({"latents": torch.zeros(4, 8, 8)}),
    ],
    ids=["nothing", "text", "other name", "batch", "four channels"],
)
def test_latents_of_another_form_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_latents(data)
    assert caught.value.reason == "LATENTS_INVALID"
