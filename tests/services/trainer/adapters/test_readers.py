"""What a job publishes means to other programs what it means here, or the job says at its creation that it does not."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load
from torch import Tensor

from services.trainer.adapters.adapter import adapter_layers, attached
from services.trainer.adapters.comfyui import comfyui_file
from services.trainer.adapters.files import AdapterSnapshot, peft_file, snapshot, with_length_ratios
from services.trainer.adapters.kohya import kohya_file
from services.trainer.adapters.targets import linear_names
from services.trainer.config import TrainConfig
from services.trainer.config.choices import TargetPreset
from services.trainer.foreseen import foreseen
from tests.services.trainer.adapters import readers
from tests.services.trainer.adapters.readers import Refused
from tests.services.trainer.adapters.test_adapter import job, randomize

LORAS: dict[str, dict[str, Any]] = {
    "alpha": {"alpha": 1.0, "rank": 8},
    "rslora": {"use_rslora": True, "rank": 3},
    "ranks": {"alpha": 7.0, "rank_pattern": {r".*\.to_k": 2}},
    "pissa": {"init_weights": "PISSA", "alpha": 8.0},
}
OTHERS: dict[str, dict[str, Any]] = {
    "dora": {"adapter_type": "DORA", "alpha": 7.0},
    "dora rslora": {"adapter_type": "DORA", "use_rslora": True},
    "lokr": {"adapter_type": "LOKR", "alpha": 7.0},
    "lokr full": {"adapter_type": "LOKR", "alpha": 7.0, "rank": 64},
    "loha": {"adapter_type": "LOHA", "alpha": 7.0},
}
OUTSIDE = {"target_regex": r"x_embedder|norm_out\.linear|proj_out|time_text_embed\.text.*|.*blocks\.1\.attn\.to_[qk]"}
PLACES: dict[str, dict[str, Any]] = {preset: {"targets": preset} for preset in TargetPreset} | {"outside": OUTSIDE}
each_place = pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)


class Trained:
    """An adapter as it ended, and the weights that the base has without and with it."""

    def __init__(self, transformer: FluxTransformer2DModel, config: TrainConfig) -> None:
        names = linear_names(transformer)
        self.config = config
        self.base = {name: transformer.get_parameter(f"{name}.weight").detach().clone() for name in names}
        with attached(transformer, config), torch.no_grad():
            randomize(transformer)
            self.adapter: AdapterSnapshot = snapshot(transformer, config)
            self.ours = dict(self.base)
            for name, layer in adapter_layers(transformer).items():
                width = self.base[name].shape[1]
                self.ours[name] = (layer(torch.eye(width)) - layer(torch.zeros(1, width))).T

    def error(self, read: dict[str, Tensor]) -> float:
        """How far what a program adds is from what the adapter adds, in shares of the latter; of the worst layer."""
        changes = [(read[name] - self.base[name], self.ours[name] - self.base[name]) for name in self.adapter.ranks]
        assert all(torch.equal(read[name], self.base[name]) for name in self.base.keys() - self.adapter.ranks)
        return max(float((theirs - ours).norm() / ours.norm()) for theirs, ours in changes)


def diffusers_form(trained: Trained) -> dict[str, Tensor]:
    """Tensors of `lora.safetensors`."""
    tensors: dict[str, Tensor] = load(peft_file(trained.adapter, trained.config, {}))
    return tensors


def second_form(trained: Trained) -> dict[str, Tensor]:
    """Tensors of the file for ComfyUI: one of the two forms there is for any type, never both."""
    files = [write(trained.adapter, trained.config, {}) for write in (kohya_file, comfyui_file)]
    (data,) = (data for data in files if data)
    tensors: dict[str, Tensor] = load(data)
    return tensors


@each_place
@pytest.mark.parametrize("fields", LORAS.values(), ids=LORAS)
def test_lora_has_its_strength_in_programs_that_do_not_read_the_header(
    transformer: FluxTransformer2DModel, fields: dict[str, Any], place: dict[str, Any]
) -> None:
    trained = Trained(transformer, job(**{**fields, **place}))
    for read in (readers.comfyui, readers.forge, readers.header_blind):
        reading = read(diffusers_form(trained), trained.base)
        assert not reading.left_over
        assert trained.error(reading.weights) < 1e-3
    for read in (readers.comfyui, readers.forge, readers.sd_scripts):
        reading = read(second_form(trained), trained.base)
        assert not reading.left_over
        assert trained.error(reading.weights) < 1e-3


@each_place
@pytest.mark.parametrize("fields", OTHERS.values(), ids=OTHERS)
def test_comfyui_applies_its_own_form_in_full(
    transformer: FluxTransformer2DModel, fields: dict[str, Any], place: dict[str, Any]
) -> None:
    trained = Trained(transformer, job(**{**fields, **place}))
    reading = readers.comfyui(second_form(trained), trained.base)
    assert not reading.left_over
    assert trained.error(reading.weights) < 1e-3


@pytest.mark.parametrize("dtype", ["BF16", "FP16"])
def test_lengths_of_dora_survive_16_bits(transformer: FluxTransformer2DModel, dtype: str) -> None:
    trained = Trained(transformer, job(adapter_type="DORA", alpha=7.0, file_dtype=dtype))
    assert trained.error(readers.comfyui(second_form(trained), trained.base).weights) < 5e-3


def test_lengths_that_are_not_corrected_are_another_strength_in_comfyui(transformer: FluxTransformer2DModel) -> None:
    trained = Trained(transformer, job(adapter_type="DORA"))
    ones = {name: torch.ones_like(ratio) for name, ratio in trained.adapter.length_ratios.items()}
    trained.adapter = replace(trained.adapter, length_ratios=ones)
    assert trained.error(readers.comfyui(second_form(trained), trained.base).weights) > 0.01


def test_forge_takes_dora_in_comfyuis_form_only(transformer: FluxTransformer2DModel) -> None:
    trained = Trained(transformer, job(adapter_type="DORA"))
    with pytest.raises(Refused):
        readers.forge(diffusers_form(trained), trained.base)
    assert trained.error(readers.forge(second_form(trained), trained.base).weights) < 1e-3


@pytest.mark.parametrize("kind", ["LOKR", "LOHA"])
def test_lokr_and_loha_are_whole_in_diffusers_form_too(transformer: FluxTransformer2DModel, kind: str) -> None:
    trained = Trained(transformer, job(adapter_type=kind, alpha=7.0))
    for read in (readers.comfyui, readers.forge):
        assert trained.error(read(diffusers_form(trained), trained.base).weights) < 1e-3
    assert readers.sdnext_takes(second_form(trained), list(trained.base))
    assert not readers.sdnext_takes(diffusers_form(trained), list(trained.base))


def reasons(config: TrainConfig, transformer: FluxTransformer2DModel) -> str:
    """What a job with this configuration is told when it is created."""
    return " ".join(warning.message for warning in foreseen(config, linear_names(transformer)))


@each_place
def test_job_is_told_when_invokeai_will_not_take_its_files(
    transformer: FluxTransformer2DModel, place: dict[str, Any]
) -> None:
    for kohya in (True, False):
        trained = Trained(transformer, job(**place, kohya_file=kohya))
        files = [diffusers_form(trained), *([second_form(trained)] if kohya else [])]
        taken = any(readers.invokeai_takes(tensors) for tensors in files)
        assert ("InvokeAI" in reasons(trained.config, transformer)) == (not taken)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, ()),
        ({"targets": "ALL_LINEAR", "use_rslora": True}, ()),
        (
            {"adapter_type": "DORA"},
            ("lora.comfyui.safetensors by ComfyUI and Forge", "InvokeAI", "diffusers from 0.32"),
        ),
        ({"adapter_type": "DORA", "kohya_file": False}, ("kohya_file",)),
        ({"adapter_type": "LOKR"}, ("load_lora_adapter", "mflux")),
        ({"adapter_type": "LOHA"}, ("peft", "diffusers, InvokeAI")),
        ({"target_regex": ".*to_q|x_embedder"}, ("x_embedder", "lora.safetensors")),
    ],
    ids=str,
)
def test_job_that_few_programs_read_is_told_their_names(
    transformer: FluxTransformer2DModel, fields: dict[str, Any], named: tuple[str, ...]
) -> None:
    told = foreseen(job(**fields), linear_names(transformer))
    assert {warning.reason for warning in told} == ({"FEW_READERS"} if named else set())
    assert all(name in told[0].message for name in named)


def test_lengths_are_measured_anew_for_an_adapter_from_a_checkpoint(transformer: FluxTransformer2DModel) -> None:
    config = job(adapter_type="DORA")
    with attached(transformer, config):
        randomize(transformer)
        first = snapshot(transformer, config)
        randomize(transformer)
        again = with_length_ratios(replace(first, length_ratios={}), transformer, config)
        later = snapshot(transformer, config)
    for name, ratio in first.length_ratios.items():
        assert torch.equal(again.length_ratios[name], ratio)
        assert not torch.equal(later.length_ratios[name], ratio)


def test_row_of_zeros_has_a_finite_length_in_comfyuis_form(transformer: FluxTransformer2DModel) -> None:
    config, name = job(adapter_type="DORA"), "transformer_blocks.0.attn.to_q"
    transformer = copy.deepcopy(transformer)  # all tests share the one that is given
    with torch.no_grad():
        transformer.get_parameter(f"{name}.weight")[3] = 0.0
    with attached(transformer, config):  # B is zero before the first step
        ratio_O = snapshot(transformer, config).length_ratios[name]
    assert float(ratio_O[3]) == 0.0
    assert torch.equal(ratio_O[:3], torch.ones(3))
