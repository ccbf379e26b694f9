"""Noise levels: every distribution is that of its formula, between its ends, and spread over a step when asked to."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.training_utils import compute_density_for_timestep_sampling
from numpy.typing import NDArray
from scipy import stats

from services.trainer.config import TrainConfig
from services.trainer.config.choices import SigmaSampling
from services.trainer.sigmas import draw_even, lowest_sigma, resolution_mu, shift, sigma_at, strata

TOKENS = [16, 256, 1024, 4096, 5000]
DRAWN, DIRECT = 2500, 100_000
ALMOST_CERTAIN = 1e-3  # a right formula fails once in a thousand seeds, and the seeds are fixed
Numbers = NDArray[np.float64]
FACTOR_AT_1024 = math.exp(0.5 + 0.65 * (1024 - 256) / 3840)


def config_of(sampling: SigmaSampling, **fields: float) -> TrainConfig:
    """A configuration that differs from the default in how it draws; its floor is next to nothing."""
    return TrainConfig.model_validate({"timesteps": 100_000, "sigma_sampling": sampling, **fields})


def drawn(config: TrainConfig, *, tokens: int = 1024, count: int = DRAWN, seed: int = 0) -> Numbers:
    """Levels at even numbers of numpy's own."""
    return np.array([sigma_at(config, u, tokens) for u in np.random.default_rng(seed).random(count)])


def uniform(draw: np.random.Generator) -> Numbers:
    """Even numbers."""
    return draw.random(DIRECT)


def logit_normal(draw: np.random.Generator, mean: float = 0.0, std: float = 1.0) -> Numbers:
    """Sigmoid of normal numbers."""
    return 1 / (1 + np.exp(-draw.normal(mean, std, DIRECT)))


def shifted(sigmas: Numbers, factor: float) -> Numbers:
    """The shift as the reference code of FLUX.1 writes it."""
    return np.asarray(factor / (factor + 1 / sigmas - 1))


def mode(u: Numbers, scale: float) -> Numbers:
    """Formula (20) of the paper."""
    return np.asarray(1 - u - scale * (np.cos(np.pi / 2 * u) ** 2 - 1 + u))


# Each sampling, its fields, and a large sample by the formula as the books have it, whichever way u runs there.
FORMULAS: list[tuple[SigmaSampling, dict[str, float], Callable[[np.random.Generator], Numbers]]] = [
    (SigmaSampling.UNIFORM, {}, uniform),
    (SigmaSampling.LOGIT_NORMAL, {}, logit_normal),
    (SigmaSampling.LOGIT_NORMAL, {"sigma_mean": -0.7, "sigma_std": 1.6}, lambda d: logit_normal(d, -0.7, 1.6)),
    (SigmaSampling.RESOLUTION_SHIFT, {}, lambda d: shifted(logit_normal(d), FACTOR_AT_1024)),
    (SigmaSampling.RESOLUTION_SHIFT, {"sigma_std": 0.5}, lambda d: shifted(logit_normal(d, 0, 0.5), FACTOR_AT_1024)),
    (SigmaSampling.STATIC_SHIFT, {"sigma_shift": 3.0}, lambda d: shifted(logit_normal(d), 3.0)),
    (SigmaSampling.STATIC_SHIFT, {"sigma_shift": 0.4, "sigma_mean": 1.0}, lambda d: shifted(logit_normal(d, 1), 0.4)),
    (SigmaSampling.MODE, {}, lambda d: mode(uniform(d), 1.29)),
    (SigmaSampling.MODE, {"sigma_mode_scale": -1.0}, lambda d: mode(uniform(d), -1.0)),
    (SigmaSampling.MODE, {"sigma_mode_scale": 1.75}, lambda d: mode(uniform(d), 1.75)),
    (SigmaSampling.COSMAP, {}, lambda d: 1 - 1 / (np.tan(np.pi / 2 * uniform(d)) + 1)),
    (SigmaSampling.CUBIC_CONTENT, {}, lambda d: 1 - uniform(d) ** 3),
    (SigmaSampling.CUBIC_STYLE, {}, lambda d: uniform(d) ** 3),
    (SigmaSampling.BETA, {}, lambda d: d.beta(2, 2, DIRECT)),
    (SigmaSampling.BETA, {"sigma_beta_a": 3, "sigma_beta_b": 0.7}, lambda d: d.beta(3, 0.7, DIRECT)),
]
NAMES = [f"{sampling}{fields or ''}" for sampling, fields, _ in FORMULAS]


def test_every_sampling_is_checked() -> None:
    assert {sampling for sampling, _, _ in FORMULAS} == set(SigmaSampling)


@pytest.mark.parametrize(("sampling", "fields", "formula"), FORMULAS, ids=NAMES)
def test_levels_are_distributed_as_their_formula_says(
    sampling: SigmaSampling, fields: dict[str, float], formula: Callable[[np.random.Generator], Numbers]
) -> None:
    config = config_of(sampling, **fields)
    direct = formula(np.random.default_rng(1))
    possible = direct[direct >= 1e-5]  # what is below the floor is cut off
    assert stats.kstest(drawn(config), possible).pvalue > ALMOST_CERTAIN


@pytest.mark.parametrize(("sampling", "fields", "formula"), FORMULAS, ids=NAMES)
def test_cut_off_distribution_keeps_its_shape_between_the_ends(
    sampling: SigmaSampling, fields: dict[str, float], formula: Callable[[np.random.Generator], Numbers]
) -> None:
    config = config_of(sampling, **fields, sigma_min=0.15, sigma_max=0.8)
    direct = formula(np.random.default_rng(2))
    levels = drawn(config, count=1000)
    assert 0.15 <= levels.min() < levels.max() <= 0.8
    assert stats.kstest(levels, direct[(direct >= 0.15) & (direct <= 0.8)]).pvalue > ALMOST_CERTAIN


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.81, 1.29])
def test_mode_is_that_of_diffusers(scale: float) -> None:
    """diffusers' numbers are places in its timesteps, which begin at noise, so turned round. This one is symmetric."""
    theirs = compute_density_for_timestep_sampling(
        "mode", DIRECT, mode_scale=scale, generator=torch.Generator().manual_seed(0)
    )
    ours = drawn(config_of(SigmaSampling.MODE, sigma_mode_scale=scale))
    assert stats.kstest(ours, 1 - theirs.double().numpy()).pvalue > ALMOST_CERTAIN


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.8, 0.5), (-1.0, 2.0)])
def test_logit_normal_is_that_of_diffusers(mean: float, std: float) -> None:
    """Ours is the paper's; diffusers takes it for a place counted from noise, which turns the sign of the mean."""
    theirs = compute_density_for_timestep_sampling(
        "logit_normal", DIRECT, logit_mean=mean, logit_std=std, generator=torch.Generator().manual_seed(0)
    )
    timesteps = FlowMatchEulerDiscreteScheduler(shift=1.0).timesteps.numpy() / 1000
    trained = timesteps[(theirs.double().numpy() * 1000).astype(int)]  # as its scripts do
    between = trained - np.random.default_rng(0).random(DIRECT) / 1000
    ours = drawn(config_of(SigmaSampling.LOGIT_NORMAL, sigma_mean=-mean, sigma_std=std))
    assert stats.kstest(ours, between).pvalue > ALMOST_CERTAIN


def test_uniform_has_all_of_its_levels_and_no_others() -> None:
    config = TrainConfig(sigma_sampling=SigmaSampling.UNIFORM, timesteps=40)
    places = (np.arange(400) + 0.5) / 400
    levels = [sigma_at(config, u, 16) for u in places]
    assert levels == sorted(levels)
    assert {level: levels.count(level) for level in levels} == {number / 40: 10 for number in range(1, 41)}


@pytest.mark.parametrize("highest", [0.5, 0.51])
def test_cut_off_uniform_has_its_levels_between_the_ends_alike(highest: float) -> None:
    config = TrainConfig(sigma_sampling=SigmaSampling.UNIFORM, timesteps=40, sigma_min=0.25, sigma_max=highest)
    levels = [sigma_at(config, (place + 0.5) / 110, 16) for place in range(110)]
    assert {level: levels.count(level) for level in levels} == {number / 40: 10 for number in range(10, 21)}


@pytest.mark.parametrize("sampling", SigmaSampling)
def test_levels_rise_with_the_even_number(sampling: SigmaSampling) -> None:
    for config in (config_of(sampling), config_of(sampling, sigma_min=0.3, sigma_max=0.6)):
        levels = [sigma_at(config, u, 4096) for u in (1e-12, *np.linspace(0.001, 0.999, 300), 1 - 1e-12)]
        assert levels == sorted(levels)
        assert len(set(levels)) > 290
        assert lowest_sigma(config) <= levels[0] < levels[-1] <= config.sigma_max


@pytest.mark.parametrize("sampling", SigmaSampling)
def test_nothing_is_below_the_first_timestep(sampling: SigmaSampling) -> None:
    config = TrainConfig(sigma_sampling=sampling, timesteps=10, sigma_mean=-3)
    levels = [sigma_at(config, u, 16) for u in np.linspace(1e-6, 0.999, 50)]
    assert levels[0] == pytest.approx(0.1, rel=1e-3)
    assert min(levels) >= 0.1
    assert len(set(levels)) > 5  # it is cut off, not heaped up


def test_ends_hold_where_the_distribution_has_nothing_between_them() -> None:
    config = config_of(SigmaSampling.LOGIT_NORMAL, sigma_mean=-10, sigma_std=0.1, sigma_min=0.9, sigma_max=0.95)
    assert 0.9 <= sigma_at(config, 0.5, 16) <= 0.95


@pytest.mark.parametrize("tokens", TOKENS)
def test_resolution_mu_is_that_of_diffusers(tokens: int) -> None:
    assert resolution_mu(tokens) == pytest.approx(calculate_shift(tokens))
    assert resolution_mu(tokens) == pytest.approx(0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256))


@pytest.mark.parametrize("tokens", TOKENS)
def test_resolution_shift_is_that_of_the_scheduler(base_model: Path, tokens: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(base_model, subfolder="scheduler")
    mu = resolution_mu(tokens)
    for sigma in (0.001, 0.25, 0.5, 0.9, 1.0):
        expected = float(scheduler.time_shift(mu, 1.0, torch.tensor(sigma)))
        assert shift(sigma, math.exp(mu)) == pytest.approx(expected, rel=1e-5)


def test_shift_moves_towards_noise_and_keeps_both_ends() -> None:
    assert shift(0.0, 3.0) == 0
    assert shift(1.0, 3.0) == 1
    assert shift(0.5, 3.0) == 0.75
    assert shift(0.5, 1.0) == 0.5


def test_only_the_resolution_shift_looks_at_the_resolution() -> None:
    for sampling in SigmaSampling:
        small, large = (sigma_at(config_of(sampling), 0.4, tokens) for tokens in (16, 4096))
        assert (small < large) if sampling is SigmaSampling.RESOLUTION_SHIFT else small == large


def test_default_level_is_the_sigmoid_of_a_normal_number() -> None:
    level = sigma_at(TrainConfig(), draw_even(torch.Generator().manual_seed(7)), 16)
    normal = torch.randn((), generator=torch.Generator().manual_seed(7))
    assert level == pytest.approx(float(torch.sigmoid(normal.double())), rel=1e-9)


def test_even_numbers_are_even() -> None:
    draw = torch.Generator().manual_seed(0)
    assert stats.kstest([draw_even(draw) for _ in range(DRAWN)], "uniform").pvalue > ALMOST_CERTAIN


def test_strata_share_out_the_distribution() -> None:
    config = TrainConfig(sigma_stratified=True)
    shares = strata(config, 8, torch.Generator().manual_seed(0))
    assert sorted(share.place for share in shares) == list(range(8))
    assert [share.place for share in shares] != list(range(8))  # else the same sample always had the same noise
    assert all(share.place / 8 <= share.at(u) <= (share.place + 1) / 8 for share in shares for u in (0.01, 0.5, 0.99))


def test_samples_of_a_step_without_strata_have_the_whole_distribution() -> None:
    shares = strata(TrainConfig(), 3, torch.Generator().manual_seed(0))
    assert [share.at(0.3) for share in shares] == [0.3] * 3


def test_each_sample_alone_still_has_the_whole_distribution() -> None:
    config, draw = TrainConfig(sigma_stratified=True), torch.Generator().manual_seed(0)
    first = [strata(config, 4, draw)[0].at(draw_even(draw)) for _ in range(DRAWN)]
    assert stats.kstest(first, "uniform").pvalue > ALMOST_CERTAIN
