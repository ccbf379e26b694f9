"""Files in the form of diffusers and peft: what they say, and that they mean to others what the adapter means here."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from peft import LoHaConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load
from torch import Tensor, nn

from services.trainer.adapters.adapter import NonFiniteAdapter, adapter_parameters, attached, detach
from services.trainer.adapters.files import AdapterSnapshot, peft_file, snapshot, with_scale
from services.trainer.config import TrainConfig
from services.trainer.config.choices import AdapterType
from services.trainer.transformer import GuidanceBypass
from tests.services.trainer.adapters.test_adapter import LAYER, answer, job, randomize, take_step
from tests.services.trainer.conftest import draw

PATTERN = {"rank_pattern": {r"single_.*\.proj_mlp": 6, r".*\.to_k": 2}}
PARTIAL = {"target_regex": r"proj_out|single_transformer_blocks\.[12]\.proj_out|transformer_blocks\.0\.attn\.to_[qv]"}
LORAS: dict[str, dict[str, Any]] = {
    "lora": {},
    "alpha": {"alpha": 7.0, "rank": 3},
    "rslora": {"use_rslora": True},
    "rslora with ranks": {"use_rslora": True, **PATTERN},
    "ranks": PATTERN,
    "pissa": {"init_weights": "PISSA", "alpha": 4.0},
    "pissa with ranks": {"init_weights": "PISSA", **PATTERN},
    "partial": {**PARTIAL, "rank_pattern": {"proj_out": 8}},
    "all linear": {"targets": "ALL_LINEAR"},
}
DORAS: dict[str, dict[str, Any]] = {
    "dora": {"adapter_type": "DORA"},
    "dora with ranks": {"adapter_type": "DORA", "use_rslora": True, **PATTERN},
}


def trained(transformer: nn.Module, config: TrainConfig) -> tuple[AdapterSnapshot, Tensor]:
    """A trained adapter, and what the transformer says with it."""
    with attached(transformer, config):
        take_step(transformer)
        randomize(transformer)
        return snapshot(transformer, config), answer(transformer)


@contextmanager
def bypassed(pipeline: FluxPipeline) -> Iterator[FluxTransformer2DModel]:
    """The pipeline's own transformer with the bypass that the trainer's has; without any adapter afterwards."""
    transformer = pipeline.transformer
    embedder = transformer.time_text_embed
    transformer.time_text_embed = GuidanceBypass(embedder)
    transformer.train()  # as the trainer's: no difference without dropout
    try:
        yield transformer
    finally:
        pipeline.unload_lora_weights()
        detach(transformer)
        transformer.time_text_embed = embedder
        transformer.eval()


def said_by_pipeline(pipeline: FluxPipeline, data: bytes, folder: Path) -> Tensor:
    """What diffusers' transformer says with the file loaded."""
    (folder / "lora.safetensors").write_bytes(data)
    with bypassed(pipeline) as transformer:
        pipeline.load_lora_weights(folder, weight_name="lora.safetensors")
        return answer(transformer)


def written(data: bytes, folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a file."""
    (folder / "lora.safetensors").write_bytes(data)
    with safetensors.safe_open(folder / "lora.safetensors", "pt") as file:
        return load(data), file.metadata()


@pytest.mark.parametrize("fields", (LORAS | DORAS).values(), ids=LORAS | DORAS)
def test_file_means_to_the_pipeline_what_the_adapter_means_here(
    transformer: FluxTransformer2DModel, pipeline: FluxPipeline, tmp_path: Path, fields: dict[str, Any]
) -> None:
    config, base = job(**fields), answer(transformer)
    adapter, ours = trained(transformer, config)
    theirs = said_by_pipeline(pipeline, peft_file(adapter, config, {"ss_seed": "7"}), tmp_path)
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-3)
    assert float((ours - base).abs().max()) > 0.1


@pytest.mark.parametrize("fields", [{}, {"lokr_factor": 4}, PATTERN, {"rank": 64, "alpha": 3.0}])
def test_lokr_file_loads_into_diffusers_transformer(
    transformer: FluxTransformer2DModel, pipeline: FluxPipeline, tmp_path: Path, fields: dict[str, Any]
) -> None:
    config = job(adapter_type="LOKR", **fields)
    adapter, ours = trained(transformer, config)
    (tmp_path / "lokr.safetensors").write_bytes(peft_file(adapter, config, {}))
    with bypassed(pipeline) as theirs:
        theirs.load_lora_adapter(tmp_path, weight_name="lokr.safetensors")
        torch.testing.assert_close(answer(theirs), ours, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("fields", [{}, PATTERN])
def test_loha_file_loads_with_peft(
    transformer: FluxTransformer2DModel, pipeline: FluxPipeline, tmp_path: Path, fields: dict[str, Any]
) -> None:
    config = job(adapter_type="LOHA", **fields)
    adapter, ours = trained(transformer, config)
    tensors, header = written(peft_file(adapter, config, {}), tmp_path)
    described = json.loads(header["lora_adapter_metadata"])
    peft_config = LoHaConfig(**{key.removeprefix("transformer."): value for key, value in described.items()})
    with bypassed(pipeline) as theirs:
        inject_adapter_in_model(peft_config, theirs, "default")
        state = {key.removeprefix("transformer."): tensor for key, tensor in tensors.items()}
        assert not set_peft_model_state_dict(theirs, state, "default").unexpected_keys
        torch.testing.assert_close(answer(theirs), ours, rtol=1e-3, atol=1e-3)


def change_of(tensors: dict[str, Tensor], kind: str) -> Tensor:
    """What a reader without alpha adds to a layer's weight, as ComfyUI does with LoKr and LoHa."""
    parts = {key.rpartition(".")[2]: tensor for key, tensor in tensors.items() if f".{LAYER}." in key}
    if kind == "LOHA":
        return (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
    return torch.kron(parts["lokr_w1"], parts["lokr_w2_a"] @ parts["lokr_w2_b"])


@pytest.mark.parametrize("kind", ["LOKR", "LOHA"])
def test_reader_without_alpha_gets_the_right_scale(transformer: FluxTransformer2DModel, kind: str) -> None:
    config, question = job(adapter_type=kind, alpha=3.0), torch.eye(192)
    before = transformer.get_submodule(LAYER)(question)
    with attached(transformer, config):
        randomize(transformer)
        change = transformer.get_submodule(LAYER)(question).detach() - before
        tensors = load(peft_file(snapshot(transformer, config), config, {}))
    torch.testing.assert_close(change_of(tensors, kind).T, change, rtol=1e-3, atol=1e-4)


def test_snapshot_does_not_follow_the_training(transformer: FluxTransformer2DModel) -> None:
    with attached(transformer, job()):
        take_step(transformer)
        first = snapshot(transformer, job())
        before = peft_file(first, job(), {})
        take_step(transformer)
        assert peft_file(first, job(), {}) == before != peft_file(snapshot(transformer, job()), job(), {})


def test_pissa_file_in_16_bits_keeps_what_was_learnt(transformer: FluxTransformer2DModel) -> None:
    config = job(init_weights="PISSA", rank=8, alpha=8.0, file_dtype="BF16")
    weight = transformer.get_submodule(LAYER).weight.clone()
    with attached(transformer, config):
        for name, parameter in adapter_parameters(transformer).items():
            parameter.data += 1e-4 * torch.sin(torch.arange(parameter.numel())).reshape(parameter.shape)
            assert name
        layer = transformer.get_submodule(LAYER)
        parts = [adapter_parameters(transformer)[f"{LAYER}.lora_{side}.weight"].detach() for side in "BA"]
        learnt = layer.get_base_layer().weight + parts[0] @ parts[1] - weight
        tensors = load(peft_file(snapshot(transformer, config), config, {}))
    up, down = (tensors[f"transformer.{LAYER}.lora_{side}.weight"].float() for side in "BA")
    assert float((up @ down - learnt).norm() / learnt.norm()) < 0.02


def test_file_has_a_key_for_every_tensor_and_no_other(transformer: FluxTransformer2DModel) -> None:
    adapter, _ = trained(transformer, job(**PARTIAL))
    modules = ["proj_out", *(f"single_transformer_blocks.{block}.proj_out" for block in (1, 2))]
    modules += [f"transformer_blocks.0.attn.to_{side}" for side in "qv"]
    tensors = load(peft_file(adapter, job(), {}))
    assert set(tensors) == {f"transformer.{name}.lora_{side}.weight" for name in modules for side in "AB"}


def test_header_says_what_other_programs_look_for(transformer: FluxTransformer2DModel, tmp_path: Path) -> None:
    adapter, _ = trained(transformer, job())
    _, header = written(peft_file(adapter, job(), {"modelspec.title": "cats", "fluxsmith.config": "{}"}), tmp_path)
    assert (header["ss_network_dim"], header["ss_network_alpha"], header["ss_learning_rate"]) == ("4", "4", "0.0001")
    assert (header["ss_network_module"], header["ss_base_model_version"]) == ("networks.lora_flux", "flux1")
    assert (header["modelspec.sai_model_spec"], header["modelspec.architecture"]) == ("1.0.0", "flux-1/lora")
    assert (header["modelspec.title"], header["fluxsmith.config"], header["format"]) == ("cats", "{}", "pt")
    assert header["modelspec.hash_sha256"] == f"0x{header['sshs_model_hash']}"
    described = json.loads(header["lora_adapter_metadata"])
    assert (described["transformer.r"], described["transformer.lora_alpha"]) == (4, 4.0)


@pytest.mark.parametrize("fields", [{}, {"use_rslora": True}, {"init_weights": "PISSA"}, {"adapter_type": "DORA"}])
def test_header_says_that_alpha_is_the_rank(
    transformer: FluxTransformer2DModel, tmp_path: Path, fields: dict[str, Any]
) -> None:
    config = job(**fields, rank_pattern={r".*\.to_k": 16})
    adapter, _ = trained(transformer, config)
    tensors, header = written(peft_file(adapter, config, {}), tmp_path)
    described = json.loads(header["lora_adapter_metadata"])
    for name in adapter.ranks:
        rank = len(tensors[f"transformer.{name}.lora_A.weight"])
        pattern = f"^{re.escape(name)}$"
        assert described["transformer.rank_pattern"].get(pattern, described["transformer.r"]) == rank
        assert described["transformer.alpha_pattern"].get(pattern, described["transformer.lora_alpha"]) == rank
    assert not described["transformer.use_rslora"]
    assert header["ss_network_alpha"] == header["ss_network_dim"] == "Dynamic"


@pytest.mark.parametrize("dtype", ["FP32", "BF16", "FP16"])
def test_folded_scale_costs_no_precision(transformer: FluxTransformer2DModel, dtype: str) -> None:
    config = job(rank=128, alpha=1.0, file_dtype=dtype)
    with attached(transformer, config):
        adapter_parameters(transformer)[f"{LAYER}.lora_B.weight"].data = 1e-4 * draw("small b", 192, 128)
        adapter = snapshot(transformer, config)
    b_OR, a_RI = (adapter.tensors[f"{LAYER}.lora_{side}.weight"] for side in "BA")
    tensors = load(peft_file(adapter, config, {}))
    up, down = (tensors[f"transformer.{LAYER}.lora_{side}.weight"].float() for side in "BA")
    change, error = b_OR @ a_RI / 128, up @ down - b_OR @ a_RI / 128
    assert float(error.norm() / change.norm()) < {"FP32": 1e-6, "BF16": 3e-3, "FP16": 5e-4}[dtype]


def random_adapter(kind: AdapterType, scale: float, large: float = 1.0) -> AdapterSnapshot:
    """One layer of rank 16 with the sizes of a trained adapter, or its scaled factor so many times as large."""
    shapes = {
        AdapterType.LORA: {"lora_B.weight": (192, 16), "lora_A.weight": (16, 192)},
        AdapterType.LOKR: {"lokr_w1": (8, 8), "lokr_w2_a": (24, 16), "lokr_w2_b": (16, 24)},
        AdapterType.LOHA: dict.fromkeys(("hada_w1_a", "hada_w2_a"), (192, 16))
        | dict.fromkeys(("hada_w1_b", "hada_w2_b"), (16, 192)),
    }[kind]
    tensors = {f"{LAYER}.{name}": 0.02 * draw(name, *shape) for name, shape in shapes.items()}
    first = next(iter(tensors))
    tensors[first] = large * tensors[first]
    return AdapterSnapshot(adapter_type=kind, tensors=tensors, ranks={LAYER: 16}, scales={LAYER: scale})


def product_of(tensors: dict[str, Tensor]) -> Tensor:
    """The change of the layer, by peft's formulas, in float64."""
    parts = {
        name.removeprefix("transformer.").removeprefix(f"{LAYER}."): each.double() for name, each in tensors.items()
    }
    if "lokr_w1" in parts:
        return torch.kron(parts["lokr_w1"], parts["lokr_w2_a"] @ parts["lokr_w2_b"])
    if "hada_w1_a" in parts:
        return (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
    return parts["lora_B.weight"] @ parts["lora_A.weight"]


@pytest.mark.parametrize("kind", [AdapterType.LORA, AdapterType.LOKR, AdapterType.LOHA])
@pytest.mark.parametrize("alpha", [1e6, 16.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4])
def test_fp16_keeps_the_change_at_any_scale(kind: AdapterType, alpha: float) -> None:
    adapter = random_adapter(kind, alpha / 16)
    change = product_of(dict(adapter.tensors)) * (alpha / 16)
    error = product_of(load(peft_file(adapter, job(file_dtype="FP16", adapter_type=kind), {}))) - change
    assert float(error.norm() / change.norm()) < 1.5e-3


@pytest.mark.parametrize("kind", [AdapterType.LOKR, AdapterType.LOHA])
def test_all_factors_of_a_product_share_a_tiny_scale_in_fp16(kind: AdapterType) -> None:
    adapter = random_adapter(kind, 1e-8)
    change = product_of(dict(adapter.tensors)) * 1e-8
    error = product_of(load(peft_file(adapter, job(file_dtype="FP16", adapter_type=kind), {}))) - change
    assert float(error.norm() / change.norm()) < 1.5e-3


@pytest.mark.parametrize("dtype", ["FP32", "BF16"])
def test_scale_is_in_b_and_a_is_as_it_was_trained(dtype: str) -> None:
    adapter = random_adapter(AdapterType.LORA, 7 / 16, 2.0**20)
    written = with_scale(adapter, job(file_dtype=dtype))
    assert torch.equal(written[f"{LAYER}.lora_A.weight"], adapter.tensors[f"{LAYER}.lora_A.weight"])
    assert torch.equal(written[f"{LAYER}.lora_B.weight"], 0.4375 * adapter.tensors[f"{LAYER}.lora_B.weight"])


@pytest.mark.parametrize("large", [2.0**20, 2.0**-20])
def test_factors_in_fp16_differ_from_those_trained_by_powers_of_two(large: float) -> None:
    adapter = random_adapter(AdapterType.LORA, 1.0, large)
    written = with_scale(adapter, job(file_dtype="FP16"))
    ratios = [(written[name] / tensor).unique() for name, tensor in adapter.tensors.items()]
    assert [len(ratio) for ratio in ratios] == [1, 1]
    assert float(ratios[0] * ratios[1]) == 1.0
    assert math.frexp(float(ratios[0]))[0] == 0.5
    sizes = [float(tensor.abs().max()) for tensor in written.values()]
    assert max(sizes) <= 4 * min(sizes)


@pytest.mark.parametrize(("name", "dtype"), [("FP32", torch.float32), ("BF16", torch.bfloat16), ("FP16", torch.half)])
def test_file_has_the_precision_asked_for(
    transformer: FluxTransformer2DModel, pipeline: FluxPipeline, tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    config = job(file_dtype=name)
    adapter, ours = trained(transformer, config)
    data = peft_file(adapter, config, {})
    assert {tensor.dtype for tensor in load(data).values()} == {dtype}
    theirs = said_by_pipeline(pipeline, data, tmp_path)
    assert float((theirs - ours).norm() / ours.norm()) < 0.02


def test_lengths_of_dora_keep_float32_in_any_file(
    transformer: FluxTransformer2DModel, pipeline: FluxPipeline, tmp_path: Path
) -> None:
    config = job(adapter_type="DORA", file_dtype="BF16")
    adapter, ours = trained(transformer, config)
    data = peft_file(adapter, config, {})
    kinds = {(key.endswith("lora_magnitude_vector"), tensor.dtype) for key, tensor in load(data).items()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    assert float((said_by_pipeline(pipeline, data, tmp_path) - ours).norm() / ours.norm()) < 0.02


def test_same_adapter_gives_the_same_bytes(transformer: FluxTransformer2DModel) -> None:
    provenance = {f"fluxsmith.{number}": "x" for number in range(20)}
    files = {peft_file(trained(transformer, job())[0], job(), provenance) for _ in range(2)}
    assert len(files) == 1


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_adapter_that_is_not_finite_is_refused(transformer: FluxTransformer2DModel, number: float) -> None:
    with attached(transformer, job()):
        name = "single_transformer_blocks.3.proj_out.lora_B.weight"
        adapter_parameters(transformer)[name].data[0, 0] = number
        with pytest.raises(NonFiniteAdapter, match=name.replace(".", r"\.")):
            snapshot(transformer, job())


def test_number_too_large_for_fp16_is_refused_with_the_remedy(transformer: FluxTransformer2DModel) -> None:
    with attached(transformer, job()):
        for side in "AB":
            adapter_parameters(transformer)[f"{LAYER}.lora_{side}.weight"].data[0, 0] = 7e4
        adapter = snapshot(transformer, job())
    assert peft_file(adapter, job(file_dtype="BF16"), {})
    with pytest.raises(NonFiniteAdapter, match=r"7e\+04, and FP16 ends at 6\.55e\+04"):
        peft_file(adapter, job(file_dtype="FP16"), {})
