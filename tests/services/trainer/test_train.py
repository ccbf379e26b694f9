"""The loop: it learns, does the same thing twice, and ends when it is told to."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from services.trainer.adapter import adapter_parameters, attached
from services.trainer.config import TrainConfig
from services.trainer.flow_matching import Batch, loss_per_sample
from services.trainer.train import Step, train
from tests.services.trainer.conftest import random_batch

CONFIG = TrainConfig(rank=4, alpha=4.0, learning_rate=5e-3, seed=1)


class Stop(Exception):
    """What a caller raises to end the loop."""


def steps_of(transformer: FluxTransformer2DModel, config: TrainConfig, batches: Iterator[Batch]) -> list[Step]:
    """Train a fresh adapter; return every step."""
    steps: list[Step] = []
    with attached(transformer, config):
        train(transformer, batches, config, steps.append)
    return steps


def parameters_after(transformer: FluxTransformer2DModel, config: TrainConfig, batches: int = 2) -> dict[str, Tensor]:
    """Train a fresh adapter on different batches; return what became of it."""
    with attached(transformer, config):
        train(transformer, (random_batch(name=str(n)) for n in range(batches)), config, lambda _: None)
        return {name: parameter.detach().clone() for name, parameter in adapter_parameters(transformer).items()}


def test_loss_on_one_batch_falls(transformer: FluxTransformer2DModel) -> None:
    losses = [float(step.loss) for step in steps_of(transformer, CONFIG, repeat(random_batch(), 20))]
    assert losses[-1] < 0.8 * losses[0]


def test_first_loss_is_that_of_the_base(transformer: FluxTransformer2DModel) -> None:
    with torch.no_grad():
        base = loss_per_sample(transformer, random_batch()).mean()
    (step,) = steps_of(transformer, CONFIG, repeat(random_batch(), 1))
    torch.testing.assert_close(step.loss, base)
    assert not step.loss.requires_grad


def test_same_seed_gives_the_same_bits(transformer: FluxTransformer2DModel) -> None:
    first, again = parameters_after(transformer, CONFIG), parameters_after(transformer, CONFIG)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_every_adapter_matrix_is_trained(transformer: FluxTransformer2DModel) -> None:
    before, after = parameters_after(transformer, CONFIG, 0), parameters_after(transformer, CONFIG, 2)
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_a_step_is_adamw_with_slight_decay_on_the_mean_loss(transformer: FluxTransformer2DModel) -> None:
    ours = parameters_after(transformer, CONFIG.model_copy(update={"max_gradient_norm": 1e9}))
    with attached(transformer, CONFIG):
        adapter = adapter_parameters(transformer)
        optimizer = torch.optim.AdamW(adapter.values(), lr=CONFIG.learning_rate, weight_decay=1e-4)
        for number in range(2):
            optimizer.zero_grad()
            loss_per_sample(transformer, random_batch(name=str(number))).mean().backward()
            optimizer.step()
        assert all(torch.equal(ours[name], parameter) for name, parameter in adapter.items())


def test_each_step_has_a_gradient_of_its_own(transformer: FluxTransformer2DModel) -> None:
    still = CONFIG.model_copy(update={"learning_rate": 1e-12, "max_gradient_norm": 1e9})
    first, *others = (float(step.gradient_norm) for step in steps_of(transformer, still, repeat(random_batch(), 3)))
    assert others == pytest.approx([first, first], rel=1e-3)


def test_recomputing_activations_changes_nothing(transformer: FluxTransformer2DModel) -> None:
    plain = parameters_after(transformer, CONFIG)
    transformer.enable_gradient_checkpointing()
    try:
        recomputed = parameters_after(transformer, CONFIG)
    finally:
        transformer.disable_gradient_checkpointing()
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


def test_steps_are_numbered_from_one_and_there_is_one_for_each_batch(transformer: FluxTransformer2DModel) -> None:
    assert [step.number for step in steps_of(transformer, CONFIG, repeat(random_batch(), 3))] == [1, 2, 3]


def test_what_on_step_raises_ends_the_loop(transformer: FluxTransformer2DModel) -> None:
    taken = []

    def batches() -> Iterator[Batch]:
        for number in range(5):
            taken.append(number)
            yield random_batch()

    def on_step(step: Step) -> None:
        if step.number == 2:
            raise Stop

    with attached(transformer, CONFIG), pytest.raises(Stop):
        train(transformer, batches(), CONFIG, on_step)
    assert taken == [0, 1]


def gradients_at_step(transformer: FluxTransformer2DModel, config: TrainConfig) -> tuple[float, float]:
    """Norm of the gradient that the first step reports, and of the one that it applies."""
    applied: list[float] = []

    def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
        gradients = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
        applied.append(float(torch.nn.utils.get_total_norm(gradients)))

    handle = register_optimizer_step_pre_hook(note)
    try:
        (step,) = steps_of(transformer, config, repeat(random_batch(), 1))
    finally:
        handle.remove()
    return float(step.gradient_norm), applied[0]


def test_large_gradients_are_scaled_down_and_reported_as_they_were(transformer: FluxTransformer2DModel) -> None:
    norm, applied = gradients_at_step(transformer, CONFIG.model_copy(update={"max_gradient_norm": 1e6}))
    assert applied == pytest.approx(norm, rel=1e-4)
    clipped = gradients_at_step(transformer, CONFIG.model_copy(update={"max_gradient_norm": norm / 10}))
    assert clipped == pytest.approx((norm, norm / 10), rel=1e-3)


@pytest.mark.parametrize(
    ("warmup_steps", "expected"), [(0, [1, 1, 1, 1, 1]), (1, [1 / 2, 1, 1, 1, 1]), (3, [1 / 4, 2 / 4, 3 / 4, 1, 1])]
)
def test_learning_rate_rises_over_the_warm_up(
    transformer: FluxTransformer2DModel, warmup_steps: int, expected: list[float]
) -> None:
    config = CONFIG.model_copy(update={"warmup_steps": warmup_steps})
    rates = [step.learning_rate for step in steps_of(transformer, config, repeat(random_batch(1), 5))]
    assert rates == pytest.approx([share * CONFIG.learning_rate for share in expected])


def test_bf16_base_trains_a_float32_adapter(transformer_bf16: FluxTransformer2DModel) -> None:
    losses: list[Tensor] = []
    with attached(transformer_bf16, CONFIG):
        train(transformer_bf16, repeat(random_batch(), 12), CONFIG, lambda step: losses.append(step.loss))
        adapter = adapter_parameters(transformer_bf16).values()
        assert {parameter.dtype for parameter in adapter} == {torch.float32}
        assert all(parameter.isfinite().all() for parameter in adapter)
    assert torch.stack(losses).isfinite().all()
    assert losses[-1] < losses[0]
