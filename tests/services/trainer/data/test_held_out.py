"""What is held out: chosen by name and seed, and shown in the same way in every run."""

from __future__ import annotations

import pytest
import torch

from services.common import cache
from services.common.cache import CachedCaption, CachedObject, CachedSample, CachedVariant, CachedView
from services.common.errors import InvalidInput
from services.common.object_store import ObjectStore
from services.trainer.config import TrainConfig
from services.trainer.data.cached_dataset import HELD_OUT_SIGMAS
from services.trainer.data.held_out import split
from tests.services.trainer.conftest import SCALE, SHIFT, MakeDataset, cached
from tests.services.trainer.data.test_cached_dataset import MIXED, SQUARE, caption_numbers, same, stored

OBJECT = CachedObject(key="key", digest="0" * 64, size_bytes=1)


def samples_of(*numbers: int) -> tuple[CachedSample, ...]:
    """Samples with these numbers in their names."""
    view = CachedView(height_px=64, width_px=64, variants=(CachedVariant(latents=OBJECT),))
    captions = (CachedCaption(caption="caption", embedding=OBJECT),)
    return tuple(CachedSample(sample_name=f"{number}.png", views=(view,), captions=captions) for number in numbers)


def numbers_of(samples: tuple[CachedSample, ...]) -> list[int]:
    """The numbers in their names."""
    return [int(sample.sample_name.removesuffix(".png")) for sample in samples]


@pytest.mark.parametrize(
    ("size", "share", "expected"),
    [(10, 0.2, 2), (10, 0.01, 1), (2, 0.5, 1), (2, 0.01, 1), (3, 0.5, 2), (7, 0.3, 2), (1000, 0.1, 100), (5, 0.0, 0)],
)
def test_held_out_part_has_its_share_and_leaves_something(size: int, share: float, expected: int) -> None:
    training, held_out = split(samples_of(*range(size)), share, 0)
    assert len(held_out) == expected
    assert len(training) == size - expected


def test_each_sample_is_on_one_side_and_both_are_in_order() -> None:
    training, held_out = map(numbers_of, split(samples_of(*range(50)), 0.3, 0))
    assert sorted(training + held_out) == list(range(50))
    assert training == sorted(training)
    assert held_out == sorted(held_out)
    assert held_out != list(range(15))
    assert held_out != list(range(35, 50))


def test_choice_is_the_names_and_not_their_order() -> None:
    forwards, backwards = range(30), reversed(range(30))
    chosen, again = (set(numbers_of(split(samples_of(*order), 0.2, 4)[1])) for order in (forwards, backwards))
    assert chosen == again


def test_another_seed_chooses_others() -> None:
    chosen = {tuple(numbers_of(split(samples_of(*range(30)), 0.2, seed)[1])) for seed in range(5)}
    assert len(chosen) == 5


def test_one_sample_more_changes_the_choice_by_one_at_most() -> None:
    before, after = (set(numbers_of(split(samples_of(*range(size)), 0.2, 0)[1])) for size in (100, 101))
    assert len(before - after) <= 1
    assert len(after - before) <= 1


def test_single_sample_cannot_be_split() -> None:
    with pytest.raises(
        InvalidInput, match="held_out_share leaves nothing to train on: the dataset has 1 sample"
    ) as told:
        split(samples_of(1), 0.1, 0)
    assert told.value.reason == "DATASET_TOO_SMALL"
    assert "Set held_out_share to 0" in told.value.remedy
    assert [violation.field for violation in told.value.violations] == ["config.held_out_share"]
    assert split(samples_of(1), 0, 0) == (samples_of(1), ())


def test_held_out_batches_are_the_same_in_every_run(store: ObjectStore, make_dataset: MakeDataset) -> None:
    manifest = make_dataset(MIXED)
    first, again = (
        list(cached(store, manifest).held_out_batches(TrainConfig(batch_size=4, seed=seed))) for seed in (1, 2)
    )
    assert all(same(*pair) for pair in zip(first, again, strict=True))


@pytest.mark.parametrize("batch_size", [1, 3, 8, 64])
def test_held_out_batches_show_every_sample_at_every_level(
    store: ObjectStore, make_dataset: MakeDataset, batch_size: int
) -> None:
    manifest = make_dataset(MIXED[:3])
    batches = list(cached(store, manifest).held_out_batches(TrainConfig(batch_size=batch_size)))
    assert torch.cat([batch.sigma_B for batch in batches]).tolist() == [*HELD_OUT_SIGMAS] * 3
    numbers = [number for batch in batches for number in caption_numbers(store, manifest, batch)]
    assert numbers == [0] * 8 + [1] * 8 + [2] * 8


def test_held_out_levels_cover_the_path_evenly() -> None:
    assert [round(16 * sigma) for sigma in HELD_OUT_SIGMAS] == [1, 3, 5, 7, 9, 11, 13, 15]


def test_held_out_latents_are_the_mean_in_model_space(store: ObjectStore, make_dataset: MakeDataset) -> None:
    manifest = make_dataset([SQUARE])
    batch = next(cached(store, manifest).held_out_batches(TrainConfig()))
    mean_CHW = stored(store, manifest.samples[0].views[0].variants[0].latents)[cache.LATENT_MEAN]
    assert torch.equal(batch.clean_BCHW[0], (mean_CHW - SHIFT) * SCALE)


def test_held_out_samples_of_one_size_have_noise_of_their_own(store: ObjectStore, make_dataset: MakeDataset) -> None:
    dataset = cached(store, make_dataset([SQUARE, SQUARE]))
    noises = [noise for batch in dataset.held_out_batches(TrainConfig(batch_size=8)) for noise in batch.noise_BCHW]
    assert len({tuple(noise[0, 0].tolist()) for noise in noises}) == 16


def test_held_out_samples_are_shown_by_their_first_variant_and_caption(
    store: ObjectStore, make_dataset: MakeDataset
) -> None:
    manifest = make_dataset([SQUARE, SQUARE], captions=3, variants=3)
    batches = list(cached(store, manifest).held_out_batches(TrainConfig(batch_size=8)))
    for sample, batch in zip(manifest.samples, batches, strict=True):
        mean_CHW = stored(store, sample.views[0].variants[0].latents)[cache.LATENT_MEAN]
        clip_D = stored(store, sample.captions[0].embedding)[cache.CLIP_POOLED]
        assert torch.equal(batch.clean_BCHW, ((mean_CHW - SHIFT) * SCALE).expand(8, -1, -1, -1))
        assert torch.equal(batch.clip_BD, clip_D.expand(8, -1))
