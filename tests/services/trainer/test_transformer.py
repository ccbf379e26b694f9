"""The guidance bypass: the conditioning of a model without guidance, from the weights of one with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.embeddings import CombinedTimestepTextProjEmbeddings

from services.common.base_model import BaseModelError
from services.common.settings import ServiceSettings
from services.trainer.flow_matching import loss_per_sample
from services.trainer.transformer import GuidanceBypass, load_transformer, prepared
from tests.services.trainer.conftest import draw, random_batch


@pytest.fixture
def original(base_model: Path) -> FluxTransformer2DModel:
    """The transformer as diffusers loads it."""
    return FluxTransformer2DModel.from_pretrained(base_model, subfolder="transformer")


def test_bypass_is_the_conditioning_of_a_model_without_guidance(original: FluxTransformer2DModel) -> None:
    guided = original.time_text_embed
    plain = CombinedTimestepTextProjEmbeddings(embedding_dim=6 * 32, pooled_projection_dim=64)
    plain.load_state_dict({k: v for k, v in guided.state_dict().items() if not k.startswith("guidance_embedder")})
    timestep_B, pooled_BD = torch.tensor([0.0, 500.0, 1000.0]), draw("pooled", 3, 64)
    assert torch.equal(GuidanceBypass(guided)(timestep_B, pooled_BD), plain(timestep_B, pooled_BD))


def test_bypass_is_guidance_with_its_part_taken_away(original: FluxTransformer2DModel) -> None:
    guided, guidance_B = original.time_text_embed, torch.tensor([3500.0, 1000.0])
    timestep_B, pooled_BD = torch.tensor([100.0, 900.0]), draw("pooled", 2, 64)
    part = guided.guidance_embedder(guided.time_proj(guidance_B))
    bypassed = GuidanceBypass(guided)(timestep_B, pooled_BD)
    torch.testing.assert_close(bypassed + part, guided(timestep_B, guidance_B, pooled_BD))


def test_bypass_does_not_evaluate_guidance(original: FluxTransformer2DModel) -> None:
    with torch.no_grad():
        before = loss_per_sample(prepared(original), random_batch())
        again = FluxTransformer2DModel.from_config(original.config)
        again.load_state_dict(original.state_dict(), strict=False)
        again.time_text_embed.guidance_embedder.linear_1.weight.fill_(float("nan"))
        assert torch.equal(loss_per_sample(prepared(again), random_batch()), before)


def test_bypass_shares_the_weights_of_the_original(original: FluxTransformer2DModel) -> None:
    before = {name: parameter.data_ptr() for name, parameter in original.named_parameters()}
    after = {name: parameter.data_ptr() for name, parameter in prepared(original).named_parameters()}
    assert {name for name in before if name not in after} == {n for n in before if "guidance_embedder" in n}
    assert all(before[name] == pointer for name, pointer in after.items())


def test_model_without_guidance_is_left_as_it_is(original: FluxTransformer2DModel) -> None:
    schnell = FluxTransformer2DModel.from_config({**original.config, "guidance_embeds": False})
    embedder = schnell.time_text_embed
    assert prepared(schnell).time_text_embed is embedder


def test_base_is_frozen(transformer: FluxTransformer2DModel) -> None:
    assert not any(parameter.requires_grad for parameter in transformer.parameters())


def test_precision_of_the_settings_is_that_of_the_weights(transformer_bf16: FluxTransformer2DModel) -> None:
    assert transformer_bf16.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in transformer_bf16.parameters()} == {torch.bfloat16}


def test_folder_without_a_transformer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="lacks transformer"):
        load_transformer(ServiceSettings(base_model=str(tmp_path), device="cpu"))
