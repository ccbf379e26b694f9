"""Adapters as other programs write them: each form has the effect that its program gives it, or is refused by name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import save
from torch import Tensor

from services.common.errors import InvalidInput
from services.trainer.adapters.adapter import attached
from services.trainer.adapters.warm_start import FileAdapter, load_into, read_adapter
from tests.services.trainer.adapters.test_adapter import answer, job
from tests.services.trainer.conftest import draw

WIDTH, INPUTS, RANK, ALPHA = 4, 6, 2, 5.0
DOUBLE, SINGLE = "transformer_blocks.1.", "single_transformer_blocks.3."
# The reference model's layers, and diffusers' modules that their outputs are divided among.
LAYERS = {
    "double_blocks.1.img_attn.qkv": [DOUBLE + name for name in ("attn.to_q", "attn.to_k", "attn.to_v")],
    "double_blocks.1.txt_attn.qkv": [DOUBLE + f"attn.add_{side}_proj" for side in "qkv"],
    "double_blocks.1.img_attn.proj": [DOUBLE + "attn.to_out.0"],
    "double_blocks.1.txt_attn.proj": [DOUBLE + "attn.to_add_out"],
    "double_blocks.1.img_mlp.0": [DOUBLE + "ff.net.0.proj"],
    "double_blocks.1.txt_mlp.2": [DOUBLE + "ff_context.net.2"],
    "double_blocks.1.img_mod.lin": [DOUBLE + "norm1.linear"],
    "single_blocks.3.linear1": [SINGLE + name for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")],
    "single_blocks.3.linear2": [SINGLE + "proj_out"],
    "single_blocks.3.modulation.lin": [SINGLE + "norm.linear"],
    "final_layer.linear": ["proj_out"],
    "vector_in.in_layer": ["time_text_embed.text_embedder.linear_1"],
}
MODULES = [module for modules in LAYERS.values() for module in modules]
Effect = dict[str, Tensor]
Tensors = dict[str, Tensor]


def rows(module: str) -> int:
    """Outputs of a module in these files."""
    return 4 * WIDTH if module.endswith("proj_mlp") else WIDTH


def factors(module: str) -> tuple[Tensor, Tensor]:
    """What a program has trained for a module: A of shape (R, I) and B of shape (O, R)."""
    return draw(f"{module} a", RANK, INPUTS), draw(f"{module} b", rows(module), RANK)


def by_module(
    name: Callable[[str], tuple[str, str]], alpha: Callable[[str], str] | None = None
) -> tuple[Tensors, Effect]:
    """A file with diffusers' modules apart: its keys for A and B, and for alpha where it has one; and its effect."""
    tensors: Tensors = {}
    effect: Effect = {}
    for module in MODULES:
        a_RI, b_OR = factors(module)
        tensors |= dict(zip(name(module), (a_RI, b_OR), strict=True))
        if alpha:
            tensors[alpha(module)] = torch.tensor(ALPHA)
        effect[module] = (ALPHA / RANK if alpha else 1.0) * b_OR @ a_RI
    return tensors, effect


def by_layer(
    name: Callable[[str], tuple[str, str]],
    alpha: Callable[[str], str] | None = None,
    layers: Mapping[str, list[str]] = LAYERS,
) -> tuple[Tensors, Effect]:
    """The same with the reference model's layers, each trained as one."""
    tensors: Tensors = {}
    effect: Effect = {}
    for layer, modules in layers.items():
        a_RI, b_OR = draw(f"{layer} a", RANK, INPUTS), draw(f"{layer} b", sum(map(rows, modules)), RANK)
        tensors |= dict(zip(name(layer), (a_RI, b_OR), strict=True))
        if alpha:
            tensors[alpha(layer)] = torch.tensor(ALPHA)
        change = (ALPHA / RANK if alpha else 1.0) * b_OR @ a_RI
        effect |= dict(zip(modules, torch.split(change, [rows(module) for module in modules]), strict=True))
    return tensors, effect


def sides(form: str, down: str, up: str) -> Callable[[str], tuple[str, str]]:
    """Keys for A and B, given a form with `{}` for the layer and `<>` for it joined by underscores."""

    def keys(layer: str) -> tuple[str, str]:
        named = form.replace("<>", layer.replace(".", "_")).replace("{}", layer)
        return f"{named}.{down}", f"{named}.{up}"

    return keys


def alpha(form: str) -> Callable[[str], str]:
    """The key for alpha, given the form as for `sides`."""
    return lambda layer: form.replace("<>", layer.replace(".", "_")).replace("{}", layer) + ".alpha"


AB, DOWN_UP = ("lora_A.weight", "lora_B.weight"), ("lora_down.weight", "lora_up.weight")
XLABS = {
    "double_blocks.1.processor.qkv_lora1": LAYERS["double_blocks.1.img_attn.qkv"],
    "double_blocks.1.processor.qkv_lora2": LAYERS["double_blocks.1.txt_attn.qkv"],
    "double_blocks.1.processor.proj_lora1": LAYERS["double_blocks.1.img_attn.proj"],
    "double_blocks.1.processor.proj_lora2": LAYERS["double_blocks.1.txt_attn.proj"],
    "single_blocks.3.processor.qkv_lora": LAYERS["single_blocks.3.linear1"][:3],
    "single_blocks.3.processor.proj_lora": LAYERS["single_blocks.3.linear2"],
}
DIFFSYNTH = {
    "blocks.1.attn.a_to_qkv": LAYERS["double_blocks.1.img_attn.qkv"],
    "blocks.1.attn.b_to_qkv": LAYERS["double_blocks.1.txt_attn.qkv"],
    "blocks.1.attn.a_to_out": LAYERS["double_blocks.1.img_attn.proj"],
    "blocks.1.attn.b_to_out": LAYERS["double_blocks.1.txt_attn.proj"],
    "blocks.1.ff_a.0": LAYERS["double_blocks.1.img_mlp.0"],
    "blocks.1.ff_b.2": LAYERS["double_blocks.1.txt_mlp.2"],
    "blocks.1.norm1_a.linear": LAYERS["double_blocks.1.img_mod.lin"],
    "single_blocks.3.to_qkv_mlp": LAYERS["single_blocks.3.linear1"],
    "single_blocks.3.proj_out": LAYERS["single_blocks.3.linear2"],
    "single_blocks.3.norm.linear": LAYERS["single_blocks.3.modulation.lin"],
}
NUMBERED = {
    (f"{layer}.{number}" if len(modules) > 1 else layer): [module]
    for layer, modules in LAYERS.items()
    for number, module in enumerate(modules)
}
DEFAULT_AB = ("lora_A.default.weight", "lora_B.default.weight")
FORMS = {
    "diffusers, ai-toolkit": by_module(sides("transformer.{}", *AB)),
    "diffusers with alpha": by_module(sides("transformer.{}", *AB), alpha("transformer.{}")),
    "older diffusers": by_module(sides("transformer.{}", "lora.down.weight", "lora.up.weight")),
    "SimpleTuner for ComfyUI": by_module(sides("diffusion_model.{}", *AB), alpha("diffusion_model.{}")),
    "OneTrainer LEGACY": by_module(sides("lora_transformer_<>", *DOWN_UP), alpha("lora_transformer_<>")),
    "OneTrainer COMFY": by_layer(sides("diffusion_model.{}", *DOWN_UP), alpha("diffusion_model.{}"), NUMBERED),
    "OneTrainer OMI": by_layer(sides("transformer.{}", *DOWN_UP), alpha("transformer.{}"), NUMBERED),
    "ComfyUI's trainer": by_layer(sides("diffusion_model.{}", *DOWN_UP), alpha("diffusion_model.{}")),
    "peft's save_pretrained": by_module(sides("base_model.model.{}", *AB)),
    "peft over a pipeline": by_module(sides("base_model.model.transformer.{}", *AB)),
    "fal": by_layer(sides("base_model.model.{}", *AB)),
    "kohya": by_layer(sides("lora_unet_<>", *DOWN_UP), alpha("lora_unet_<>")),
    "kohya's names of diffusers": by_module(sides("lora_unet_<>", *DOWN_UP), alpha("lora_unet_<>")),
    "LyCORIS": by_module(sides("lycoris_<>", *DOWN_UP), alpha("lycoris_<>")),
    "LyCORIS over a pipeline": by_module(sides("lycoris_transformer_<>", *DOWN_UP), alpha("lycoris_transformer_<>")),
    "XLabs": by_layer(sides("{}", "down.weight", "up.weight"), None, XLABS),
    "DiffSynth": by_layer(sides("{}", *DEFAULT_AB), None, DIFFSYNTH),
    "DiffSynth with diffusers' names": by_module(sides("{}", *DEFAULT_AB)),
}


def file_of(tensors: Tensors, **metadata: str) -> bytes:
    """The file with these tensors."""
    return bytes(
        save({key: tensor.clone().contiguous() for key, tensor in tensors.items()}, {"format": "pt"} | metadata)
    )


def effect_of(file: FileAdapter) -> Effect:
    """What a file adds to each module's weight."""
    found: Effect = {}
    for module in file.scales:
        own = f"{module}."
        parts = {name.removeprefix(own): tensor for name, tensor in file.tensors.items() if name.startswith(own)}
        if "lora_A.weight" in parts:
            change = parts["lora_B.weight"] @ parts["lora_A.weight"]
        elif "hada_w1_a" in parts:
            change = (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
        else:
            large = parts["lokr_w2"] if "lokr_w2" in parts else parts["lokr_w2_a"] @ parts["lokr_w2_b"]
            change = torch.kron(parts["lokr_w1"], large)
        found[module] = file.scales[module] * change
    return found


@pytest.mark.parametrize(("tensors", "effect"), FORMS.values(), ids=FORMS)
def test_form_has_the_effect_that_its_program_gives_it(tensors: Tensors, effect: Effect) -> None:
    found = effect_of(read_adapter(file_of(tensors)))
    assert found.keys() == effect.keys()
    for module, change in effect.items():
        torch.testing.assert_close(found[module], change, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["lora_unet_final_layer_adaLN_modulation_1", "diffusion_model.final_layer.adaLN_modulation.1"]
)
def test_halves_of_the_last_modulation_are_swapped(name: str) -> None:
    a_RI, b_OR = draw("a", 2, 3), draw("b", 8, 2)
    found = effect_of(read_adapter(file_of({f"{name}.lora_down.weight": a_RI, f"{name}.lora_up.weight": b_OR})))
    assert torch.equal(found["norm_out.linear"], torch.cat([b_OR[4:], b_OR[:4]]) @ a_RI)


OTHERS = {
    "lora_te1_text_model_encoder_layers_0_mlp_fc1": "CLIP's text encoder",
    "text_encoder.text_model.encoder.layers.0.mlp.fc1": "CLIP's text encoder",
    "lora_te3_encoder_block_0_layer_0_SelfAttention_q": "T5",
    "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q": "T5",
    "t5xxl.encoder.block.0": "T5",
}


@pytest.mark.parametrize(("name", "part"), OTHERS.items(), ids=OTHERS)
def test_what_is_no_transformers_is_left_out_and_counted(
    transformer: FluxTransformer2DModel, name: str, part: str
) -> None:
    layer = "transformer_blocks.0.attn.to_q"
    tensors = {
        f"transformer.{layer}.lora_A.weight": draw("a", 2, 192),
        f"transformer.{layer}.lora_B.weight": draw("b", 192, 2),
    }
    others = {f"{name}.{side}": draw(side, 2, 2) for side in DOWN_UP}
    config = job(rank=2, target_regex=layer)
    with attached(transformer, config):
        outline = load_into(transformer, config, file_of(tensors | others))
    assert outline.left_out_in_words() == f"2 tensors of {part}"


def lokr(prefix: str, *, rank: int = 2, w1: int = 3) -> Tensors:
    """A LoKr of 12 x 6 whose larger matrix has a rank; 0 means that it is whole."""
    large = {"lokr_w2": draw("w2", 12 // w1, 3)}
    if rank:
        large = {"lokr_w2_a": draw("w2a", 12 // w1, rank), "lokr_w2_b": draw("w2b", rank, 3)}
    return {f"{prefix}.{name}": tensor for name, tensor in ({"lokr_w1": draw("w1", w1, 2)} | large).items()}


def dense_lokr(tensors: Tensors) -> Tensor:
    parts = {key.rpartition(".")[2]: tensor for key, tensor in tensors.items()}
    return torch.kron(
        parts["lokr_w1"], parts["lokr_w2"] if "lokr_w2" in parts else parts["lokr_w2_a"] @ parts["lokr_w2_b"]
    )


@pytest.mark.parametrize("prefix", ["transformer.{}", "lycoris_<>", "diffusion_model.{}"])
@pytest.mark.parametrize(("rank", "scale"), [(2, ALPHA / 2), (0, 1.0)], ids=["rank", "whole"])
def test_lokr_is_scaled_by_alpha_over_its_rank_and_not_where_it_is_whole(prefix: str, rank: int, scale: float) -> None:
    name = prefix.replace("{}", MODULES[0]).replace("<>", MODULES[0].replace(".", "_"))
    tensors = lokr(name, rank=rank)
    found = effect_of(read_adapter(file_of(tensors | {f"{name}.alpha": torch.tensor(ALPHA if rank else 1e10)})))
    torch.testing.assert_close(found, {MODULES[0]: scale * dense_lokr(tensors)})


def test_smaller_matrix_of_a_lokr_may_be_a_product() -> None:
    name = f"transformer.{MODULES[0]}"
    left, right, large = draw("l", 3, 1), draw("r", 1, 2), draw("w2", 4, 3)
    found = effect_of(
        read_adapter(file_of({f"{name}.lokr_w1_a": left, f"{name}.lokr_w1_b": right, f"{name}.lokr_w2": large}))
    )
    torch.testing.assert_close(found, {MODULES[0]: torch.kron(left @ right, large)})


def test_fused_lokr_is_divided_where_its_smaller_matrix_divides() -> None:
    tensors = lokr("lora_unet_double_blocks_1_img_attn_qkv", w1=3)
    found = effect_of(read_adapter(file_of(tensors)))
    assert list(found) == LAYERS["double_blocks.1.img_attn.qkv"]
    torch.testing.assert_close(torch.cat(list(found.values())), dense_lokr(tensors))


def test_fused_loha_is_divided_by_rows() -> None:
    layer = "lora_unet_single_blocks_3_linear1"
    parts = {"hada_w1_a": draw("1a", 28, 2), "hada_w1_b": draw("1b", 2, 6), "hada_w2_a": draw("2a", 28, 2)}
    parts |= {"hada_w2_b": draw("2b", 2, 6), "alpha": torch.tensor(ALPHA)}
    found = effect_of(read_adapter(file_of({f"{layer}.{name}": tensor for name, tensor in parts.items()})))
    whole = ALPHA / 2 * (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
    assert [len(change) for change in found.values()] == [4, 4, 4, 16]
    torch.testing.assert_close(torch.cat(list(found.values())), whole)


LYCORIS = {"ss_network_module": "lycoris.kohya"}
DORAS: dict[str, tuple[str, tuple[int, ...], dict[str, str]]] = {
    "peft": ("lora_magnitude_vector", (12,), {}),
    "OneTrainer for diffusers": ("lora_magnitude_vector.weight", (12,), {}),
    "ai-toolkit": ("magnitude", (12,), {}),
    "LyCORIS": ("dora_scale", (12, 1), LYCORIS),
    "OneTrainer": ("dora_scale", (12, 1), {"ot_config": "{}"}),
}


@pytest.mark.parametrize(("name", "shape", "metadata"), DORAS.values(), ids=DORAS)
def test_lengths_of_a_dora_are_those_of_the_rows(name: str, shape: tuple[int, ...], metadata: dict[str, str]) -> None:
    key, lengths_O = f"transformer.{MODULES[0]}", torch.arange(1.0, 13.0)
    tensors = {f"{key}.lora_A.weight": draw("a", 2, 6), f"{key}.lora_B.weight": draw("b", 12, 2)}
    file = read_adapter(file_of(tensors | {f"{key}.{name}": lengths_O.reshape(shape)}, **metadata))
    assert file.adapter_type == "DORA"
    assert torch.equal(file.tensors[f"{MODULES[0]}.lora_magnitude_vector.weight"], lengths_O)


def test_fused_dora_is_divided_with_its_lengths() -> None:
    key, modules = "lora_unet_double_blocks_1_img_attn_qkv", LAYERS["double_blocks.1.img_attn.qkv"]
    tensors = {f"{key}.lora_down.weight": draw("a", 2, 6), f"{key}.lora_up.weight": draw("b", 12, 2)}
    file = read_adapter(file_of(tensors | {f"{key}.dora_scale": torch.arange(12.0)[:, None]}, **LYCORIS))
    lengths = [file.tensors[f"{module}.lora_magnitude_vector.weight"].tolist() for module in modules]
    assert lengths == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert torch.equal(file.tensors[f"{modules[2]}.lora_B.weight"], tensors[f"{key}.lora_up.weight"][8:])


def pair(name: str, down: str = "lora_A.weight", up: str = "lora_B.weight", outputs: int = 12) -> Tensors:
    return {f"{name}.{down}": draw("a", 2, 6), f"{name}.{up}": draw("b", outputs, 2)}


Q = f"transformer.{MODULES[0]}"
QKV = "lora_unet_double_blocks_1_img_attn_qkv"
UNET = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
REFUSED: dict[str, tuple[Tensors, dict[str, str], str, str]] = {
    "control": (
        pair("double_blocks.1.img_attn.qkv") | {"double_blocks.1.img_attn.norm.key_norm.scale": draw("n", 4)},
        {},
        "Canny or Depth",
        "text to image",
    ),
    "lora_bias": (pair(Q) | {f"{Q}.lora_B.bias": draw("bias", 12)}, {}, "lora_bias", "without biases"),
    "SDXL": (pair(UNET, *DOWN_UP), {}, "UNet", "FLUX.1"),
    "SD 1.5 of diffusers": (pair("unet.down_blocks.0.attentions.0.to_q"), {}, "UNet", "FLUX.1"),
    "SD 3": (pair("lora_unet_joint_blocks_0_x_block_attn_qkv", *DOWN_UP), {}, "Stable Diffusion 3", "FLUX.1"),
    "FLUX.2": (pair("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj"), {}, "FLUX.2", "FLUX.1"),
    "Wan": (pair("diffusion_model.blocks.0.self_attn.q"), {}, "Wan", "FLUX.1"),
    "guidance": (pair("transformer.time_text_embed.guidance_embedder.linear_1"), {}, "guidance", "leaves"),
    "whole checkpoint": (
        {"double_blocks.0.img_attn.qkv.weight": draw("w", 6, 6)},
        {},
        "no adapter",
        "Begin with a LoRA",
    ),
    "differences": (pair(Q) | {f"{Q}.diff_b": draw("d", 12)}, {}, "whole differences", "Extract"),
    "scalar": (lokr(Q) | {f"{Q}.scalar": torch.tensor(1.0)}, {}, "use_scalar", "newer"),
    "text encoders alone": (pair("lora_te1_text_model_x", *DOWN_UP), {}, "no transformer", "docs/adapters.md"),
    "DoRA of inputs": (pair(Q) | {f"{Q}.dora_scale": torch.ones(1, 6)}, LYCORIS, "each input", "wd_on_output"),
    "DoRA of an untold kind": (pair(Q) | {f"{Q}.dora_scale": torch.ones(12, 1)}, {}, "does not say which", "header"),
    "our own DoRA for ComfyUI": (
        pair(Q) | {f"{Q}.dora_scale": torch.ones(12, 1)},
        {"fluxsmith.version": "1"},
        "corrected for ComfyUI",
        "lora.safetensors",
    ),
    "DoRA of a LoKr": (lokr(Q) | {f"{Q}.dora_scale": torch.ones(12, 1)}, LYCORIS, "LoKr or LoHa with", ""),
    "fused LoKr": (lokr(QKV, w1=2), {}, "does not divide", "q, k and v apart"),
    "two types": (pair(Q) | lokr("transformer.transformer_blocks.1.attn.to_k"), {}, "LOKR", ""),
    "a layer twice": (pair(Q) | pair(QKV, *DOWN_UP), {}, "twice", ""),
    "a part twice": (pair(Q) | pair(f"diffusion_model.{MODULES[0]}"), {}, "beside", ""),
    "two scales": (
        pair(Q) | {f"{Q}.alpha": torch.tensor(2.0)},
        {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 8})},
        "with its header",
        "",
    ),
    "alpha not finite": (pair(Q) | {f"{Q}.alpha": torch.tensor(float("nan"))}, {}, "not finite", ""),
    "convolution": (pair(Q) | {f"{Q}.hada_t1": draw("t", 2, 2)}, {}, "convolution", ""),
}


@pytest.mark.parametrize(("tensors", "metadata", "says", "remedy"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_read_is_called_by_its_name(
    tensors: Tensors, metadata: dict[str, str], says: str, remedy: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        read_adapter(file_of(tensors, **metadata))
    assert refused.value.reason == "WARM_START_UNREADABLE"
    assert says in refused.value.message
    assert remedy in refused.value.remedy


def test_refusal_names_the_same_tensor_whatever_the_order() -> None:
    names = [f"transformer.transformer_blocks.{number}.attn.to_x" for number in range(8)]
    messages = set()
    for order in (names, names[::-1]):
        with pytest.raises(InvalidInput) as refused:
            read_adapter(file_of({key: tensor for name in order for key, tensor in pair(name).items()}))
        messages.add(refused.value.message)
    assert len(messages) == 1
    assert "transformer_blocks.0.attn.to_x" in messages.pop()


def test_job_begins_with_the_effect_of_the_reference_models_names(transformer: FluxTransformer2DModel) -> None:
    a_RI, b_OR = draw("a", 4, 192) / 14, draw("b", 576, 4)
    fused = {"diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight": a_RI}
    fused["diffusion_model.double_blocks.0.img_attn.qkv.lora_B.weight"] = b_OR
    apart: Tensors = {}
    for side, rows_OR in zip("qkv", b_OR.split(192), strict=True):
        apart |= {f"transformer.transformer_blocks.0.attn.to_{side}.lora_A.weight": a_RI}
        apart |= {f"transformer.transformer_blocks.0.attn.to_{side}.lora_B.weight": rows_OR}
    answers = []
    for tensors in (fused, apart):
        with attached(transformer, config := job(target_regex=r"transformer_blocks\.0\.attn\.to_[qkv]")):
            load_into(transformer, config, file_of(tensors))
            answers.append(answer(transformer))
    torch.testing.assert_close(*answers)


@pytest.mark.parametrize(("alpha", "scale"), [(-4.0, -2.0), (1e6, 5e5), (0.5, 0.25)])
def test_alpha_tensor_is_taken_with_its_sign(alpha: float, scale: float) -> None:
    file = read_adapter(file_of(pair(Q) | {f"{Q}.alpha": torch.tensor(alpha)}))
    assert set(file.scales.values()) == {scale}


@pytest.mark.parametrize("alpha", [0.0, 2e6, -2e6, 1e30])
def test_alpha_tensor_that_no_trainer_writes_is_refused_with_its_value(alpha: float) -> None:
    with pytest.raises(InvalidInput, match=re.escape(f"is {alpha:g}")):
        read_adapter(file_of(pair(Q) | {f"{Q}.alpha": torch.tensor(alpha)}))
