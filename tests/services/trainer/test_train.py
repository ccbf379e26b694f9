"""The loop: it learns, does the same thing twice, survives bad numbers, and ends when it is told to."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from services.trainer.adapters.adapter import attached
from services.trainer.config import TrainConfig
from services.trainer.config.choices import Optimizer
from services.trainer.flow_matching import Batch, loss_per_sample
from services.trainer.train import NonFiniteLoss, Step, Training, train
from tests.services.trainer.conftest import random_batch

CONFIG = TrainConfig(rank=4, alpha=4.0, learning_rate=5e-3, seed=1)
BAD = random_batch(name="bad")
BAD.clean_BCHW[0, 0, 0, 0] = torch.inf
Batches = list[list[Batch]]


class Stop(Exception):
    """What a caller raises to end the loop."""


def like(config: TrainConfig, **fields: object) -> TrainConfig:
    """Another configuration that differs in these fields."""
    return TrainConfig.model_validate(config.model_dump() | fields)


def different(count: int) -> Batches:
    """Steps of one batch each."""
    return [[random_batch(name=str(number))] for number in range(count)]


def steps_of(transformer: FluxTransformer2DModel, config: TrainConfig, batches: Batches) -> list[Step]:
    """Train a fresh adapter; return every step."""
    steps: list[Step] = []
    with attached(transformer, config):
        train(Training(transformer, config, len(batches)), batches, steps.append)
    return steps


def copies(training: Training) -> dict[str, Tensor]:
    """The parameters as they are now."""
    return {name: parameter.detach().clone() for name, parameter in training.parameters.items()}


def parameters_after(
    transformer: FluxTransformer2DModel, config: TrainConfig, batches: Batches | None = None
) -> dict[str, Tensor]:
    """Train a fresh adapter; return what became of it."""
    with attached(transformer, config):
        training = Training(transformer, config, 10)
        train(training, different(2) if batches is None else batches, lambda _: None)
        return copies(training)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether all tensors are equal to the bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_loss_on_one_batch_falls(transformer: FluxTransformer2DModel) -> None:
    losses = [float(step.loss) for step in steps_of(transformer, CONFIG, [[random_batch()]] * 20)]
    assert losses[-1] < 0.8 * losses[0]


def test_first_loss_is_that_of_the_base(transformer: FluxTransformer2DModel) -> None:
    with torch.no_grad():
        base = loss_per_sample(transformer, random_batch(), CONFIG).mean()
    (step,) = steps_of(transformer, CONFIG, [[random_batch()]])
    torch.testing.assert_close(step.loss, base)
    assert not step.loss.requires_grad


def test_same_seed_gives_the_same_bits(transformer: FluxTransformer2DModel) -> None:
    assert same(parameters_after(transformer, CONFIG), parameters_after(transformer, CONFIG))


def test_every_adapter_matrix_is_trained(transformer: FluxTransformer2DModel) -> None:
    before, after = parameters_after(transformer, CONFIG, []), parameters_after(transformer, CONFIG)
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_a_step_is_adamw_with_slight_decay_on_the_mean_loss(transformer: FluxTransformer2DModel) -> None:
    ours = parameters_after(transformer, like(CONFIG, max_gradient_norm=1e9))
    with attached(transformer, CONFIG):
        training = Training(transformer, CONFIG, 2)
        optimizer = torch.optim.AdamW(training.parameters.values(), lr=CONFIG.learning_rate, weight_decay=1e-4)
        for number in range(2):
            optimizer.zero_grad()
            loss_per_sample(transformer, random_batch(name=str(number)), CONFIG).mean().backward()
            optimizer.step()
        assert same(ours, copies(training))


def split(batch: Batch, at: int) -> list[Batch]:
    """A batch as two."""
    tensors = {name: tensor for name, tensor in vars(batch).items() if tensor is not None}
    return [Batch(**{name: t[part] for name, t in tensors.items()}) for part in (slice(None, at), slice(at, None))]


def gradients_of(transformer: FluxTransformer2DModel, config: TrainConfig, batches: list[Batch]) -> dict[str, Tensor]:
    """The gradient that the optimizer is given in the second step, when B is no longer 0."""
    applied: dict[str, Tensor] = {}
    with attached(transformer, config):
        training = Training(transformer, config, 2)
        training.step([random_batch(name="first")])

        def note(*_: object) -> None:
            applied.update(
                {name: each.grad.clone() for name, each in training.parameters.items() if each.grad is not None}
            )

        handle = register_optimizer_step_pre_hook(note)
        try:
            training.step(batches)
        finally:
            handle.remove()
        assert applied.keys() == training.parameters.keys()
    return applied


@pytest.mark.parametrize("at", [1, 2])
def test_accumulated_batches_train_as_one_of_all_their_samples(transformer: FluxTransformer2DModel, at: int) -> None:
    whole = random_batch(4)
    ours, expected = (gradients_of(transformer, CONFIG, batches) for batches in (split(whole, at), [whole]))
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-6)


def test_loss_of_accumulated_batches_is_the_mean_over_all_samples(transformer: FluxTransformer2DModel) -> None:
    (ours,), (expected,) = (
        steps_of(transformer, CONFIG, [each]) for each in (split(random_batch(4), 1), [random_batch(4)])
    )
    torch.testing.assert_close(ours.loss, expected.loss)
    torch.testing.assert_close(ours.gradient_norm, expected.gradient_norm)


def test_each_step_has_a_gradient_of_its_own(transformer: FluxTransformer2DModel) -> None:
    still = like(CONFIG, learning_rate=1e-12, max_gradient_norm=1e9)
    first, *others = (float(step.gradient_norm) for step in steps_of(transformer, still, [[random_batch()]] * 3))
    assert others == pytest.approx([first, first], rel=1e-3)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_recomputing_activations_changes_nothing(transformer: FluxTransformer2DModel, dropout: float) -> None:
    config = like(CONFIG, adapter_dropout=dropout)
    plain = gradients_of(transformer, config, [random_batch()])
    transformer.enable_gradient_checkpointing()
    try:
        recomputed = gradients_of(transformer, config, [random_batch()])
    finally:
        transformer.disable_gradient_checkpointing()
    assert same(plain, recomputed)


def test_dropout_depends_on_seed_and_step_only(transformer: FluxTransformer2DModel) -> None:
    config = like(CONFIG, adapter_dropout=0.5)
    with attached(transformer, config):
        training = Training(transformer, like(config, learning_rate=1e-12), 9)
        for parameter in training.parameters.values():
            parameter.data.fill_(0.01)
        first, second = (float(training.step([random_batch()]).loss) for _ in range(2))
        torch.rand(3)
        training.steps_done = 0
        assert float(training.step([random_batch()]).loss) == first != second
        other_seed = Training(transformer, like(config, seed=2), 9)
        assert float(other_seed.step([random_batch()]).loss) not in {first, second}


def test_random_numbers_of_others_are_left_alone(transformer: FluxTransformer2DModel) -> None:
    config = like(CONFIG, adapter_dropout=0.5)
    with attached(transformer, config):
        training = Training(transformer, config, 1)
        before = torch.random.get_rng_state()
        training.step([random_batch()])
        assert torch.equal(torch.random.get_rng_state(), before)


def test_steps_are_numbered_from_one_and_there_is_one_for_each_sequence(transformer: FluxTransformer2DModel) -> None:
    batches = [[random_batch(1)] * 2] * 3
    assert [step.number for step in steps_of(transformer, CONFIG, batches)] == [1, 2, 3]


def test_what_on_step_raises_ends_the_loop(transformer: FluxTransformer2DModel) -> None:
    taken = []

    def batches() -> Iterator[list[Batch]]:
        for number in range(5):
            taken.append(number)
            yield [random_batch(1)]

    def on_step(step: Step) -> None:
        if step.number == 2:
            raise Stop

    with attached(transformer, CONFIG), pytest.raises(Stop):
        train(Training(transformer, CONFIG, 5), batches(), on_step)
    assert taken == [0, 1]


def test_large_gradients_are_scaled_down_and_reported_as_they_were(transformer: FluxTransformer2DModel) -> None:
    norms = []
    for limit in (1e6, 0.01):
        config = like(CONFIG, max_gradient_norm=limit, learning_rate=1e-12)
        applied = gradients_of(transformer, config, [random_batch()])
        (_, step) = steps_of(transformer, config, [[random_batch(name="first")], [random_batch()]])
        norms.append((float(step.gradient_norm), float(torch.nn.utils.get_total_norm(applied.values()))))
    (reported, whole), (reported_again, clipped) = norms
    assert (reported_again, whole) == pytest.approx((reported, reported), rel=1e-3)
    assert clipped == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"warmup_steps": 1}, [1 / 2, 1, 1, 1]),
        ({"learning_rate_schedule": "LINEAR"}, [1, 3 / 4, 2 / 4, 1 / 4]),
    ],
)
def test_learning_rate_follows_the_schedule(
    transformer: FluxTransformer2DModel, fields: dict[str, object], expected: list[float]
) -> None:
    rates = [step.learning_rate for step in steps_of(transformer, like(CONFIG, **fields), [[random_batch(1)]] * 4)]
    assert rates == pytest.approx([share * CONFIG.learning_rate for share in expected])


@pytest.mark.parametrize("optimizer", Optimizer)
def test_step_that_is_not_finite_changes_nothing(transformer: FluxTransformer2DModel, optimizer: Optimizer) -> None:
    average = 0.0 if optimizer is Optimizer.ADAMW_SCHEDULE_FREE else 0.9
    config = like(CONFIG, optimizer=optimizer, ema_decay=average)
    good = different(2)
    with attached(transformer, config):
        training = Training(transformer, config, 3)
        steps: list[Step] = []
        train(training, [good[0], [random_batch(), BAD], good[1]], steps.append)
        ours = copies(training)
        with training.evaluating():
            ours_averaged = copies(training)
    assert [step.skipped for step in steps] == [False, True, False]
    assert not steps[1].loss.isfinite()
    with attached(transformer, config):
        training = Training(transformer, config, 3)
        train(training, good, lambda _: None)
        assert same(ours, copies(training))
        with training.evaluating():
            assert same(ours_averaged, copies(training))


def test_gradient_alone_that_is_not_finite_is_skipped_too(transformer: FluxTransformer2DModel) -> None:
    with attached(transformer, CONFIG):
        training = Training(transformer, CONFIG, 1)
        before = copies(training)
        next(iter(training.parameters.values())).register_hook(lambda gradient: gradient * torch.nan)
        step = training.step([random_batch()])
        assert step.loss.isfinite()
        assert step.skipped
        assert same(before, copies(training))


def test_schedule_goes_on_over_skipped_steps(transformer: FluxTransformer2DModel) -> None:
    config = like(CONFIG, warmup_steps=3)
    steps = steps_of(transformer, config, [[BAD], [BAD], [random_batch()]])
    assert [step.number for step in steps] == [1, 2, 3]
    assert steps[-1].learning_rate == pytest.approx(3 / 4 * CONFIG.learning_rate)


def test_loss_that_is_not_finite_is_enough_to_skip_a_step(transformer: FluxTransformer2DModel) -> None:
    config = like(CONFIG, loss_function="MAE")
    plain = random_batch()
    # At noise level 1 the model sees none of it, and the slope of MAE is 1 however large the error.
    huge = Batch(**vars(plain) | {"clean_BCHW": torch.full_like(plain.clean_BCHW, 3e38), "sigma_B": torch.ones(2)})
    with attached(transformer, config):
        training = Training(transformer, config, 2)
        before = copies(training)
        step = training.step([huge])
        assert step.skipped
        assert not step.loss.isfinite()
        assert step.gradient_norm.isfinite()
        assert same(before, copies(training))


def test_too_many_skipped_steps_in_a_row_end_the_run(transformer: FluxTransformer2DModel) -> None:
    config = like(CONFIG, max_skipped_steps=2)
    good, bad = [random_batch(1)], [BAD]
    with attached(transformer, config):
        training = Training(transformer, config, 10)
        train(training, [bad, bad, good, bad, bad], lambda _: None)
        assert training.skipped_in_a_row == 2
        with pytest.raises(NonFiniteLoss, match=r"loss (nan|inf) and gradient norm nan at step 6, .*: 3"):
            training.step(bad)


def test_bf16_base_trains_a_float32_adapter(transformer_bf16: FluxTransformer2DModel) -> None:
    losses: list[Tensor] = []
    with attached(transformer_bf16, CONFIG):
        training = Training(transformer_bf16, CONFIG, 12)
        train(training, repeat([random_batch()], 12), lambda step: losses.append(step.loss))
        assert {parameter.dtype for parameter in training.parameters.values()} == {torch.float32}
        assert all(parameter.isfinite().all() for parameter in training.parameters.values())
    assert torch.stack(losses).isfinite().all()
    assert losses[-1] < losses[0]
