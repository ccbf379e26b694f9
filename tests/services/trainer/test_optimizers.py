"""The optimizers: each learns, does the same twice, goes on from its state, and costs what the documentation says."""

from __future__ import annotations

from itertools import repeat

import pytest
import torch
from diffusers import FluxTransformer2DModel
from schedulefree import AdamWScheduleFree
from torch import Tensor, nn

from services.trainer.adapters.adapter import adapter_parameters, attached
from services.trainer.config import TrainConfig
from services.trainer.config.choices import Optimizer
from services.trainer.optimizers import build_optimizer, set_learning_rate, state_apart
from services.trainer.train import Training, train
from tests.services.trainer.conftest import draw, random_batch

LEARNING_RATES = {
    Optimizer.ADAMW: 5e-3,
    Optimizer.ADAMW_8BIT: 5e-3,
    Optimizer.PRODIGY: 4.0,  # from d = 1e-6 it takes a while
    Optimizer.ADAFACTOR: 5e-3,
    Optimizer.LION: 1e-3,
    Optimizer.ADAMW_SCHEDULE_FREE: 5e-3,
}
EACH = pytest.mark.parametrize("optimizer", Optimizer)
WITH_BETAS = [optimizer for optimizer in Optimizer if optimizer is not Optimizer.ADAFACTOR]


def config_of(optimizer: Optimizer, **fields: object) -> TrainConfig:
    """A job with this optimizer, of a rank at which 8-bit AdamW keeps 8 bits."""
    rate = LEARNING_RATES[optimizer]
    return TrainConfig.model_validate(
        {"rank": 32, "alpha": 32.0, "seed": 1, "learning_rate": rate, "optimizer": optimizer, **fields}
    )


def stepped(config: TrainConfig, gradient: float, steps: int = 1, *, name: str = "x.lora_A.weight") -> Tensor:
    """What becomes of a matrix of ones in steps with one and the same gradient."""
    parameter = nn.Parameter(torch.ones(4, 4))
    optimizer = build_optimizer({name: parameter}, config)
    for _ in range(steps):
        parameter.grad = torch.full((4, 4), gradient)
        set_learning_rate(optimizer, 1.0)
        optimizer.step()
    return parameter.detach()


def copies(training: Training) -> dict[str, Tensor]:
    """The parameters as they are now."""
    return {name: parameter.detach().clone() for name, parameter in training.parameters.items()}


@EACH
def test_loss_on_one_batch_falls_and_the_base_stays(transformer: FluxTransformer2DModel, optimizer: Optimizer) -> None:
    before = {name: tensor.clone() for name, tensor in transformer.state_dict().items()}
    losses: list[Tensor] = []
    config = config_of(optimizer)
    with attached(transformer, config):
        train(Training(transformer, config, 15), repeat([random_batch()], 15), lambda step: losses.append(step.loss))
    assert losses[-1] < (0.99 if optimizer is Optimizer.PRODIGY else 0.5) * losses[0]
    assert all(torch.equal(before[name], tensor) for name, tensor in transformer.state_dict().items())


@EACH
def test_run_that_goes_on_from_its_state_is_the_same_to_the_bit(
    transformer: FluxTransformer2DModel, optimizer: Optimizer
) -> None:
    config = config_of(optimizer, warmup_steps=3)
    batches = [[random_batch(name=str(number))] for number in range(4)]
    with attached(transformer, config):
        whole = Training(transformer, config, 4)
        train(whole, batches[:2], lambda _: None)
        state = whole.state()
        train(whole, batches[2:], lambda _: None)
        expected = copies(whole)
    with attached(transformer, config):
        second = Training(transformer, config, 4)
        second.load_state(state)
        train(second, batches[2:], lambda _: None)
        assert all(torch.equal(expected[name], tensor) for name, tensor in copies(second).items())


@EACH
def test_weight_decay_pulls_towards_0(optimizer: Optimizer) -> None:
    plain, decayed = (stepped(config_of(optimizer, weight_decay=decay), 1e-3) for decay in (0.0, 1.0))
    assert (decayed < plain).all()


@pytest.mark.parametrize("optimizer", WITH_BETAS)
def test_betas_are_those_given_or_the_optimizers_own(optimizer: Optimizer) -> None:
    own = (0.9, 0.99) if optimizer is Optimizer.LION else (0.9, 0.999)
    for fields, expected in (({}, own), ({"beta1": 0.5}, (0.5, own[1])), ({"beta1": 0.5, "beta2": 0.6}, (0.5, 0.6))):
        built = build_optimizer({"w": nn.Parameter(torch.ones(2))}, config_of(optimizer, **fields))
        assert built.param_groups[0]["betas"] == expected


@pytest.mark.parametrize("optimizer", [each for each in Optimizer if each is not Optimizer.PRODIGY])
def test_first_step_is_as_large_as_the_learning_rate(optimizer: Optimizer) -> None:
    for rate in (1e-2, 1e-3):
        moved = 1 - stepped(config_of(optimizer, learning_rate=rate, weight_decay=0.0), 0.3)
        torch.testing.assert_close(moved, torch.full((4, 4), rate), rtol=1e-3, atol=0)


def test_matrix_of_zeros_gets_the_whole_learning_rate_from_adafactor(transformer: FluxTransformer2DModel) -> None:
    config = config_of(Optimizer.ADAFACTOR, weight_decay=0.0, max_gradient_norm=1e9)
    with attached(transformer, config):
        train(Training(transformer, config, 1), [[random_batch()]], lambda _: None)
        b_matrices = [p for name, p in adapter_parameters(transformer).items() if name.endswith(".lora_B.weight")]
        spreads = torch.stack([matrix.detach().square().mean().sqrt() for matrix in b_matrices])
    assert (spreads > 0.5 * config.learning_rate).all()
    assert (spreads <= 1.001 * config.learning_rate).all()


@pytest.mark.parametrize("optimizer", [each for each in Optimizer if each is not Optimizer.PRODIGY])
def test_lora_plus_moves_b_matrices_further(optimizer: Optimizer) -> None:
    config = config_of(optimizer, learning_rate=1e-3, lora_plus_ratio=16.0, weight_decay=0.0)
    moved_a, moved_b = (1 - stepped(config, 0.3, name=f"x.lora_{matrix}.weight") for matrix in "AB")
    torch.testing.assert_close(moved_b, 16 * moved_a, rtol=1e-3, atol=0)


def test_lora_plus_reports_the_learning_rate_of_a_and_scales_both() -> None:
    config = config_of(Optimizer.ADAMW, lora_plus_ratio=4.0)
    parameters = {f"x.lora_{matrix}.weight": nn.Parameter(torch.ones(2)) for matrix in "BA"}
    optimizer = build_optimizer(parameters, config)
    assert set_learning_rate(optimizer, 0.5) == 0.5 * config.learning_rate
    assert [group["lr"] for group in optimizer.param_groups] == [0.5 * config.learning_rate, 2 * config.learning_rate]


def test_groups_keep_the_order_of_the_parameters() -> None:
    parameters = {f"{place}.lora_{matrix}.weight": nn.Parameter(torch.ones(2)) for place in "zay" for matrix in "AB"}
    for ratio, expected in (
        (1.0, [["zA", "zB", "aA", "aB", "yA", "yB"]]),
        (2.0, [["zA", "aA", "yA"], ["zB", "aB", "yB"]]),
    ):
        optimizer = build_optimizer(parameters, config_of(Optimizer.ADAMW, lora_plus_ratio=ratio))
        names = {id(parameter): name[0] + name[7] for name, parameter in parameters.items()}
        assert [[names[id(each)] for each in group["params"]] for group in optimizer.param_groups] == expected


def state_bytes(config: TrainConfig, shape: tuple[int, ...], value: float = 1.0) -> float:
    """Bytes of optimizer state for each number of a matrix, after a step; tables that all matrices share left out."""
    parameter = nn.Parameter(torch.full(shape, value))
    optimizer = build_optimizer({"w": parameter}, config)
    parameter.grad = draw("gradient", *shape)
    optimizer.step()
    state = [tensor for name, tensor in optimizer.state[parameter].items() if not name.startswith("qmap")]
    own = [tensor for tensor in state if isinstance(tensor, Tensor) and tensor.dim()]
    return sum(tensor.numel() * tensor.element_size() for tensor in own) / parameter.numel()


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (Optimizer.ADAMW, 8),
        (Optimizer.ADAMW_8BIT, 2 + 8 / 256),
        (Optimizer.PRODIGY, 16),
        (Optimizer.ADAFACTOR, 4 / 16 + 4 / 3072),
        (Optimizer.LION, 4),
        (Optimizer.ADAMW_SCHEDULE_FREE, 8),
    ],
)
def test_state_is_as_large_as_documented(optimizer: Optimizer, expected: float) -> None:
    assert state_bytes(config_of(optimizer), (16, 3072)) == pytest.approx(expected)


def test_small_matrices_keep_32_bits_and_prodigy_keeps_no_copy_of_zeros() -> None:
    assert state_bytes(config_of(Optimizer.ADAMW_8BIT), (4, 1023)) == 8
    assert state_bytes(config_of(Optimizer.PRODIGY), (16, 3072), value=0.0) == 12


def test_prodigy_raises_its_rate_and_reports_it() -> None:
    parameter = nn.Parameter(torch.ones(4))
    optimizer = build_optimizer({"w": parameter}, config_of(Optimizer.PRODIGY, learning_rate=2.0, weight_decay=0.0))
    rates, moved = [], []
    for _ in range(30):
        before = parameter.detach().clone()
        parameter.grad = torch.ones(4)
        rates.append(set_learning_rate(optimizer, 1.0))
        optimizer.step()
        moved.append(float((before - parameter.detach()).mean()))
    assert rates[0] == pytest.approx(2e-6)
    assert rates == sorted(rates)
    assert rates[-1] > 10 * rates[0]
    assert moved[-1] == pytest.approx(rates[-1], rel=0.5)


def test_prodigy_says_nothing_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    build_optimizer({"w": nn.Parameter(torch.ones(4))}, config_of(Optimizer.PRODIGY, weight_decay=0.1))
    assert capsys.readouterr().out == ""


def test_warm_up_from_outside_is_that_of_schedule_free_itself() -> None:
    def run(optimizer: AdamWScheduleFree, parameter: nn.Parameter, warmup_steps: int) -> Tensor:
        for step in range(6):
            parameter.grad = draw(str(step), 4)
            set_learning_rate(optimizer, min(1.0, (step + 1) / (warmup_steps + 1)))
            optimizer.step()
        optimizer.eval()
        return parameter.detach()

    ours, theirs = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    config = config_of(Optimizer.ADAMW_SCHEDULE_FREE)
    built = build_optimizer({"w": ours}, config)
    assert isinstance(built, AdamWScheduleFree)
    group = {"params": [theirs], "initial_lr": config.learning_rate}
    own = AdamWScheduleFree([group], lr=config.learning_rate, weight_decay=config.weight_decay, warmup_steps=4)
    own.train()
    torch.testing.assert_close(run(built, ours, 3), run(own, theirs, 0))


@EACH
def test_state_that_was_handed_out_is_apart_from_the_optimizer(
    transformer: FluxTransformer2DModel, optimizer: Optimizer
) -> None:
    config = config_of(optimizer)
    with attached(transformer, config):
        training = Training(transformer, config, 3)
        training.step([random_batch()])
        state = training.state()
        before = state_apart(state.optimizer)
        training.step([random_batch(name="second")])
        training.load_state(state)
        training.step([random_batch(name="third")])
    assert torch.equal(*(torch.cat(numbers_of(each)) for each in (before, state.optimizer)))


def numbers_of(value: object) -> list[Tensor]:
    """All numbers of a nested state in order."""
    if isinstance(value, dict):
        return [number for each in value.values() for number in numbers_of(each)]
    if isinstance(value, (list, tuple)):
        return [number for each in value for number in numbers_of(each)]
    if isinstance(value, (int, float, Tensor)):
        return [torch.as_tensor(value, dtype=torch.float64).reshape(-1)]
    return []
