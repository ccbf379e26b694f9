"""Kohya's form: its names, what the fused layers add, and that diffusers reads it as we do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load, save
from torch import Tensor

from services.common.errors import InvalidInput
from services.trainer.adapters.adapter import NonFiniteAdapter
from services.trainer.adapters.files import AdapterSnapshot
from services.trainer.adapters.kohya import LoraFactors, kohya_file, to_kohya
from services.trainer.adapters.targets import linear_names_of, target_names
from services.trainer.adapters.warm_start import read_adapter
from services.trainer.config import TrainConfig
from services.trainer.config.choices import AdapterType, TargetPreset
from services.trainer.transformer import prepared
from tests.services.trainer.adapters.test_adapter import answer, job
from tests.services.trainer.adapters.test_files import PATTERN, said_by_pipeline, trained
from tests.services.trainer.adapters.test_targets import FLUX_DEV
from tests.services.trainer.conftest import draw

DOUBLE = ("img_attn_qkv", "img_attn_proj", "img_mlp_0", "img_mlp_2")
DOUBLE_TEXT = ("txt_attn_qkv", "txt_attn_proj", "txt_mlp_0", "txt_mlp_2")
MODULATION = ("img_mod_lin", "txt_mod_lin")
OUTSIDE = {
    "img_in",
    "txt_in",
    "time_in_in_layer",
    "time_in_out_layer",
    "vector_in_in_layer",
    "vector_in_out_layer",
    "final_layer_adaLN_modulation_1",
    "final_layer_linear",
}
PRESETS = {
    TargetPreset.IMAGE_STREAM: (DOUBLE, ("linear1", "linear2")),
    TargetPreset.IMAGE_AND_TEXT_STREAM: (DOUBLE + DOUBLE_TEXT, ("linear1", "linear2")),
    TargetPreset.ATTENTION: (("img_attn_qkv", "img_attn_proj", "txt_attn_qkv", "txt_attn_proj"), ("linear1",)),
    TargetPreset.ALL_LINEAR: (DOUBLE + DOUBLE_TEXT + MODULATION, ("linear1", "linear2", "modulation_lin")),
}
SINGLE = "single_transformer_blocks.0."
# Real widths of FLUX.1-dev: diffusers' reader of the single blocks knows no others.
WIDTHS = {"attn.to_q": 3072, "attn.to_k": 3072, "attn.to_v": 3072, "proj_mlp": 12288}


def lora(name: str, outputs: int, inputs: int, rank: int) -> LoraFactors:
    """Factors that depend on the name."""
    return LoraFactors(a_RI=draw(f"{name} a", rank, inputs), b_OR=draw(f"{name} b", outputs, rank))


def from_kohya(tensors: dict[str, Tensor]) -> dict[str, LoraFactors]:
    """Each module's factors as a job that begins with the file reads them, the scale included."""
    file = read_adapter(save({key: tensor.contiguous() for key, tensor in tensors.items()}))
    return {
        name: LoraFactors(
            a_RI=file.tensors[f"{name}.lora_A.weight"], b_OR=file.tensors[f"{name}.lora_B.weight"] * file.scales[name]
        )
        for name in file.modules
    }


def layers(preset: TargetPreset) -> set[str]:
    """Layers of FLUX.1-dev in the reference model, from the structure of its blocks."""
    double, single = PRESETS[preset]
    names = {f"double_blocks_{block}_{name}" for block in range(19) for name in double}
    return names | {f"single_blocks_{block}_{name}" for block in range(38) for name in single}


def keys(names: set[str]) -> set[str]:
    """All keys of a file with these layers."""
    return {f"lora_unet_{name}.{part}" for name in names for part in ("lora_down.weight", "lora_up.weight", "alpha")}


def of_width_four(names: tuple[str, ...]) -> dict[str, LoraFactors]:
    return {name: lora(name, 16 if name.endswith("proj_mlp") else 4, 4, 1) for name in names}


@pytest.mark.parametrize("preset", PRESETS)
def test_names_are_those_of_the_reference_model(preset: TargetPreset) -> None:
    names = target_names(linear_names_of(FLUX_DEV), TrainConfig(targets=preset))
    assert set(to_kohya(of_width_four(names))) == keys(layers(preset))


def test_every_linear_layer_of_flux_dev_has_a_name() -> None:
    names = linear_names_of(FLUX_DEV)
    assert set(to_kohya(of_width_four(names))) == keys(layers(TargetPreset.ALL_LINEAR) | OUTSIDE)


def merged(transformer: FluxTransformer2DModel, tensors: dict[str, Tensor]) -> FluxTransformer2DModel:
    """A copy of the base whose weights have the file's products added, layer by layer of the reference model."""
    copy = FluxTransformer2DModel.from_config(transformer.config)
    copy.load_state_dict({**copy.state_dict(), **transformer.state_dict()})

    def add(layer: str, *modules: str) -> None:
        if (down := tensors.get(f"lora_unet_{layer}.lora_down.weight")) is None:
            return
        up, alpha = tensors[f"lora_unet_{layer}.lora_up.weight"], tensors[f"lora_unet_{layer}.alpha"]
        weights = [copy.get_parameter(f"{module}.weight") for module in modules]
        parts = torch.split(alpha / len(down) * up @ down, [len(weight) for weight in weights])
        for weight, part in zip(weights, parts, strict=True):
            weight.data += part

    for block in range(2):
        name, ours = f"double_blocks_{block}", f"transformer_blocks.{block}"
        add(f"{name}_img_attn_qkv", f"{ours}.attn.to_q", f"{ours}.attn.to_k", f"{ours}.attn.to_v")
        add(f"{name}_txt_attn_qkv", f"{ours}.attn.add_q_proj", f"{ours}.attn.add_k_proj", f"{ours}.attn.add_v_proj")
        for layer, module in {
            "img_attn_proj": "attn.to_out.0",
            "txt_attn_proj": "attn.to_add_out",
            "img_mlp_0": "ff.net.0.proj",
            "img_mlp_2": "ff.net.2",
            "txt_mlp_0": "ff_context.net.0.proj",
            "txt_mlp_2": "ff_context.net.2",
            "img_mod_lin": "norm1.linear",
            "txt_mod_lin": "norm1_context.linear",
        }.items():
            add(f"{name}_{layer}", f"{ours}.{module}")
    for block in range(4):
        name, ours = f"single_blocks_{block}", f"single_transformer_blocks.{block}"
        add(f"{name}_linear1", *(f"{ours}.{part}" for part in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")))
        add(f"{name}_linear2", f"{ours}.proj_out")
        add(f"{name}_modulation_lin", f"{ours}.norm.linear")
    return prepared(copy)


@pytest.mark.parametrize(
    "fields",
    [
        {"alpha": 7.0, "rank": 3},
        {"targets": "ALL_LINEAR", "use_rslora": True},
        PATTERN,
        {"init_weights": "PISSA"},
        {"target_regex": r".*\.to_[kv]|.*add_v_proj|.*proj_mlp", "rank_pattern": {".*to_k": 2}},
    ],
    ids=["alpha", "rslora", "ranks", "pissa", "partial"],
)
def test_file_means_to_the_reference_model_what_the_adapter_means_here(
    transformer: FluxTransformer2DModel, fields: dict[str, Any]
) -> None:
    config = job(**fields)
    adapter, ours = trained(transformer, config)
    data = kohya_file(adapter, config, {})
    assert data
    torch.testing.assert_close(answer(merged(transformer, load(data))), ours, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "fields",
    [
        {"target_regex": r"transformer_blocks\..*(?:to_|proj|ff|norm1).*"},
        {
            "target_regex": r"transformer_blocks\..*to_[kv]|.*norm\.linear|.*blocks.*proj_out",
            "rank_pattern": {".*k": 2},
        },
    ],
)
def test_file_means_to_the_pipeline_what_the_adapter_means_here(
    transformer: FluxTransformer2DModel, pipeline: FluxPipeline, tmp_path: Path, fields: dict[str, Any]
) -> None:
    config = job(**fields)  # without linear1: see WIDTHS
    adapter, ours = trained(transformer, config)
    data = kohya_file(adapter, config, {})
    assert data
    theirs = said_by_pipeline(pipeline, data, tmp_path)
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("ranks", [(2, 2, 2, 2), (3, 1, 2, 4), (2, 0, 2, 4), (0, 0, 0, 4), (4, 4, 4, 0), (1, 1, 1, 5)])
def test_single_blocks_of_flux_dev_mean_the_same_to_diffusers_and_to_us(tmp_path: Path, ranks: tuple[int, ...]) -> None:
    factors = {
        SINGLE + part: lora(part, width, 8, rank)
        for (part, width), rank in zip(WIDTHS.items(), ranks, strict=True)
        if rank
    }
    tensors = to_kohya(factors)
    theirs, _ = FluxPipeline.lora_state_dict(dict(tensors), return_alphas=True)
    ours = from_kohya(tensors)
    assert {name: len(part.a_RI) for name, part in ours.items()} == {
        name: len(part.a_RI) for name, part in factors.items()
    }
    for part, width in WIDTHS.items():
        names = [f"transformer.{SINGLE}{part}.lora_{side}.weight" for side in "BA"]
        change = theirs[names[0]] @ theirs[names[1]]
        absent = LoraFactors(a_RI=torch.zeros(1, 8), b_OR=torch.zeros(width, 1))
        for factor in (factors.get(SINGLE + part, absent), ours.get(SINGLE + part, absent)):
            torch.testing.assert_close(change, factor.b_OR @ factor.a_RI, rtol=1e-4, atol=1e-5)


def test_layer_trained_as_one_is_read_as_diffusers_reads_it() -> None:
    key = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {f"{key}.lora_down.weight": draw("down", 6, 12), f"{key}.lora_up.weight": draw("up", 36, 6)}
    tensors[f"{key}.alpha"] = torch.tensor(3.0)
    theirs, _ = FluxPipeline.lora_state_dict(dict(tensors), return_alphas=True)
    ours = from_kohya(tensors)
    assert len(ours) == 3
    for name, part in ours.items():
        product = theirs[f"transformer.{name}.lora_B.weight"] @ theirs[f"transformer.{name}.lora_A.weight"]
        torch.testing.assert_close(part.b_OR @ part.a_RI, product, rtol=1e-4, atol=1e-5)


def test_last_modulation_has_its_halves_swapped_as_diffusers_swaps_them() -> None:
    factors = {"norm_out.linear": lora("norm_out", 12, 6, 2), "proj_out": lora("proj_out", 5, 6, 2)}
    tensors = to_kohya(factors)
    theirs, _ = FluxPipeline.lora_state_dict(dict(tensors), return_alphas=True)
    for name, part in from_kohya(tensors).items():
        assert torch.equal(theirs[f"{name}.lora_B.weight"], factors[name].b_OR)
        assert torch.equal(part.b_OR, factors[name].b_OR)


def test_scale_is_in_the_matrices_and_alpha_is_the_rank(transformer: FluxTransformer2DModel) -> None:
    adapter, _ = trained(transformer, job(file_dtype="BF16"))
    tensors = load(kohya_file(adapter, job(file_dtype="BF16"), {}) or b"")
    alphas = {key: tensor for key, tensor in tensors.items() if key.endswith(".alpha")}
    assert {tensor.dtype for key, tensor in tensors.items() if key not in alphas} == {torch.bfloat16}
    for key, alpha in alphas.items():
        assert float(alpha) == len(tensors[key.replace(".alpha", ".lora_down.weight")])


@pytest.mark.parametrize("kind", [AdapterType.DORA, AdapterType.LOKR, AdapterType.LOHA])
def test_only_plain_lora_has_this_form(transformer: FluxTransformer2DModel, kind: AdapterType) -> None:
    config = job(adapter_type=kind)
    assert kohya_file(trained(transformer, config)[0], config, {}) is None


def test_header_has_provenance_and_no_description_for_peft(transformer: FluxTransformer2DModel, tmp_path: Path) -> None:
    adapter, _ = trained(transformer, job())
    data = kohya_file(adapter, job(), {"fluxsmith.dataset_digest": "abc"})
    assert data == kohya_file(adapter, job(), {"fluxsmith.dataset_digest": "abc"})
    (tmp_path / "lora.safetensors").write_bytes(data or b"")
    with safetensors.safe_open(tmp_path / "lora.safetensors", "pt") as file:
        header = file.metadata()
    assert (header["ss_network_dim"], header["fluxsmith.dataset_digest"]) == ("4", "abc")
    assert "lora_adapter_metadata" not in header  # diffusers would scale a second time


def test_number_too_large_once_scaled_is_refused() -> None:
    name = "transformer_blocks.0.attn.to_q"
    tensors = {f"{name}.lora_A.weight": torch.full((1, 4), 5e4), f"{name}.lora_B.weight": torch.full((4, 1), 6e4)}
    adapter = AdapterSnapshot(adapter_type=AdapterType.LORA, tensors=tensors, ranks={name: 1}, scales={name: 2.0})
    with pytest.raises(NonFiniteAdapter):
        kohya_file(adapter, job(file_dtype="FP16"), {})


@pytest.mark.parametrize(
    "tensors",
    [
        {"lora_unet_double_blocks_0_img_attn_x.lora_down.weight": torch.ones(1, 4)},
        {"lora_unet_img_in.lora_down.weight": torch.ones(1, 4)},
        {"lora_unet_img_in.lora_down.weight": torch.ones(1, 4), "lora_unet_img_in.lora_up.weight": torch.ones(4, 2)},
        {"lora_te1_text_model.lora_down.weight": torch.ones(1, 4)},
        {
            "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.ones(1, 4),
            "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": torch.ones(4, 1),
        },
    ],
    ids=["unknown layer", "one side", "two ranks", "text encoder", "no thirds"],
)
def test_other_tensors_are_refused(tensors: dict[str, Tensor]) -> None:
    with pytest.raises(InvalidInput):
        from_kohya(tensors)


def test_layers_that_have_learnt_nothing_yet_are_still_there() -> None:
    names = [f"transformer_blocks.0.attn.to_{side}" for side in "qkv"]
    factors = {name: LoraFactors(a_RI=draw(name, 2, 4), b_OR=torch.zeros(4, 2)) for name in names}
    ours = from_kohya(to_kohya(factors))
    assert {name: part.a_RI.tolist() for name, part in ours.items()} == {
        name: part.a_RI.tolist() for name, part in factors.items()
    }


def test_column_that_is_still_zero_stays_with_its_layer() -> None:
    names = [f"transformer_blocks.0.attn.to_{side}" for side in "qkv"]
    factors = {name: lora(name, 4, 4, 2) for name in names}
    factors[names[1]].b_OR[:, 0] = 0
    ours = from_kohya(to_kohya(factors))
    assert ours.keys() == factors.keys()
    for name, part in factors.items():
        assert torch.equal(ours[name].a_RI, part.a_RI)
        assert torch.equal(ours[name].b_OR, part.b_OR)


def test_layers_that_have_learnt_nothing_are_left_out_where_nothing_tells_them_apart() -> None:
    names = [f"transformer_blocks.0.attn.to_{side}" for side in "qkv"]
    factors = {
        name: LoraFactors(a_RI=draw(name, rank, 4), b_OR=torch.zeros(4, rank))
        for name, rank in zip(names, (3, 3, 2), strict=True)
    }
    assert from_kohya(to_kohya(factors)) == {}
