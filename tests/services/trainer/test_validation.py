"""The held-out loss: the same weights give the same number, and other weights another."""

from __future__ import annotations

import copy

import pytest
import safetensors.torch
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from services.common import cache
from services.common.object_store import ObjectStore
from services.trainer.adapters.adapter import adapter_parameters, attached
from services.trainer.config import TrainConfig
from services.trainer.data.cached_dataset import HELD_OUT_SIGMAS, CachedDataset
from services.trainer.flow_matching import loss_per_sample
from services.trainer.seeds import seeded
from services.trainer.validation import held_out_loss, zero_loss
from tests.services.trainer.conftest import SCALE, SHIFT, MakeDataset, cached


@pytest.fixture
def dataset(store: ObjectStore, make_dataset: MakeDataset) -> CachedDataset:
    """Two held-out samples of different size."""
    return cached(store, make_dataset([(64, 64), (48, 80)]))


def loss_of(transformer: FluxTransformer2DModel, dataset: CachedDataset, batch_size: int, **fields: object) -> float:
    """The held-out loss of a job with these fields, measured to the end."""
    config = TrainConfig.model_validate({"batch_size": batch_size, **fields})
    return held_out_loss(transformer, dataset, config, lambda: None)


def test_held_out_loss_is_a_constant_of_the_weights(
    transformer: FluxTransformer2DModel, dataset: CachedDataset
) -> None:
    assert loss_of(transformer, dataset, 4) == loss_of(transformer, dataset, 4)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batch_size_does_not_matter(
    transformer: FluxTransformer2DModel, dataset: CachedDataset, batch_size: int
) -> None:
    assert loss_of(transformer, dataset, batch_size) == pytest.approx(loss_of(transformer, dataset, 8))


def test_it_is_the_mean_over_samples_and_levels(transformer: FluxTransformer2DModel, dataset: CachedDataset) -> None:
    with torch.no_grad():
        batches = dataset.held_out_batches(TrainConfig(batch_size=8))
        losses = torch.cat([loss_per_sample(transformer, batch, TrainConfig()) for batch in batches])
    assert len(losses) == 16
    assert loss_of(transformer, dataset, 8) == pytest.approx(float(losses.mean()))


def test_adapter_changes_it_and_measuring_leaves_no_gradient(
    transformer: FluxTransformer2DModel, dataset: CachedDataset
) -> None:
    base, config = loss_of(transformer, dataset, 8), TrainConfig(rank=2)
    with attached(transformer, config):
        assert loss_of(transformer, dataset, 8) == base
        for name, parameter in adapter_parameters(transformer).items():
            if "lora_B" in name:
                parameter.data.fill_(0.05)
        assert loss_of(transformer, dataset, 8) != base
        assert all(parameter.grad is None for parameter in adapter_parameters(transformer).values())


def test_measuring_ends_early_when_it_is_told_to(transformer: FluxTransformer2DModel, dataset: CachedDataset) -> None:
    class Stop(Exception):
        pass

    def before_batch() -> None:
        asked.append(len(asked))
        if len(asked) == 3:
            raise Stop

    asked: list[int] = []
    with pytest.raises(Stop):
        held_out_loss(transformer, dataset, TrainConfig(batch_size=4), before_batch)
    assert asked == [0, 1, 2]


@pytest.mark.parametrize(
    "fields",
    [
        {"loss_weighting": "BELL"},
        {"loss_function": "HUBER", "huber_schedule": "SNR"},
        {"sigma_sampling": "BETA", "sigma_min": 0.5, "sigma_stratified": True},
        {"gradient_accumulation_steps": 3, "caption_dropout": 1.0, "seed": 9},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_a_job_minimises_does_not_change_the_measure(
    transformer: FluxTransformer2DModel, dataset: CachedDataset, fields: dict[str, object]
) -> None:
    assert loss_of(transformer, dataset, 8, **fields) == loss_of(transformer, dataset, 8)


def test_masks_count_where_the_job_counts_them(
    transformer: FluxTransformer2DModel, store: ObjectStore, make_dataset: MakeDataset
) -> None:
    masked, plain = (cached(store, make_dataset([(64, 64)], masked=numbers)) for numbers in ([0], []))
    everywhere = loss_of(transformer, plain, 8)
    assert loss_of(transformer, masked, 8, masked_loss=False) == everywhere
    assert loss_of(transformer, masked, 8) != everywhere
    assert loss_of(transformer, masked, 8, unmasked_weight=1) == pytest.approx(everywhere)


def test_guidance_is_told_as_the_job_tells_it(transformer: FluxTransformer2DModel, dataset: CachedDataset) -> None:
    sampled = {"guidance": "SAMPLED", "guidance_scale": 1, "guidance_scale_max": 4}
    middle = {"guidance": "FIXED", "guidance_scale": 2.5}
    low = {"guidance": "FIXED", "guidance_scale": 1}
    losses = [loss_of(transformer, dataset, 8, **fields) for fields in (sampled, middle, low, {})]
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


def squares_by_hand(store: ObjectStore, dataset: CachedDataset) -> list[Tensor]:
    """(noise - clean)^2 of each sample at each level, from the latents in the store and the fixed noise."""
    found = []
    for index, sample in enumerate(dataset.samples):
        data = store.get(sample.views[0].variants[0].latents.key)
        clean = (safetensors.torch.load(data)[cache.LATENT_MEAN].float() - SHIFT) * SCALE
        for sigma in HELD_OUT_SIGMAS:
            noise = torch.randn(clean.shape, generator=seeded("held-out", index, 0, sigma))
            found.append((noise - clean).double().square())
    return found


def test_yardstick_is_the_mean_square_of_noise_minus_clean(store: ObjectStore, dataset: CachedDataset) -> None:
    by_hand = [float(square.mean()) for square in squares_by_hand(store, dataset)]
    assert len(by_hand) == 16
    zero = zero_loss(dataset, TrainConfig(batch_size=3, loss_weighting="BELL", loss_function="MAE"), lambda: None)
    assert zero == pytest.approx(sum(by_hand) / 16, rel=1e-6)


@pytest.mark.parametrize("unmasked_weight", [0.0, 0.25])
def test_yardstick_counts_what_masks_leave(
    store: ObjectStore, make_dataset: MakeDataset, unmasked_weight: float
) -> None:
    masked = cached(store, make_dataset([(64, 64), (64, 64)], masked=[1]))
    squares = squares_by_hand(store, masked)
    weight = torch.full((8, 8), unmasked_weight)
    weight[:, :4] = 1  # the left half
    whole = [float(square.mean()) for square in squares[:8]]
    half = [float((square.mean(0) * weight).sum() / weight.sum()) for square in squares[8:]]
    config = TrainConfig(batch_size=8, masked_loss=True, unmasked_weight=unmasked_weight)
    assert zero_loss(masked, config, lambda: None) == pytest.approx(sum(whole + half) / 16, rel=1e-6)


def test_yardstick_is_the_loss_of_a_model_that_predicts_nothing(
    transformer: FluxTransformer2DModel, store: ObjectStore, make_dataset: MakeDataset
) -> None:
    masked = cached(store, make_dataset([(64, 64), (48, 80)], masked=[1]))
    silent = copy.deepcopy(transformer)  # all tests share the one that is given
    silent.proj_out.weight.data.zero_()
    silent.proj_out.bias.data.zero_()
    assert loss_of(silent, masked, 8) == zero_loss(masked, TrainConfig(batch_size=8), lambda: None)
