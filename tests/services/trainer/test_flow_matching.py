"""Flow matching: which way time runs, what the model is told, and how noise levels are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor, nn

from services.trainer.choices import SigmaSampling
from services.trainer.flow_matching import (
    draw_sigma,
    interpolate,
    loss_per_sample,
    predict_velocity,
    resolution_mu,
    shift,
    told_sigma,
    velocity_target,
)
from services.trainer.packing import pack, unpack
from tests.services.trainer.conftest import random_batch

TOKENS = [16, 256, 1024, 4096, 5000]


class Recorder(nn.Module):
    """Stands where the transformer stands, keeps what it is given, and answers as it is told."""

    def __init__(self, dtype: torch.dtype = torch.float32, answer_BLP: Tensor | None = None) -> None:
        super().__init__()
        self.dtype = dtype
        self.given: dict[str, Tensor] = {}
        self._answer_BLP = answer_BLP

    def forward(self, **given: Tensor) -> tuple[Tensor]:
        self.given = given
        return (torch.zeros_like(given["hidden_states"]) if self._answer_BLP is None else self._answer_BLP,)


def test_time_may_run_the_other_way_with_the_same_loss(transformer: FluxTransformer2DModel) -> None:
    batch = random_batch()
    t_B111 = (1 - batch.sigma_B).reshape(-1, 1, 1, 1)
    between = t_B111 * batch.clean_BCHW + (1 - t_B111) * batch.noise_BCHW
    with torch.no_grad():
        loss_B = loss_per_sample(transformer, batch)
        towards_image = -predict_velocity(transformer, between, batch.sigma_B, batch.t5_BSD, batch.clip_BD)
    other_loss_B = (towards_image - (batch.clean_BCHW - batch.noise_BCHW)).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(loss_B, other_loss_B)


def test_path_begins_at_the_image_and_ends_at_noise() -> None:
    clean, noise = random_batch().clean_BCHW, random_batch().noise_BCHW
    assert torch.equal(interpolate(clean, noise, torch.zeros(2)), clean)
    assert torch.equal(interpolate(clean, noise, torch.ones(2)), noise)


def test_each_sample_has_its_own_noise_level() -> None:
    clean, noise = torch.zeros(2, 16, 4, 4), torch.ones(2, 16, 4, 4)
    noisy = interpolate(clean, noise, torch.tensor([0.25, 0.75]))
    assert noisy[0].unique().tolist() == [0.25]
    assert noisy[1].unique().tolist() == [0.75]


def test_target_is_the_derivative_of_the_path() -> None:
    clean, noise = random_batch().clean_BCHW.double(), random_batch().noise_BCHW.double()
    sigma_B, one_B = torch.full((2,), 0.3).double(), torch.ones(2).double()
    derivative = torch.func.jvp(lambda sigma_B: interpolate(clean, noise, sigma_B), (sigma_B,), (one_B,))[1]
    torch.testing.assert_close(velocity_target(clean, noise), derivative)


def test_a_model_that_knows_the_velocity_has_no_loss() -> None:
    batch = random_batch()
    perfect = Recorder(answer_BLP=pack(batch.noise_BCHW - batch.clean_BCHW))
    assert loss_per_sample(perfect, batch).tolist() == [0, 0]


def test_loss_is_the_mean_square_over_each_sample() -> None:
    batch = random_batch()
    expected = [float((n - c).square().mean()) for n, c in zip(batch.noise_BCHW, batch.clean_BCHW, strict=True)]
    assert loss_per_sample(Recorder(), batch).tolist() == pytest.approx(expected)


def test_latents_have_the_noise_level_that_reaches_the_embedding(transformer_bf16: FluxTransformer2DModel) -> None:
    embedded, given = [], []
    embedding = transformer_bf16.time_text_embed
    hooks = [
        embedding.register_forward_pre_hook(lambda _, arguments: embedded.append(arguments[0])),
        transformer_bf16.register_forward_pre_hook(
            lambda _, __, named: given.append(named["hidden_states"]), with_kwargs=True
        ),
    ]
    zeros, ones = torch.zeros(2, 16, 8, 8), torch.ones(2, 16, 8, 8)
    batch = replace(random_batch(), clean_BCHW=zeros, noise_BCHW=ones, sigma_B=torch.tensor([0.9980, 0.3337]))
    with torch.no_grad():
        loss_per_sample(transformer_bf16, batch)
    for hook in hooks:
        hook.remove()
    told_B = embedded[0].float() / 1000  # diffusers' own arithmetic, rounded twice
    assert not torch.equal(told_B, batch.sigma_B.to(torch.bfloat16).float())
    assert torch.equal(given[0].float().amax((1, 2)), told_B.to(torch.bfloat16).float())
    assert torch.equal(told_sigma(batch.sigma_B.to(torch.bfloat16)), told_B)


def test_bf16_model_is_given_bf16_activations() -> None:
    recorder = Recorder(torch.bfloat16)
    loss_B = loss_per_sample(recorder, random_batch())
    for name in ("hidden_states", "encoder_hidden_states", "pooled_projections"):
        assert recorder.given[name].dtype == torch.bfloat16
    assert loss_B.dtype == torch.float32


@pytest.mark.parametrize(("height", "width"), [(8, 8), (4, 12)])
def test_velocity_is_what_the_pipeline_would_predict(
    transformer: FluxTransformer2DModel, height: int, width: int
) -> None:
    batch = random_batch(height=height, width=width)
    timestep_B = batch.sigma_B * 1000  # as the scheduler hands it to the pipeline, which divides again
    with torch.no_grad():
        ours = predict_velocity(transformer, batch.clean_BCHW, batch.sigma_B, batch.t5_BSD, batch.clip_BD)
        theirs = transformer(
            hidden_states=FluxPipeline._pack_latents(batch.clean_BCHW, 2, 16, height, width),
            timestep=timestep_B / 1000,
            guidance=None,
            pooled_projections=batch.clip_BD,
            encoder_hidden_states=batch.t5_BSD,
            txt_ids=torch.zeros(batch.t5_BSD.shape[1], 3),
            img_ids=FluxPipeline._prepare_latent_image_ids(2, height // 2, width // 2, "cpu", torch.float32),
        ).sample
    torch.testing.assert_close(ours, unpack(theirs, height, width))


def test_loss_depends_on_noise_level_and_caption(transformer: FluxTransformer2DModel) -> None:
    batch = random_batch()
    noise = (replace(batch, sigma_B=batch.sigma_B.flip(0)), replace(batch, t5_BSD=batch.t5_BSD.flip(0)))
    with torch.no_grad():
        loss_B, *others = (loss_per_sample(transformer, one) for one in (batch, *noise))
    assert all(not torch.equal(loss_B, other) for other in others)


@pytest.mark.parametrize("tokens", TOKENS)
def test_resolution_mu_is_that_of_diffusers(tokens: int) -> None:
    assert resolution_mu(tokens) == pytest.approx(calculate_shift(tokens))
    assert resolution_mu(tokens) == pytest.approx(0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256))


@pytest.mark.parametrize("tokens", TOKENS)
def test_resolution_shift_is_that_of_the_scheduler(base_model: Path, tokens: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(base_model, subfolder="scheduler")
    mu = resolution_mu(tokens)
    for sigma in (0.001, 0.25, 0.5, 0.9, 1.0):
        assert shift(sigma, mu) == pytest.approx(float(scheduler.time_shift(mu, 1.0, torch.tensor(sigma))), rel=1e-5)
        assert shift(sigma, mu) == pytest.approx(math.exp(mu) / (math.exp(mu) + 1 / sigma - 1))


def test_shift_moves_towards_noise_and_keeps_its_end() -> None:
    assert shift(1.0, 1.15) == pytest.approx(1)
    assert shift(0.5, 1.15) > shift(0.5, 0.5) > shift(0.5, 0.0) == 0.5


def logit_normal_cdf(sigma: float) -> float:
    """Probability of a level up to `sigma` when its logit is standard normal."""
    return 0.5 * (1 + math.erf(math.log(sigma / (1 - sigma)) / math.sqrt(2)))


def shifted_cdf(sigma: float) -> float:
    """The same after the shift for 1024 tokens, by its inverse."""
    return logit_normal_cdf(1 / (1 + math.exp(0.5 + 0.65 * (1024 - 256) / 3840) * (1 / sigma - 1)))


@pytest.mark.parametrize(
    ("sampling", "cdf"),
    [
        (SigmaSampling.UNIFORM, lambda sigma: sigma),
        (SigmaSampling.LOGIT_NORMAL, logit_normal_cdf),
        (SigmaSampling.RESOLUTION_SHIFT, shifted_cdf),
    ],
)
def test_drawn_levels_follow_their_formula(sampling: SigmaSampling, cdf: Callable[[float], float]) -> None:
    generator, count = torch.Generator().manual_seed(0), 5000
    drawn = sorted(draw_sigma(sampling, 1024, generator) for _ in range(count))
    assert drawn[0] > 0
    assert drawn[-1] <= 1
    farthest = max(abs(cdf(sigma) - (place + 0.5) / count) for place, sigma in enumerate(drawn))
    assert farthest < 1.63 / math.sqrt(count)  # Kolmogorov and Smirnov at 1 %


def test_uniform_reaches_every_level_from_one_thousandth_to_one() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = {draw_sigma(SigmaSampling.UNIFORM, 16, generator) for _ in range(20_000)}
    assert drawn == {number / 1000 for number in range(1, 1001)}


def test_only_the_resolution_shift_looks_at_the_resolution() -> None:
    def of(sampling: SigmaSampling, tokens: int) -> float:
        return draw_sigma(sampling, tokens, torch.Generator().manual_seed(3))

    assert of(SigmaSampling.LOGIT_NORMAL, 16) == of(SigmaSampling.LOGIT_NORMAL, 4096)
    assert of(SigmaSampling.RESOLUTION_SHIFT, 16) < of(SigmaSampling.RESOLUTION_SHIFT, 4096)
