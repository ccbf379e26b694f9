"""The held-out loss: the same weights give the same number, and other weights another."""

from __future__ import annotations

import pytest
import torch
from diffusers import FluxTransformer2DModel

from services.common.object_store import ObjectStore
from services.trainer.adapter import adapter_parameters, attached
from services.trainer.cached_dataset import CachedDataset
from services.trainer.config import TrainConfig
from services.trainer.flow_matching import loss_per_sample
from services.trainer.validation import held_out_loss
from tests.services.trainer.conftest import MakeDataset, cached


@pytest.fixture
def dataset(store: ObjectStore, make_dataset: MakeDataset) -> CachedDataset:
    """Two held-out samples of different size."""
    return cached(store, make_dataset([(64, 64), (48, 80)]))


def loss_of(transformer: FluxTransformer2DModel, dataset: CachedDataset, batch_size: int) -> float:
    """The held-out loss, measured to the end."""
    return held_out_loss(transformer, dataset, batch_size, lambda: None)


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
        losses = torch.cat([loss_per_sample(transformer, batch) for batch in dataset.held_out_batches(8)])
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
        held_out_loss(transformer, dataset, 4, before_batch)
    assert asked == [0, 1, 2]
