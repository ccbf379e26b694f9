"""One smoothing for all that shows losses: a centered mean, the same in the client and in the services."""

from __future__ import annotations

import numpy as np
import pytest
from fluxsmith import _smoothing as client

from services.trainer.results import smoothing as services

RUNS = [(seed, count) for seed in range(4) for count in (0, 1, 2, 49, 50, 99, 100, 999, 5000)]


@pytest.mark.parametrize(("seed", "count"), RUNS)
def test_client_and_services_smooth_alike(seed: int, count: int) -> None:
    draw = np.random.default_rng(seed)
    losses = draw.lognormal(0.0, 0.5 + seed, count)
    width = services.mean_width(count)
    assert client.mean_width(count) == width
    cut = services.without_spikes(losses)
    assert client.without_spikes(losses.tolist()) == cut.tolist()
    assert client.centered_means(cut.tolist(), width) == pytest.approx(services.centered_means(cut, width).tolist())


@pytest.mark.parametrize("count", [50, 250, 1000, 4321])
def test_mean_is_that_of_as_many_steps_before_as_after(count: int) -> None:
    losses = np.random.default_rng(0).normal(2.0, 0.5, count)
    width = services.mean_width(count)
    means = services.centered_means(losses, width)
    assert width % 2 == 1
    assert len(means) == count - width + 1
    for at in (0, len(means) // 2, len(means) - 1):
        middle = at + width // 2
        assert means[at] == pytest.approx(losses[middle - width // 2 : middle + width // 2 + 1].mean())


@pytest.mark.parametrize("shape", ["line", "decay"])
def test_mean_of_a_falling_loss_does_not_lag(shape: str) -> None:
    steps = np.arange(1, 1001)
    losses: services.Floats = np.asarray(4.0 - 0.003 * steps if shape == "line" else 1.0 + 3.0 * np.exp(-steps / 300))
    width = services.mean_width(len(losses))
    shown, true = services.centered_means(losses, width), losses[width // 2 : len(losses) - width // 2]
    assert np.abs(shown - true).max() < 0.003
    lagging = np.array([np.average(losses[:at], weights=0.95 ** np.arange(at)[::-1]) for at in steps])
    assert (lagging[100:] - losses[100:]).max() > 0.03


def test_a_spike_is_cut_and_a_high_but_usual_loss_is_not() -> None:
    losses = np.linspace(2.0, 1.0, 400)
    assert services.without_spikes(losses).tolist() == losses.tolist()
    losses[200] = 1e6
    assert services.without_spikes(losses).max() == pytest.approx(2.0, abs=0.01)


def test_number_of_a_running_job_says_of_how_many_steps_it_is() -> None:
    assert client.recent_loss_text([]) == ""
    assert client.recent_loss_text([2.0]) == "loss 2.0000 (last step)"
    assert client.recent_loss_text([9.0, 2.0, 4.0]) == "loss 5.0000 (mean of last 3)"
    assert client.recent_loss_text([99.0, *[2.0] * 20]) == "loss 2.0000 (mean of last 20)"
