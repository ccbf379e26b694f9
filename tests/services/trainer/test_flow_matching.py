"""Flow matching: which way time runs, what the model is told, and what is made of its error."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn

from services.trainer.config import TrainConfig
from services.trainer.config.choices import LossWeighting
from services.trainer.flow_matching import (
    interpolate,
    loss_per_sample,
    predict_velocity,
    told_sigma,
    velocity_target,
)
from services.trainer.packing import pack, unpack
from tests.services.trainer.conftest import left_half, random_batch

CONFIG = TrainConfig()


class Recorder(nn.Module):
    """Stands where the transformer stands, keeps what it is given, and answers as it is told."""

    def __init__(self, dtype: torch.dtype = torch.float32, answer_BLP: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=dtype))  # what its precision is read off
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
        loss_B = loss_per_sample(transformer, batch, CONFIG)
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
    assert loss_per_sample(perfect, batch, CONFIG).tolist() == [0, 0]


def test_loss_is_the_mean_square_over_each_sample() -> None:
    batch = random_batch()
    expected = [float((n - c).square().mean()) for n, c in zip(batch.noise_BCHW, batch.clean_BCHW, strict=True)]
    assert loss_per_sample(Recorder(), batch, CONFIG).tolist() == pytest.approx(expected)


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
    batch = replace(random_batch(), clean_BCHW=zeros, noise_BCHW=ones, sigma_B=torch.tensor([0.9190, 0.0728]))
    with torch.no_grad():
        loss_per_sample(transformer_bf16, batch, CONFIG)
    for hook in hooks:
        hook.remove()
    told_B = embedded[0].float() / 1000  # diffusers' own arithmetic, rounded twice
    # Levels for which it matters also after the latents themselves are rounded.
    assert (told_B.bfloat16() != batch.sigma_B.bfloat16()).all()
    assert torch.equal(given[0].float().amax((1, 2)), told_B.to(torch.bfloat16).float())
    assert torch.equal(told_sigma(batch.sigma_B.to(torch.bfloat16)), told_B)


def test_bf16_model_is_given_bf16_activations() -> None:
    recorder = Recorder(torch.bfloat16)
    loss_B = loss_per_sample(recorder, random_batch(), CONFIG)
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
        loss_B, *others = (loss_per_sample(transformer, one, CONFIG) for one in (batch, *noise))
    assert all(not torch.equal(loss_B, other) for other in others)


def test_guidance_reaches_the_model(transformer: FluxTransformer2DModel) -> None:
    batch = random_batch()
    told = [replace(batch, guidance_B=torch.full((2,), scale)) for scale in (1.0, 3.5)]
    with torch.no_grad():
        bypassed_B, low_B, high_B = (loss_per_sample(transformer, one, CONFIG) for one in (batch, *told))
    assert not torch.equal(bypassed_B, low_B)
    assert not torch.equal(low_B, high_B)


def test_each_sample_is_told_its_own_guidance(transformer: FluxTransformer2DModel) -> None:
    batch = random_batch()
    both = replace(batch, guidance_B=torch.tensor([1.0, 3.5]))
    ones = replace(batch, guidance_B=torch.ones(2))
    with torch.no_grad():
        mixed_B, ones_B = (loss_per_sample(transformer, one, CONFIG) for one in (both, ones))
    torch.testing.assert_close(mixed_B[0], ones_B[0])
    assert abs(float(mixed_B[1] - ones_B[1])) > 1e-4


def test_loss_is_weighted_by_the_level_that_the_model_was_told() -> None:
    batch = replace(random_batch(), sigma_B=torch.tensor([0.9980, 0.3337]))
    config = TrainConfig(loss_weighting=LossWeighting.SIGMA_SQRT)
    plain_B, weighted_B = (loss_per_sample(Recorder(torch.bfloat16), batch, one) for one in (CONFIG, config))
    torch.testing.assert_close(weighted_B, plain_B / told_sigma(batch.sigma_B.bfloat16()).square())


def test_mask_covers_the_error_where_it_lies_in_the_picture() -> None:
    batch = random_batch()
    velocity = batch.noise_BCHW - batch.clean_BCHW
    velocity[:, :, :, 4:] = 0  # wrong in the right half only
    masked = replace(batch, mask_B1HW=left_half(8, 8).expand(2, 1, 8, 8))
    half_right = Recorder(answer_BLP=pack(velocity))
    assert loss_per_sample(half_right, masked, CONFIG).tolist() == [0, 0]
    assert min(loss_per_sample(half_right, batch, CONFIG).tolist()) > 0.5


def test_batch_moves_whole_to_a_device() -> None:
    batch = replace(random_batch(), guidance_B=torch.ones(2))
    moved = batch.to(torch.device("meta"))
    assert moved.guidance_B is not None
    assert {tensor.device.type for tensor in vars(moved).values() if tensor is not None} == {"meta"}
    assert moved.mask_B1HW is None
