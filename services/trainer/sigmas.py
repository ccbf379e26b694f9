"""How noise levels are drawn: each distribution as its quantile function, which takes an even number to a level.

So one number u in (0, 1) a sample is all the randomness there is, whatever the distribution; cutting a distribution off
is a matter of where u lies, and spreading the samples of a step over a distribution too. Every function here rises
with u: towards 1, towards noise.

Source: Esser et al. 2024 (arXiv 2403.03206) for LOGIT_NORMAL, MODE, COSMAP and the shift; the reference code of FLUX.1
for its dependence on the resolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from scipy.special import betaincinv, expit, ndtr, ndtri

from services.trainer.config import TrainConfig
from services.trainer.config.choices import SigmaSampling

HALVINGS = 50  # of (0, 1): to 1e-15


def sigma_at(config: TrainConfig, u: float, image_tokens: int) -> float:
    """The noise level with a share `u` of the distribution below it, for an image of so many packed tokens.

    The distribution lies in `lowest_sigma` to `sigma_max`: what it has outside is cut off, what is inside keeps its
    shape. Where next to nothing is inside, the level is the nearer end.
    """
    quantile = partial(full_quantile, config, image_tokens)
    low, high = lowest_sigma(config), config.sigma_max
    begin = _first(lambda u: quantile(u) >= low)
    end = 1.0 if high == 1 else _first(lambda u: quantile(u) > high)
    return min(max(quantile(begin + u * (end - begin)), low), high)


def lowest_sigma(config: TrainConfig) -> float:
    """No level is below this one."""
    return max(config.sigma_min, 1 / config.timesteps)


def full_quantile(config: TrainConfig, image_tokens: int, u: float) -> float:  # noqa: PLR0911 - one line each
    """The distribution before anything is cut off: a function of u in (0, 1) that never falls."""
    match config.sigma_sampling:
        case SigmaSampling.UNIFORM:
            return min(math.floor(u * config.timesteps) + 1, config.timesteps) / config.timesteps
        case SigmaSampling.LOGIT_NORMAL:
            return _logit_normal(config, u)
        case SigmaSampling.RESOLUTION_SHIFT:
            return shift(_logit_normal(config, u), math.exp(resolution_mu(image_tokens)))
        case SigmaSampling.STATIC_SHIFT:
            return shift(_logit_normal(config, u), config.sigma_shift)
        case SigmaSampling.MODE:  # the paper's formula, which falls with u, at 1 - u
            return u - config.sigma_mode_scale * (math.sin(math.pi * u / 2) ** 2 - u)
        case SigmaSampling.COSMAP:
            return 1 - 1 / (math.tan(math.pi * u / 2) + 1)
        case SigmaSampling.CUBIC_CONTENT:  # 1 - u^3 falls with u; this one rises and is drawn as often
            return 1 - (1 - u) ** 3
        case SigmaSampling.CUBIC_STYLE:
            return u**3
        case SigmaSampling.BETA:
            return float(betaincinv(config.sigma_beta_a, config.sigma_beta_b, u))


def shift(sigma: float, factor: float) -> float:
    """Move a level towards noise by a factor over 1, as FLUX's scheduler does when it samples; 0 and 1 stay."""
    return factor * sigma / (1 + (factor - 1) * sigma)


def resolution_mu(image_tokens: int) -> float:
    """Logarithm of the shift for an image of so many packed tokens: 0.5 at 256, 1.15 at 4096, along a line."""
    return 0.5 + (1.15 - 0.5) * (image_tokens - 256) / (4096 - 256)


def draw_even(draw: torch.Generator) -> float:
    """An even number in (0, 1): the place of a normal one, so that LOGIT_NORMAL is the sigmoid of that very one."""
    return float(ndtr(float(torch.randn((), generator=draw))))


@dataclass(frozen=True, kw_only=True)
class Stratum:
    """One of `count` equal shares of a distribution, by its place from 0."""

    place: int
    count: int

    def at(self, u: float) -> float:
        """The part of (0, 1) that is this stratum's, at a share `u` of it."""
        return (self.place + u) / self.count


def strata(config: TrainConfig, samples: int, draw: torch.Generator) -> list[Stratum]:
    """Which share of the distribution each of a step's samples draws its level from: with `sigma_stratified` one each.

    Each sample's share is drawn, so that each alone still has the whole distribution.
    """
    if not config.sigma_stratified:
        return [Stratum(place=0, count=1)] * samples
    return [Stratum(place=place, count=samples) for place in torch.randperm(samples, generator=draw).tolist()]


def _logit_normal(config: TrainConfig, u: float) -> float:
    return float(expit(config.sigma_mean + config.sigma_std * ndtri(u)))


def _first(reached: Callable[[float], bool]) -> float:
    """The u in (0, 1] from which on `reached` is true, by halving."""
    before, after = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (before + after) / 2
        if reached(middle):
            after = middle
        else:
            before = middle
    return after
