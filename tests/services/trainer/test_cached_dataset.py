"""The batches of a run: a pure function of seed and step, whoever computes them and when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice

import pytest
import safetensors.torch
import torch
from torch import Tensor

from services.common import cache
from services.common.cache import CachedObject, CachedSample, DatasetManifest
from services.common.object_store import ObjectDamaged, ObjectMissing, ObjectStore
from services.trainer.cached_dataset import HELD_OUT_SIGMAS, CachedDataset
from services.trainer.choices import SigmaSampling
from services.trainer.config import TrainConfig
from services.trainer.flow_matching import Batch, resolution_mu, shift
from tests.services.damage import damage
from tests.services.trainer.conftest import SCALE, SHIFT, MakeDataset, cached, draw

SQUARE, WIDE = (64, 64), (48, 80)
MIXED = [SQUARE, WIDE, SQUARE, SQUARE, WIDE]
CONFIG = TrainConfig(batch_size=2, seed=5)


def same(left: Batch, right: Batch) -> bool:
    """Whether two batches have the same bits."""
    return all(torch.equal(tensor, getattr(right, name)) for name, tensor in vars(left).items())


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
    first, again = (list(cached(store, manifest).batches(CONFIG, 7)) for _ in range(2))
    assert all(same(*pair) for pair in zip(first, again, strict=True))


def test_run_that_goes_on_in_the_middle_sees_what_it_would_have_seen(
    store: ObjectStore, make_dataset: MakeDataset
) -> None:
    manifest = make_dataset(MIXED)
    whole = list(cached(store, manifest).batches(CONFIG, 8))
    rest = list(islice(cached(store, manifest).batches(CONFIG, 20), 5, 8))
    assert all(same(*pair) for pair in zip(whole[5:], rest, strict=True))


def test_another_seed_gives_other_noise_levels_and_order(store: ObjectStore, make_dataset: MakeDataset) -> None:
    dataset = cached(store, make_dataset([SQUARE] * 4))
    first, other = (
        next(dataset.batches(CONFIG.model_copy(update={"batch_size": 4, "seed": seed}), 1)) for seed in (1, 2)
    )
    assert not torch.equal(first.sigma_B, other.sigma_B)
    assert not torch.equal(first.noise_BCHW, other.noise_BCHW)
    assert not torch.equal(first.clip_BD, other.clip_BD)


def test_every_step_and_sample_has_noise_of_its_own(store: ObjectStore, make_dataset: MakeDataset) -> None:
    batches = list(cached(store, make_dataset([SQUARE] * 2)).batches(CONFIG, 4))
    sigmas = torch.cat([batch.sigma_B for batch in batches]).tolist()
    noises = [tuple(noise[0, 0].tolist()) for batch in batches for noise in batch.noise_BCHW]
    assert len(set(sigmas)) == len(set(noises)) == 8


def test_batches_never_mix_sizes(store: ObjectStore, make_dataset: MakeDataset) -> None:
    shapes = {tuple(batch.clean_BCHW.shape[2:]) for batch in cached(store, make_dataset(MIXED)).batches(CONFIG, 12)}
    assert shapes == {(8, 8), (6, 10)}


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_every_sample_is_seen_once_an_epoch(store: ObjectStore, make_dataset: MakeDataset, batch_size: int) -> None:
    manifest = make_dataset(MIXED)
    dataset = cached(store, manifest)
    config = CONFIG.model_copy(update={"batch_size": batch_size})
    per_epoch = dataset.steps_per_epoch(batch_size)
    assert per_epoch == -(-3 // batch_size) + -(-2 // batch_size)
    batches = [caption_numbers(store, manifest, batch) for batch in dataset.batches(config, 2 * per_epoch)]
    for epoch in (batches[:per_epoch], batches[per_epoch:]):
        assert sorted(number for batch in epoch for number in batch) == [0, 1, 2, 3, 4]


def test_order_differs_between_epochs(store: ObjectStore, make_dataset: MakeDataset) -> None:
    manifest = make_dataset([SQUARE] * 8)
    batches = cached(store, manifest).batches(CONFIG.model_copy(update={"batch_size": 8}), 2)
    first, second = (caption_numbers(store, manifest, batch) for batch in batches)
    assert first != second


@pytest.mark.parametrize(("dropout", "expected"), [(0.0, {0, 1, 2, 3}), (1.0, {-1})])
def test_dropped_captions_become_the_empty_one(
    store: ObjectStore, make_dataset: MakeDataset, dropout: float, expected: set[int]
) -> None:
    manifest = make_dataset([SQUARE] * 4)
    batches = cached(store, manifest).batches(CONFIG.model_copy(update={"caption_dropout": dropout}), 8)
    seen = {number for batch in batches for number in caption_numbers(store, manifest, batch)}
    assert seen == expected


def test_dropout_drops_its_share(store: ObjectStore, make_dataset: MakeDataset) -> None:
    manifest = make_dataset([SQUARE] * 4)
    config = CONFIG.model_copy(update={"caption_dropout": 0.25, "batch_size": 4})
    batches = cached(store, manifest).batches(config, 50)
    numbers = [number for batch in batches for number in caption_numbers(store, manifest, batch)]
    assert 0.15 < numbers.count(-1) / len(numbers) < 0.35


def test_latents_are_in_model_space(store: ObjectStore, make_dataset: MakeDataset) -> None:
    manifest = make_dataset([SQUARE])
    (batch,) = cached(store, manifest).batches(CONFIG, 1)
    mean_CHW = stored(store, manifest.samples[0].views[0].variants[0].latents)[cache.LATENT_MEAN]
    spread_CHW = (batch.clean_BCHW[0] / SCALE + SHIFT - mean_CHW) / torch.exp(torch.tensor(-3.0))
    assert abs(float(spread_CHW.mean())) < 0.15  # what is left is the posterior's own spread: a standard normal
    assert abs(float(spread_CHW.std()) - 1) < 0.1


def test_noise_level_is_shifted_by_the_tokens_of_the_picture(store: ObjectStore, make_dataset: MakeDataset) -> None:
    dataset = cached(store, make_dataset([WIDE]))
    plain, shifted = (
        next(dataset.batches(CONFIG.model_copy(update={"sigma_sampling": sampling}), 1)).sigma_B
        for sampling in (SigmaSampling.LOGIT_NORMAL, SigmaSampling.RESOLUTION_SHIFT)
    )
    tokens = (48 // 16) * (80 // 16)
    assert float(shifted) == pytest.approx(shift(float(plain), resolution_mu(tokens)), rel=1e-5)


def test_posterior_is_drawn_anew_at_every_step(store: ObjectStore, make_dataset: MakeDataset) -> None:
    first, second = cached(store, make_dataset([SQUARE])).batches(CONFIG, 2)
    assert not torch.equal(first.clean_BCHW, second.clean_BCHW)


def test_variants_and_captions_of_a_sample_all_take_their_turn(store: ObjectStore, make_dataset: MakeDataset) -> None:
    manifest = make_dataset([SQUARE], captions=3, variants=2)
    seen: set[tuple[int, int]] = set()
    means = [stored(store, variant.latents)[cache.LATENT_MEAN] for variant in manifest.samples[0].views[0].variants]
    clips = [stored(store, one.embedding)[cache.CLIP_POOLED] for one in manifest.samples[0].captions]
    for batch in cached(store, manifest).batches(CONFIG, 40):
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
        list(cached(store, manifest).batches(CONFIG, 1))


def test_missing_object_is_named(store: ObjectStore, make_dataset: MakeDataset) -> None:
    manifest = make_dataset([SQUARE])
    store.delete(manifest.samples[0].views[0].variants[0].latents.key)
    with pytest.raises(ObjectMissing, match=manifest.samples[0].views[0].variants[0].latents.key):
        list(cached(store, manifest).batches(CONFIG, 1))


def test_object_is_read_from_the_store_once(store: ObjectStore, make_dataset: MakeDataset) -> None:
    manifest = make_dataset([SQUARE])
    dataset = cached(store, manifest)
    first = list(dataset.batches(CONFIG, 2))
    damage(store, manifest.samples[0].views[0].variants[0].latents.key)
    assert all(same(*pair) for pair in zip(first, dataset.batches(CONFIG, 2), strict=True))


def test_widths_are_those_of_the_cached_tensors(store: ObjectStore, make_dataset: MakeDataset) -> None:
    widths = cached(store, make_dataset([SQUARE])).widths()
    assert (widths.t5, widths.clip, widths.latents) == (128, 64, 16)


def test_held_out_batches_are_the_same_in_every_run(store: ObjectStore, make_dataset: MakeDataset) -> None:
    manifest = make_dataset(MIXED)
    first, again = (list(cached(store, manifest).held_out_batches(4)) for _ in range(2))
    assert all(same(*pair) for pair in zip(first, again, strict=True))


@pytest.mark.parametrize("batch_size", [1, 3, 8, 64])
def test_held_out_batches_show_every_sample_at_every_level(
    store: ObjectStore, make_dataset: MakeDataset, batch_size: int
) -> None:
    manifest = make_dataset(MIXED[:3])
    batches = list(cached(store, manifest).held_out_batches(batch_size))
    assert torch.cat([batch.sigma_B for batch in batches]).tolist() == [*HELD_OUT_SIGMAS] * 3
    numbers = [number for batch in batches for number in caption_numbers(store, manifest, batch)]
    assert numbers == [0] * 8 + [1] * 8 + [2] * 8


def test_held_out_levels_cover_the_path_evenly() -> None:
    assert [round(16 * sigma) for sigma in HELD_OUT_SIGMAS] == [1, 3, 5, 7, 9, 11, 13, 15]


def test_held_out_latents_are_the_mean_in_model_space(store: ObjectStore, make_dataset: MakeDataset) -> None:
    manifest = make_dataset([SQUARE])
    batch = next(cached(store, manifest).held_out_batches(1))
    mean_CHW = stored(store, manifest.samples[0].views[0].variants[0].latents)[cache.LATENT_MEAN]
    assert torch.equal(batch.clean_BCHW[0], (mean_CHW - SHIFT) * SCALE)


def test_sample_is_shown_as_often_as_its_repeats_say(store: ObjectStore, make_dataset: MakeDataset) -> None:
    manifest = make_dataset([SQUARE, WIDE], repeats=3)
    dataset = cached(store, manifest)
    assert dataset.steps_per_epoch(1) == 6
    batches = list(dataset.batches(CONFIG.model_copy(update={"batch_size": 1}), 6))
    numbers = [number for batch in batches for number in caption_numbers(store, manifest, batch)]
    assert Counter(numbers) == {0: 3, 1: 3}


def test_repeats_within_a_batch_have_noise_of_their_own(store: ObjectStore, make_dataset: MakeDataset) -> None:
    (batch,) = cached(store, make_dataset([SQUARE], repeats=2)).batches(CONFIG, 1)
    assert batch.sigma_B[0] != batch.sigma_B[1]
    assert not torch.equal(batch.noise_BCHW[0], batch.noise_BCHW[1])


def test_epoch_shows_every_view_of_a_sample(store: ObjectStore, make_dataset: MakeDataset) -> None:
    dataset = cached(store, make_dataset([SQUARE], views=2))
    batches = list(dataset.batches(CONFIG, 2))
    assert {tuple(batch.clean_BCHW.shape[2:]) for batch in batches} == {(8, 8), (10, 8)}


def test_latents_without_a_spread_are_taken_as_they_are(store: ObjectStore, make_dataset: MakeDataset) -> None:
    manifest = make_dataset([SQUARE])
    cached_object = manifest.samples[0].views[0].variants[0].latents
    mean_CHW = draw("mean", 16, 8, 8)
    put = store.put(cached_object.key, safetensors.torch.save({cache.LATENT_MEAN: mean_CHW}))
    changed = manifest.model_dump_json().replace(cached_object.digest, put.digest)
    dataset = cached(store, DatasetManifest.model_validate_json(changed))
    for batch in dataset.batches(CONFIG, 2):
        assert torch.equal(batch.clean_BCHW[0], (mean_CHW - SHIFT) * SCALE)


def test_epoch_in_order_needs_no_more_samples_than_it_shows(store: ObjectStore, make_dataset: MakeDataset) -> None:
    manifest = make_dataset([SQUARE] * 6)
    asked: list[int] = []

    class Watched(list[CachedSample]):
        def __getitem__(self, index: int) -> CachedSample:  # type: ignore[override]
            asked.append(index)
            return super().__getitem__(index)

        def __iter__(self) -> Iterator[CachedSample]:
            return (self[index] for index in range(len(self)))

    batches = CachedDataset(store, manifest, Watched(manifest.samples)).batches(CONFIG, 3, in_order_first=True)
    assert caption_numbers(store, manifest, next(batches)) == [0, 1]
    assert max(asked) == 1


@pytest.mark.parametrize("repeats", [1, 2])
def test_epoch_in_order_shows_the_same_as_a_shuffled_one(
    store: ObjectStore, make_dataset: MakeDataset, repeats: int
) -> None:
    manifest = make_dataset(MIXED, repeats=repeats)
    dataset = cached(store, manifest)
    steps = dataset.steps_per_epoch(1)
    config = CONFIG.model_copy(update={"batch_size": 1})
    first, second = (
        [number for batch in part for number in caption_numbers(store, manifest, batch)]
        for part in (
            dataset.batches(config, steps, in_order_first=True),
            islice(dataset.batches(config, 2 * steps, in_order_first=True), steps, None),
        )
    )
    assert first[: len(MIXED)] == list(range(len(MIXED)))
    assert Counter(first) == Counter(second)
    assert first != second
