"""The average of an adapter over its training: its formula, and what it leaves behind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from services.trainer.averaging import Average, kept
from tests.services.trainer.conftest import draw

DECAY = 0.9


class Stop(Exception):
    """What goes wrong while the average is in place."""


def averaged(weights: list[Tensor], decay: float) -> tuple[nn.Parameter, Average]:
    """A parameter that had these values, and its average from the second on."""
    parameter = nn.Parameter(weights[0].clone())
    average = Average({"w": parameter}, decay)
    for value in weights[1:]:
        parameter.data.copy_(value)
        average.update()
    return parameter, average


def seen(parameter: nn.Parameter, average: Average) -> Tensor:
    """The average, as whoever measures it sees it."""
    with average.swapped_in():
        return parameter.detach().clone()


@pytest.mark.parametrize("steps", [1, 2, 30])
def test_average_is_the_weighted_mean_of_the_weights_after_each_step(steps: int) -> None:
    weights = [draw(str(number), 3, 4) for number in range(steps + 1)]
    shares = torch.tensor([DECAY ** (steps - number) for number in range(1, steps + 1)])
    expected = torch.einsum("n,nij->ij", shares / shares.sum(), torch.stack(weights[1:]))
    torch.testing.assert_close(seen(*averaged(weights, DECAY)), expected)


def test_weights_that_stay_are_their_own_average() -> None:
    parameter, average = averaged([torch.zeros(3)] + [torch.full((3,), 0.25)] * 50, 0.999)
    assert torch.equal(seen(parameter, average), torch.full((3,), 0.25))


def test_before_the_first_update_the_average_is_the_initial_weights() -> None:
    parameter, average = averaged([draw("w", 3)], DECAY)
    assert torch.equal(seen(parameter, average), draw("w", 3))


def test_parameters_come_back_to_the_bit_also_after_a_failure() -> None:
    parameter, average = averaged([draw(str(number), 100) for number in range(4)], DECAY)
    assert not torch.equal(seen(parameter, average), draw("3", 100))
    with pytest.raises(Stop), average.swapped_in():
        raise Stop
    assert torch.equal(parameter, draw("3", 100))


def test_average_is_float32_of_parameters_in_bf16() -> None:
    average = Average({"w": nn.Parameter(torch.ones(2, dtype=torch.bfloat16))}, DECAY)
    average.update()
    assert average.state_dict()["weights"]["w"].dtype == torch.float32


def test_loaded_average_goes_on_to_the_bit() -> None:
    weights = [draw(str(number), 5) for number in range(6)]
    whole = averaged(weights, DECAY)
    _, first = averaged(weights[:4], DECAY)
    parameter, second = averaged(weights[3:4], DECAY)
    second.load_state_dict(first.state_dict())
    for value in weights[4:]:
        parameter.data.copy_(value)
        second.update()
    assert torch.equal(seen(parameter, second), seen(*whole))


def test_state_of_other_parameters_is_refused() -> None:
    _, average = averaged([draw("w", 3)], DECAY)
    with pytest.raises(KeyError, match="w"):
        average.load_state_dict({"updates": 1, "weights": {"other": draw("w", 3)}})


def test_kept_parameters_are_the_same_objects() -> None:
    parameter = nn.Parameter(draw("w", 3))
    memory = parameter.data_ptr()
    with kept([parameter]):
        parameter.data.add_(1)
    assert torch.equal(parameter, draw("w", 3))
    assert parameter.data_ptr() == memory
