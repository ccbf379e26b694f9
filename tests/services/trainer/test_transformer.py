"""The guidance bypass: without guidance the conditioning of a model without it, with guidance the original's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.models.embeddings import CombinedTimestepTextProjEmbeddings
from safetensors.torch import load_file
from torch import Tensor

from services.common.base_check import BaseModelError
from services.common.errors import InvalidInput
from services.common.settings import ServiceSettings
from services.trainer.config import TrainConfig
from services.trainer.config.choices import GuidanceMode
from services.trainer.flow_matching import loss_per_sample
from services.trainer.transformer import GuidanceBypass, load_transformer, prepared, refuse_guidance
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
        before = loss_per_sample(prepared(original), random_batch(), TrainConfig())
        again = FluxTransformer2DModel.from_config(original.config)
        again.load_state_dict(original.state_dict(), strict=False)
        again.time_text_embed.guidance_embedder.linear_1.weight.fill_(float("nan"))
        assert torch.equal(loss_per_sample(prepared(again), random_batch(), TrainConfig()), before)


def test_bypass_shares_the_weights_of_the_original(original: FluxTransformer2DModel) -> None:
    before = {name: parameter.data_ptr() for name, parameter in original.named_parameters()}
    assert {name: parameter.data_ptr() for name, parameter in prepared(original).named_parameters()} == before


def test_with_guidance_it_is_the_original(original: FluxTransformer2DModel) -> None:
    guided, guidance_B = original.time_text_embed, torch.tensor([3500.0, 1000.0])
    timestep_B, pooled_BD = torch.tensor([100.0, 900.0]), draw("pooled", 2, 64)
    given = (timestep_B, guidance_B, pooled_BD)
    assert torch.equal(GuidanceBypass(guided)(*given), guided(*given))


def sampled(pipeline: FluxPipeline, transformer: FluxTransformer2DModel, guidance_scale: float) -> Tensor:
    """Latents (B, L, P) that a pipeline makes with this transformer in its place."""
    assembled = FluxPipeline(**{**pipeline.components, "transformer": transformer})
    assembled.set_progress_bar_config(disable=True)
    made = assembled(
        "a red apple",
        height=64,
        width=64,
        num_inference_steps=3,
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    )
    latents_BLP: Tensor = made.images
    return latents_BLP


def test_pipeline_samples_the_same_with_the_resident_transformer(
    pipeline: FluxPipeline, transformer: FluxTransformer2DModel
) -> None:
    assert isinstance(transformer.time_text_embed, GuidanceBypass)
    assert not isinstance(pipeline.transformer.time_text_embed, GuidanceBypass)
    reference_BLP = sampled(pipeline, pipeline.transformer, 3.5)
    assert torch.equal(sampled(pipeline, transformer, 3.5), reference_BLP)
    assert not torch.equal(sampled(pipeline, transformer, 1.0), reference_BLP)


@pytest.mark.parametrize("mode", [GuidanceMode.FIXED, GuidanceMode.SAMPLED])
def test_guidance_is_refused_where_the_base_has_no_embedding_of_it(
    original: FluxTransformer2DModel, mode: GuidanceMode
) -> None:
    schnell = FluxTransformer2DModel.from_config({**original.config, "guidance_embeds": False})
    with pytest.raises(InvalidInput, match=f"guidance is {mode}.*no embedding") as refused:
        refuse_guidance(schnell, TrainConfig(guidance=mode))
    assert refused.value.reason == "GUIDANCE_NOT_SUPPORTED"
    assert [violation.field for violation in refused.value.violations] == ["config.guidance"]
    refuse_guidance(original, TrainConfig(guidance=mode))
    refuse_guidance(schnell, TrainConfig())


def test_model_without_guidance_is_left_as_it_is(original: FluxTransformer2DModel) -> None:
    schnell = FluxTransformer2DModel.from_config({**original.config, "guidance_embeds": False})
    embedder = schnell.time_text_embed
    assert prepared(schnell).time_text_embed is embedder


def test_base_is_frozen(transformer: FluxTransformer2DModel) -> None:
    assert not any(parameter.requires_grad for parameter in transformer.parameters())


def test_precision_of_the_settings_is_that_of_the_weights(transformer_bf16: FluxTransformer2DModel) -> None:
    assert transformer_bf16.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in transformer_bf16.parameters()} == {torch.bfloat16}


@pytest.fixture
def copied(base_model: Path, tmp_path: Path) -> Path:
    """The transformer in a folder of its own, its weights in one file."""
    return Path(shutil.copytree(base_model / "transformer", tmp_path / "transformer"))


def load(part: Path) -> FluxTransformer2DModel:
    return load_transformer(ServiceSettings(base_model=str(part.parent), device="cpu"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_layers": 3}, "its weights lack some that its config.json asks for"),
        ({"num_layers": 1}, r"no place for the weights transformer_blocks\.1\..* and 31 more"),
        ({"num_attention_heads": 4}, r"expected shape torch\.Size"),
    ],
)
def test_weights_that_are_not_those_of_the_config_are_refused(
    copied: Path, change: dict[str, object], says: str
) -> None:
    config = copied / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    with pytest.raises(BaseModelError, match=f"transformer of base model .* cannot be loaded: .*{says}") as refused:
        load(copied)
    assert refused.value.remedy == "Fetch or save that part anew, its config.json and its weights together."


def damage_header(file: Path) -> None:
    file.write_bytes((1 << 60).to_bytes(8, "little") + file.read_bytes()[8:])


def pickle_instead(file: Path) -> None:
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()


@pytest.mark.parametrize(
    "damage",
    [lambda file: file.write_bytes(file.read_bytes()[:100_000]), damage_header, Path.unlink, pickle_instead],
    ids=["cut short", "no header", "gone", "pickle"],
)
def test_file_that_holds_no_weights_is_refused(copied: Path, damage: Callable[[Path], object]) -> None:
    damage(copied / "diffusion_pytorch_model.safetensors")
    with pytest.raises(BaseModelError, match=r"cannot be loaded: .*diffusion_pytorch_model\.safetensors"):
        load(copied)


@pytest.mark.parametrize(
    ("file", "says"),
    [("*-00002-of-*.safetensors", "does not appear to have a file named"), ("*.index.json", "no file named")],
)
def test_weights_in_shards_are_loaded_whole_or_not_at_all(
    original: FluxTransformer2DModel, tmp_path: Path, file: str, says: str
) -> None:
    part = tmp_path / "transformer"
    original.save_pretrained(part, max_shard_size="4MB")
    assert torch.equal(load(part).proj_out.weight, original.proj_out.weight)
    [found] = part.glob(file)
    found.unlink()
    with pytest.raises(BaseModelError, match=f"cannot be loaded: .*{says}"):
        load(part)


def test_folder_without_a_transformer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="lacks transformer"):
        load_transformer(ServiceSettings(base_model=str(tmp_path), device="cpu"))
