"""The batches of a run: a pure function of seed and step, whoever computes them and when."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from itertools import chain

import pytest
import safetensors.torch
import torch
from torch import Tensor

from services.common import cache
from services.common.cache import CachedObject, DatasetManifest
from services.common.object_store import ObjectDamaged, ObjectMissing, ObjectStore
from services.trainer.config import TrainConfig
from services.trainer.config.choices import GuidanceMode, SigmaSampling
from services.trainer.data.cached_dataset import CachedDataset
from services.trainer.flow_matching import Batch
from services.trainer.sigmas import resolution_mu, shift
from tests.services.damage import damage
from tests.services.trainer.conftest import SCALE, SHIFT, MakeDataset, cached, draw, left_half
from tests.services.trainer.data.test_read_ahead import settled

SQUARE, WIDE = (64, 64), (48, 80)
MIXED = [SQUARE, WIDE, SQUARE, SQUARE, WIDE]
CONFIG = TrainConfig(batch_size=2, seed=5)


def same(left: Batch, right: Batch) -> bool:
    """Whether two batches have the same bits."""
    return all(equal(tensor, getattr(right, name)) for name, tensor in vars(left).items())


def equal(left: Tensor | None, right: Tensor | None) -> bool:
    """Whether both are the same numbers, or both are not there."""
    return left is right if left is None or right is None else torch.equal(left, right)


def shown(dataset: CachedDataset, config: TrainConfig, steps: int, *, in_order_first: bool = False) -> Iterator[Batch]:
    """The batches of a run, whichever step they belong to."""
    return chain.from_iterable(dataset.batches(config, steps, in_order_first=in_order_first))


def stored(store: ObjectStore, cached: CachedObject) -> dict[str, Tensor]:
    """The tensors of an object, read from the store anew."""
    tensors: dict[str, Tensor] = safetensors.torch.load(store.get(cached.key))
    return tensors


def caption_numbers(store: ObjectStore, manifest: DatasetManifest, batch: Batch) -> list[int]:
    """Which sample each caption of a batch belongs to; -1 for the empty one."""
    known = {-1: manifest.empty_caption} | {i: sample.captions[0] for i, sample in enumerate(manifest.samples)}
    vectors = {i: stored(store, caption.embedding)[cache.CLIP_POOLED] for i, caption in known.items()}
    return [next(i for i, vector in vectors.items() if torch.equal(vector, clip_D)) for clip_D in batch.clip_BD]


def test_batches_depend_on_nothing_but_the_seed(store: ObjectStore, make_dataset: MakeDataset) -> None:
    manifest = make_dataset(MIXED, captions=2, variants=2)
    first, again = (list(shown(cached(store, manifest), CONFIG, 7)) for _ in range(2))
    assert all(same(*pair) for pair in zip(first, again, strict=True))


def test_another_seed_gives_other_noise_levels_and_order(store: ObjectStore, make_dataset: MakeDataset) -> None:
    dataset = cached(store, make_dataset([SQUARE] * 4))
    first, other = (
        next(shown(dataset, CONFIG.model_copy(update={"batch_size": 4, "seed": seed}), 1)) for seed in (1, 2)
    )
    assert not torch.equal(first.sigma_B, other.sigma_B)
    assert not torch.equal(first.noise_BCHW, other.noise_BCHW)
    assert not torch.equal(first.clip_BD, other.clip_BD)


def test_every_step_and_sample_has_noise_of_its_own(store: ObjectStore, make_dataset: MakeDataset) -> None:
    batches = list(shown(cached(store, make_dataset([SQUARE] * 2)), CONFIG, 4))
    sigmas = torch.cat([batch.sigma_B for batch in batches]).tolist()
    noises = [tuple(noise[0, 0].tolist()) for batch in batches for noise in batch.noise_BCHW]
    assert len(set(sigmas)) == len(set(noises)) == 8


def test_batches_never_mix_sizes(store: ObjectStore, make_dataset: MakeDataset) -> None:
    shapes = {tuple(batch.clean_BCHW.shape[2:]) for batch in shown(cached(store, make_dataset(MIXED)), CONFIG, 12)}
    assert shapes == {(8, 8), (6, 10)}


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_every_sample_is_seen_once_an_epoch(store: ObjectStore, make_dataset: MakeDataset, batch_size: int) -> None:
    manifest = make_dataset(MIXED)
    dataset = cached(store, manifest)
    config = CONFIG.model_copy(update={"batch_size": batch_size})
    per_epoch = dataset.batches_per_epoch(batch_size)
    assert per_epoch == -(-3 // batch_size) + -(-2 // batch_size)
    batches = [caption_numbers(store, manifest, batch) for batch in shown(dataset, config, 2 * per_epoch)]
    for epoch in (batches[:per_epoch], batches[per_epoch:]):
        assert sorted(number for batch in epoch for number in batch) == [0, 1, 2, 3, 4]


def test_order_differs_between_epochs(store: ObjectStore, make_dataset: MakeDataset) -> None:
    manifest = make_dataset([SQUARE] * 8)
    batches = shown(cached(store, manifest), CONFIG.model_copy(update={"batch_size": 8}), 2)
    first, second = (caption_numbers(store, manifest, batch) for batch in batches)
    assert first != second


@pytest.mark.parametrize(("dropout", "expected"), [(0.0, {0, 1, 2, 3}), (1.0, {-1})])
def test_dropped_captions_become_the_empty_one(
    store: ObjectStore, make_dataset: MakeDataset, dropout: float, expected: set[int]
) -> None:
    manifest = make_dataset([SQUARE] * 4)
    batches = shown(cached(store, manifest), CONFIG.model_copy(update={"caption_dropout": dropout}), 8)
    seen = {number for batch in batches for number in caption_numbers(store, manifest, batch)}
    assert seen == expected


def test_dropout_drops_its_share(store: ObjectStore, make_dataset: MakeDataset) -> None:
    manifest = make_dataset([SQUARE] * 4)
    config = CONFIG.model_copy(update={"caption_dropout": 0.25, "batch_size": 4})
    batches = shown(cached(store, manifest), config, 50)
    numbers = [number for batch in batches for number in caption_numbers(store, manifest, batch)]
    assert 0.15 < numbers.count(-1) / len(numbers) < 0.35


def test_latents_are_in_model_space(store: ObjectStore, make_dataset: MakeDataset) -> None:
    manifest = make_dataset([SQUARE])
    (batch,) = shown(cached(store, manifest), CONFIG, 1)
    mean_CHW = stored(store, manifest.samples[0].views[0].variants[0].latents)[cache.LATENT_MEAN]
    spread_CHW = (batch.clean_BCHW[0] / SCALE + SHIFT - mean_CHW) / torch.exp(torch.tensor(-3.0))
    assert abs(float(spread_CHW.mean())) < 0.15  # what is left is the posterior's own spread: a standard normal
    assert abs(float(spread_CHW.std()) - 1) < 0.1


def test_noise_level_is_shifted_by_the_tokens_of_the_picture(store: ObjectStore, make_dataset: MakeDataset) -> None:
    dataset = cached(store, make_dataset([WIDE]))
    plain, shifted = (
        next(shown(dataset, CONFIG.model_copy(update={"sigma_sampling": sampling}), 1)).sigma_B
        for sampling in (SigmaSampling.LOGIT_NORMAL, SigmaSampling.RESOLUTION_SHIFT)
    )
    tokens = (48 // 16) * (80 // 16)
    assert float(shifted) == pytest.approx(shift(float(plain), math.exp(resolution_mu(tokens))), rel=1e-5)


def test_posterior_is_drawn_anew_at_every_step(store: ObjectStore, make_dataset: MakeDataset) -> None:
    first, second = shown(cached(store, make_dataset([SQUARE])), CONFIG, 2)
    assert not torch.equal(first.clean_BCHW, second.clean_BCHW)


def test_variants_and_captions_of_a_sample_all_take_their_turn(store: ObjectStore, make_dataset: MakeDataset) -> None:
    manifest = make_dataset([SQUARE], captions=3, variants=2)
    seen: set[tuple[int, int]] = set()
    means = [stored(store, variant.latents)[cache.LATENT_MEAN] for variant in manifest.samples[0].views[0].variants]
    clips = [stored(store, one.embedding)[cache.CLIP_POOLED] for one in manifest.samples[0].captions]
    for batch in shown(cached(store, manifest), CONFIG, 40):
        latents = batch.clean_BCHW[0] / SCALE + SHIFT
        nearest = min((0, 1), key=lambda i: float((means[i] - latents).square().sum()))
        seen.add((nearest, next(i for i, clip in enumerate(clips) if torch.equal(clip, batch.clip_BD[0]))))
    assert seen == {(variant, caption) for variant in (0, 1) for caption in (0, 1, 2)}


@pytest.mark.parametrize("what", ["latents", "caption"])
def test_damaged_object_is_never_trained_on(store: ObjectStore, make_dataset: MakeDataset, what: str) -> None:
    manifest = make_dataset([SQUARE])
    sample = manifest.samples[0]
    damage(store, (sample.views[0].variants[0].latents if what == "latents" else sample.captions[0].embedding).key)
    with pytest.raises(ObjectDamaged):
        list(shown(cached(store, manifest), CONFIG, 1))


def test_missing_object_is_named(store: ObjectStore, make_dataset: MakeDataset) -> None:
    manifest = make_dataset([SQUARE])
    store.delete(manifest.samples[0].views[0].variants[0].latents.key)
    with pytest.raises(ObjectMissing, match=manifest.samples[0].views[0].variants[0].latents.key):
        list(shown(cached(store, manifest), CONFIG, 1))


def test_object_is_read_from_the_store_once(store: ObjectStore, make_dataset: MakeDataset) -> None:
    manifest = make_dataset([SQUARE])
    dataset = cached(store, manifest)
    first = list(shown(dataset, CONFIG, 2))
    damage(store, manifest.samples[0].views[0].variants[0].latents.key)
    assert all(same(*pair) for pair in zip(first, shown(dataset, CONFIG, 2), strict=True))


def test_two_steps_are_read_ahead_while_the_caller_works(
    store: ObjectStore, make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = make_dataset([SQUARE] * 8)
    read: list[int] = []
    get = store.get

    def noted(key: str, *, digest: str | None = None) -> bytes:
        read.append(len(read))
        return get(key, digest=digest)

    monkeypatch.setattr(store, "get", noted)
    steps = cached(store, manifest).batches(CONFIG, 4)
    next(steps)
    assert settled(read, 12) == 12  # latents and captions of two samples a step
    steps.close()


def test_widths_are_those_of_the_cached_tensors(store: ObjectStore, make_dataset: MakeDataset) -> None:
    widths = cached(store, make_dataset([SQUARE])).widths()
    assert (widths.t5, widths.clip, widths.latents) == (128, 64, 16)


def test_sample_is_shown_as_often_as_its_repeats_say(store: ObjectStore, make_dataset: MakeDataset) -> None:
    manifest = make_dataset([SQUARE, WIDE], repeats=3)
    dataset = cached(store, manifest)
    assert dataset.batches_per_epoch(1) == 6
    batches = list(shown(dataset, CONFIG.model_copy(update={"batch_size": 1}), 6))
    numbers = [number for batch in batches for number in caption_numbers(store, manifest, batch)]
    assert Counter(numbers) == {0: 3, 1: 3}


def test_repeats_within_a_batch_have_noise_of_their_own(store: ObjectStore, make_dataset: MakeDataset) -> None:
    (batch,) = shown(cached(store, make_dataset([SQUARE], repeats=2)), CONFIG, 1)
    assert batch.sigma_B[0] != batch.sigma_B[1]
    assert not torch.equal(batch.noise_BCHW[0], batch.noise_BCHW[1])


def test_epoch_shows_every_view_of_a_sample(store: ObjectStore, make_dataset: MakeDataset) -> None:
    dataset = cached(store, make_dataset([SQUARE], views=2))
    batches = list(shown(dataset, CONFIG, 2))
    assert {tuple(batch.clean_BCHW.shape[2:]) for batch in batches} == {(8, 8), (10, 8)}


def test_latents_without_a_spread_are_taken_as_they_are(store: ObjectStore, make_dataset: MakeDataset) -> None:
    manifest = make_dataset([SQUARE])
    cached_object = manifest.samples[0].views[0].variants[0].latents
    mean_CHW = draw("mean", 16, 8, 8)
    put = store.put(cached_object.key, safetensors.torch.save({cache.LATENT_MEAN: mean_CHW}))
    changed = manifest.model_dump_json().replace(cached_object.digest, put.digest)
    dataset = cached(store, DatasetManifest.model_validate_json(changed))
    for batch in shown(dataset, CONFIG, 2):
        assert torch.equal(batch.clean_BCHW[0], (mean_CHW - SHIFT) * SCALE)


def test_masks_are_loaded_where_the_job_counts_them(store: ObjectStore, make_dataset: MakeDataset) -> None:
    dataset = cached(store, make_dataset([SQUARE], masked=[0]))
    (batch,) = shown(dataset, CONFIG, 1)
    assert equal(batch.mask_B1HW, left_half(8, 8)[None])
    (batch,) = shown(dataset, CONFIG.model_copy(update={"masked_loss": False}), 1)
    assert batch.mask_B1HW is None


def test_sample_without_a_mask_counts_everywhere_beside_one_with(store: ObjectStore, make_dataset: MakeDataset) -> None:
    manifest = make_dataset([SQUARE, SQUARE], masked=[1])
    (batch,) = shown(cached(store, manifest), CONFIG, 1)
    expected = {0: torch.ones(1, 8, 8), 1: left_half(8, 8)}
    assert batch.mask_B1HW is not None
    for number, mask in zip(caption_numbers(store, manifest, batch), batch.mask_B1HW, strict=True):
        assert torch.equal(mask, expected[number])


def test_dataset_without_masks_has_none(store: ObjectStore, make_dataset: MakeDataset) -> None:
    (batch,) = shown(cached(store, make_dataset([SQUARE])), CONFIG, 1)
    assert batch.mask_B1HW is None
    assert batch.guidance_B is None


def test_guidance_is_fixed_or_drawn_for_each_sample(store: ObjectStore, make_dataset: MakeDataset) -> None:
    dataset = cached(store, make_dataset([SQUARE] * 2))
    sampled = {"guidance": GuidanceMode.SAMPLED, "guidance_scale": 2.0, "guidance_scale_max": 3.0}
    batches = list(shown(dataset, CONFIG.model_copy(update=sampled), 30))
    scales = [scale for batch in batches if batch.guidance_B is not None for scale in batch.guidance_B.tolist()]
    assert len(set(scales)) == 60
    assert 2 <= min(scales) < 2.1
    assert 2.9 < max(scales) <= 3
    (fixed,) = shown(dataset, CONFIG.model_copy(update={**sampled, "guidance": GuidanceMode.FIXED}), 1)
    assert equal(fixed.guidance_B, torch.tensor([2.0, 2.0]))
    plain = next(shown(dataset, CONFIG, 1))
    assert torch.equal(plain.noise_BCHW, batches[0].noise_BCHW)  # guidance takes nothing from the other draws
