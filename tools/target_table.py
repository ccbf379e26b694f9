"""The table of presets in docs/adapters.md: modules, parameters and file sizes on FLUX.1-dev, counted without weights.

python -m tools.target_table
"""

from __future__ import annotations

import torch
from diffusers import FluxTransformer2DModel

from services.trainer.adapters.adapter import adapter_layers, adapter_parameters, attached
from services.trainer.config import TrainConfig
from services.trainer.config.choices import AdapterType, TargetPreset

FLUX_DEV = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 56, 56),
}


def count(transformer: FluxTransformer2DModel, config: TrainConfig) -> tuple[int, int]:
    """Modules that such a job adapts, and numbers that it trains."""
    with attached(transformer, config):
        numbers = sum(parameter.numel() for parameter in adapter_parameters(transformer).values())
        return len(adapter_layers(transformer)), numbers


def table(transformer: FluxTransformer2DModel, rank: int = 16) -> str:
    """Markdown with a row for each type and preset."""
    rows = ["| type | targets | modules | parameters | file FP32 | file BF16 |", "|---|---|---|---|---|---|"]
    for kind in AdapterType:
        for preset in TargetPreset:
            modules, numbers = count(transformer, TrainConfig(rank=rank, adapter_type=kind, targets=preset))
            sizes = " | ".join(f"{size * numbers / 1e6:.0f} MB" for size in (4, 2))
            rows.append(f"| {kind} | {preset} | {modules} | {numbers / 1e6:.1f} M | {sizes} |")
    return "\n".join(rows)


if __name__ == "__main__":
    with torch.device("meta"):
        flux_dev = FluxTransformer2DModel(**FLUX_DEV)
    flux_dev.requires_grad_(False)
    print(table(flux_dev))
