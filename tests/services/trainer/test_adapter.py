"""The adapter: where it goes, that it starts as nothing, leaves nothing behind, and means the same to everybody."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import safetensors
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load
from torch import Tensor, nn

from services.trainer.adapter import NonFiniteAdapter, adapter_file, adapter_parameters, attached
from services.trainer.config import TrainConfig
from services.trainer.flow_matching import predict_velocity
from services.trainer.train import train
from services.trainer.transformer import GuidanceBypass, prepared
from tests.services.trainer.conftest import draw, random_batch

CONFIG = TrainConfig(rank=4, alpha=2.0, learning_rate=1e-2, seed=7)
ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v")
DOUBLE = (*ATTENTION, "attn.to_out.0", "ff.net.0.proj", "ff.net.2")
SINGLE = (*ATTENTION, "proj_mlp", "proj_out")


def output(transformer: nn.Module) -> Tensor:
    """What the transformer says to a fixed question."""
    batch = random_batch()
    with torch.no_grad():
        return predict_velocity(transformer, batch.clean_BCHW, batch.sigma_B, batch.t5_BSD, batch.clip_BD)


def adapted_modules(transformer: nn.Module) -> set[str]:
    """Paths of the modules that have an adapter."""
    return {name.rpartition(".lora_")[0] for name in adapter_parameters(transformer)}


def digest(module: nn.Module) -> str:
    """sha256 over names, types, bits and flags of everything in a module."""
    sha = hashlib.sha256(repr([(name, type(child)) for name, child in module.named_modules()]).encode())
    for name, tensor in module.state_dict(keep_vars=True).items():
        sha.update(f"{name} {tensor.dtype} {tensor.requires_grad} {tensor.grad is None}".encode())
        sha.update(tensor.detach().numpy().tobytes())
    return sha.hexdigest()


def randomize(transformer: nn.Module) -> None:
    """Give every adapter matrix numbers, as training would."""
    for name, parameter in adapter_parameters(transformer).items():
        parameter.data = 0.1 * draw(name, *parameter.shape)


@pytest.fixture
def flux_dev() -> FluxTransformer2DModel:
    """FLUX.1-dev's real transformer without numbers in it."""
    with torch.device("meta"):
        return FluxTransformer2DModel(
            patch_size=1,
            in_channels=64,
            num_layers=19,
            num_single_layers=38,
            attention_head_dim=128,
            num_attention_heads=24,
            joint_attention_dim=4096,
            pooled_projection_dim=768,
            guidance_embeds=True,
            axes_dims_rope=(16, 56, 56),
        )


def test_preset_hits_exactly_its_modules_of_flux_dev(flux_dev: FluxTransformer2DModel) -> None:
    with attached(prepared(flux_dev), TrainConfig(rank=16)):
        modules, parameters = adapted_modules(flux_dev), adapter_parameters(flux_dev).values()
        assert sum(parameter.numel() for parameter in parameters) == 48_562_176
    double = {f"transformer_blocks.{block}.{name}" for block in range(19) for name in DOUBLE}
    single = {f"single_transformer_blocks.{block}.{name}" for block in range(38) for name in SINGLE}
    assert len(modules) == 304
    assert modules == double | single  # not the top-level proj_out, no ff_context, no add_*


def test_lora_starts_as_identity(transformer: FluxTransformer2DModel) -> None:
    before = output(transformer)
    with attached(transformer, CONFIG):
        assert adapted_modules(transformer)
        assert torch.equal(output(transformer), before)


def test_adapter_adds_its_product_scaled_by_alpha_over_rank(transformer: FluxTransformer2DModel) -> None:
    question = draw("question", 3, 6 * 32)
    layer = "transformer_blocks.0.attn.to_q"
    before = transformer.get_submodule(layer)(question)
    with attached(transformer, CONFIG):
        randomize(transformer)
        parameters = adapter_parameters(transformer)
        down, up = parameters[f"{layer}.lora_A.weight"], parameters[f"{layer}.lora_B.weight"]
        change = transformer.get_submodule(layer)(question) - before
        torch.testing.assert_close(change, (2.0 / 4) * question @ down.T @ up.T)


@pytest.mark.parametrize("outcome", [nullcontext(), pytest.raises(RuntimeError, match="cancelled")])
def test_base_is_afterwards_what_it_was(
    transformer: FluxTransformer2DModel, outcome: AbstractContextManager[object]
) -> None:
    before, answer = digest(transformer), output(transformer)
    with outcome, attached(transformer, CONFIG):
        train(transformer, [random_batch()], CONFIG, lambda _: None)
        assert digest(transformer) != before
        if not isinstance(outcome, nullcontext):
            raise RuntimeError("cancelled")
    assert digest(transformer) == before
    assert torch.equal(output(transformer), answer)
    assert not hasattr(transformer, "peft_config")


def test_jobs_in_turn_do_not_see_each_other(transformer: FluxTransformer2DModel) -> None:
    files = []
    for rank in (4, 8, 4):
        config = CONFIG.model_copy(update={"rank": rank})
        with attached(transformer, config):
            train(transformer, [random_batch()], config, lambda _: None)
            files.append(adapter_file(transformer, config, {"ss_seed": "7", "ss_learning_rate": "0.01"}))
    assert files[0] == files[2] != files[1]


def test_only_the_adapter_is_trained_and_in_float32(transformer_bf16: FluxTransformer2DModel) -> None:
    with attached(transformer_bf16, CONFIG):
        trained = {name for name, parameter in transformer_bf16.named_parameters() if parameter.requires_grad}
        assert len(trained) == len(adapter_parameters(transformer_bf16))
        assert {parameter.dtype for parameter in adapter_parameters(transformer_bf16).values()} == {torch.float32}


def initial(transformer: nn.Module, seed: int) -> dict[str, Tensor]:
    """The adapter as a job with this seed begins."""
    with attached(transformer, CONFIG.model_copy(update={"seed": seed})):
        return {name: parameter.detach().clone() for name, parameter in adapter_parameters(transformer).items()}


def test_seed_decides_the_initial_weights(transformer: FluxTransformer2DModel) -> None:
    first, again, other = initial(transformer, 1), initial(transformer, 1), initial(transformer, 2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(not torch.equal(first[name], other[name]) for name in first if "lora_A" in name)


def test_attaching_leaves_the_global_generator_alone(transformer: FluxTransformer2DModel) -> None:
    before = torch.random.get_rng_state()
    initial(transformer, 1)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.fixture
def bypassed(pipeline: FluxPipeline) -> Iterator[FluxPipeline]:
    """Diffusers' pipeline whose transformer has the bypass that the trainer's has; without any adapter afterwards."""
    embedder = pipeline.transformer.time_text_embed
    pipeline.transformer.time_text_embed = GuidanceBypass(embedder)
    yield pipeline
    pipeline.unload_lora_weights()
    pipeline.transformer.time_text_embed = embedder


@pytest.mark.parametrize(("rank", "alpha"), [(4, 4.0), (4, 2.0), (2, 7.0)])
def test_file_means_to_the_pipeline_what_the_adapter_means_to_the_trainer(
    transformer: FluxTransformer2DModel, bypassed: FluxPipeline, tmp_path: Path, rank: int, alpha: float
) -> None:
    config = TrainConfig(rank=rank, alpha=alpha)
    with attached(transformer, config):
        randomize(transformer)
        ours = output(transformer)
        (tmp_path / "lora.safetensors").write_bytes(adapter_file(transformer, config, {}))
    assert not torch.allclose(output(bypassed.transformer), ours, atol=1e-3)
    bypassed.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    assert torch.equal(output(bypassed.transformer), ours)


def test_trained_file_means_the_same_to_the_pipeline(
    transformer: FluxTransformer2DModel, bypassed: FluxPipeline, tmp_path: Path
) -> None:
    base = output(transformer)
    with attached(transformer, CONFIG):
        train(transformer, [random_batch(name=str(n)) for n in range(3)], CONFIG, lambda _: None)
        ours = output(transformer)
        (tmp_path / "lora.safetensors").write_bytes(adapter_file(transformer, CONFIG, {"ss_seed": "7"}))
    bypassed.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    assert torch.equal(output(bypassed.transformer), ours)
    assert not torch.equal(ours, base)


def written(transformer: nn.Module, folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of the file of a fresh adapter."""
    with attached(transformer, CONFIG):
        data = adapter_file(transformer, CONFIG, {"fluxsmith.dataset_digest": "abc"})
    (folder / "lora.safetensors").write_bytes(data)
    with safetensors.safe_open(folder / "lora.safetensors", "pt") as file:
        return load(data), file.metadata()


def test_file_has_peft_keys_for_every_adapted_module(transformer: FluxTransformer2DModel, tmp_path: Path) -> None:
    tensors, _ = written(transformer, tmp_path)
    modules = {f"transformer_blocks.{block}.{name}" for block in range(2) for name in DOUBLE}
    modules |= {f"single_transformer_blocks.{block}.{name}" for block in range(4) for name in SINGLE}
    assert set(tensors) == {f"transformer.{name}.lora_{side}.weight" for name in modules for side in "AB"}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert all(min(tensor.shape) == CONFIG.rank for tensor in tensors.values())


def test_header_says_what_other_programs_look_for(transformer: FluxTransformer2DModel, tmp_path: Path) -> None:
    _, header = written(transformer, tmp_path)
    assert (header["ss_network_dim"], header["ss_network_alpha"]) == ("4", "2.0")
    assert header["modelspec.sai_model_spec"] == "1.0.0"
    assert header["modelspec.architecture"] == "flux-1-dev/lora"
    assert header["format"] == "pt"
    assert header["fluxsmith.dataset_digest"] == "abc"
    described = json.loads(header["lora_adapter_metadata"])
    assert (described["transformer.r"], described["transformer.lora_alpha"]) == (4, 2.0)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_adapter_that_is_not_finite_is_refused(transformer: FluxTransformer2DModel, number: float) -> None:
    with attached(transformer, CONFIG):
        name = "single_transformer_blocks.3.proj_out.lora_B.weight"
        adapter_parameters(transformer)[name].data[0, 0] = number
        with pytest.raises(NonFiniteAdapter, match=name.replace(".", r"\.")):
            adapter_file(transformer, CONFIG, {})
