"""The arithmetic of memory against real modules on the meta device: layers, adapters, and what a step holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel

from services.trainer.adapters.adapter import adapter_parameters, attached
from services.trainer.adapters.targets import linear_names, target_ranks
from services.trainer.config import TrainConfig
from services.trainer.config.choices import AdapterType
from services.trainer.estimate.activations import BF16
from services.trainer.estimate.adapter_sizes import adapter_matrices, optimizer_bytes
from services.trainer.estimate.architecture import FLUX_1_DEV, Architecture
from services.trainer.estimate.memory_map import LIBRARIES, MemoryMap
from services.trainer.optimizers import build_optimizer
from tests.services.trainer.adapters.test_targets import FLUX_DEV
from tests.services.trainer.estimate.held import step_bytes

TWO_OF_EACH = {**FLUX_DEV, "num_layers": 2, "num_single_layers": 2}
IN_SINGLE_BLOCKS = r"single_transformer_blocks\.\d+\.(attn\.to_q|norm\.linear)"


def skeleton(model: dict[str, Any]) -> FluxTransformer2DModel:
    with torch.device("meta"):
        return FluxTransformer2DModel(**model)


def mapped(config: TrainConfig, model: dict[str, Any], side_px: int) -> MemoryMap:
    architecture = Architecture.of(model, text_tokens=512)
    ranks = target_ranks(architecture.linears(), config)
    return MemoryMap(architecture=architecture, precision=BF16, config=config, ranks=ranks, side_px=side_px)


def test_layers_are_those_of_flux_1_dev() -> None:
    model = skeleton(FLUX_DEV)
    layers = Architecture.of(FLUX_DEV, text_tokens=512).linears()
    assert Architecture.of(FLUX_DEV, text_tokens=512) == FLUX_1_DEV
    assert {name: (layer.outputs, layer.inputs) for name, layer in layers.items()} == {
        name: tuple(model.get_parameter(f"{name}.weight").shape) for name in linear_names(model)
    }
    assert FLUX_1_DEV.parameters == sum(parameter.numel() for parameter in model.parameters())


ADAPTERS = [
    {"adapter_type": "LORA", "rank": 16},
    {"adapter_type": "DORA", "rank": 4, "targets": "ALL_LINEAR"},
    {"adapter_type": "LOHA", "rank": 8, "rank_pattern": {r".*proj_mlp": 32}},
    {"adapter_type": "LOKR", "rank": 16, "targets": "ATTENTION"},
    {"adapter_type": "LOKR", "rank": 128, "lokr_factor": 8},
    {"adapter_type": "LORA", "target_regex": IN_SINGLE_BLOCKS},
]


@pytest.mark.parametrize("fields", ADAPTERS)
def test_adapter_has_the_matrices_that_are_counted(fields: dict[str, Any]) -> None:
    config, model = TrainConfig(**fields), skeleton(TWO_OF_EACH)
    layers = Architecture.of(TWO_OF_EACH, text_tokens=512).linears()
    with torch.device("meta"), attached(model, config):
        real = sorted(parameter.numel() for parameter in adapter_parameters(model).values())
    counted = adapter_matrices(layers, target_ranks(layers, config), config)
    assert sorted(matrix.numbers for matrix in counted) == real


@pytest.mark.parametrize("optimizer", ["ADAMW", "ADAMW_8BIT", "PRODIGY", "ADAFACTOR", "LION", "ADAMW_SCHEDULE_FREE"])
@pytest.mark.parametrize("adapter_type", [AdapterType.LORA, AdapterType.DORA])
def test_optimizer_keeps_what_is_counted(optimizer: str, adapter_type: AdapterType) -> None:
    config = TrainConfig(optimizer=optimizer, adapter_type=adapter_type, targets="ATTENTION", learning_rate=1e-4)
    tiny = {**FLUX_DEV, "num_layers": 1, "num_single_layers": 0, "num_attention_heads": 2}
    model, layers = FluxTransformer2DModel(**tiny), Architecture.of(tiny, text_tokens=512).linears()
    with attached(model, config):
        parameters = adapter_parameters(model)
        for parameter in parameters.values():
            parameter.grad = torch.ones_like(parameter)
        kept = build_optimizer(parameters, config)
        kept.step()
        tensors = [each for state in kept.state.values() for each in state.values() if isinstance(each, torch.Tensor)]
    real = sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())  # 8-bit states share a table
    counted = optimizer_bytes(adapter_matrices(layers, target_ranks(layers, config), config), config.optimizer)
    assert counted == pytest.approx(real, rel=0.02)  # but for counters and that table


STEPS = [
    ({}, 0.03),
    ({"batch_size": 2}, 0.03),
    ({"rank": 128}, 0.05),
    ({"targets": "ATTENTION"}, 0.03),
    ({"targets": "ALL_LINEAR"}, 0.05),
    ({"target_regex": IN_SINGLE_BLOCKS}, 0.05),
    ({"adapter_type": "DORA"}, 0.15),
    ({"adapter_type": "LOKR"}, 0.15),
    ({"adapter_type": "LOHA"}, 0.25),
]


@pytest.mark.parametrize("gradient_checkpointing", [True, False])
@pytest.mark.parametrize(("fields", "off"), STEPS)
def test_step_holds_what_is_counted(fields: dict[str, Any], off: float, gradient_checkpointing: bool) -> None:
    config = TrainConfig(**fields, gradient_checkpointing=gradient_checkpointing)
    parts = {part.name: part.size_bytes for part in mapped(config, TWO_OF_EACH, 768).parts()}
    counted = parts["activations"] + parts["workspace"] + parts["gradients"] - LIBRARIES
    real = step_bytes(TWO_OF_EACH, config, side_px=768, text_tokens=512)
    assert counted == pytest.approx(real, rel=off)
