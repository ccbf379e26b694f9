"""The table of presets in docs/adapters.md: modules, parameters and file sizes on FLUX.1-dev, counted without weights.

python -m tools.target_table
"""

from __future__ import annotations

import torch
from diffusers import FluxTransformer2DModel

from services.common.base_check import FLUX_1_DEV_CONFIG
from services.trainer.adapters.adapter import adapter_layers, adapter_parameters, attached
from services.trainer.config import TrainConfig
from services.trainer.config.choices import AdapterType, TargetPreset


def count(transformer: FluxTransformer2DModel, config: TrainConfig) -> tuple[int, int, int]:
    """Modules that such a job adapts, numbers that it trains, and how many of those are lengths of DoRA."""
    with attached(transformer, config):
        numbers = {name: parameter.numel() for name, parameter in adapter_parameters(transformer).items()}
        lengths = sum(count for name, count in numbers.items() if "magnitude" in name)
        return len(adapter_layers(transformer)), sum(numbers.values()), lengths


def table(transformer: FluxTransformer2DModel, rank: int = 16) -> str:
    """Markdown with a row for each type and preset."""
    rows = ["| type | targets | modules | parameters | file FP32 | file BF16 |", "|---|---|---|---|---|---|"]
    for kind in AdapterType:
        for preset in TargetPreset:
            modules, numbers, lengths = count(transformer, TrainConfig(rank=rank, adapter_type=kind, targets=preset))
            # Lengths keep float32 in any file.
            sizes = " | ".join(f"{(size * (numbers - lengths) + 4 * lengths) / 1e6:.0f} MB" for size in (4, 2))
            rows.append(f"| {kind} | {preset} | {modules} | {numbers / 1e6:.1f} M | {sizes} |")
    return "\n".join(rows)


if __name__ == "__main__":
    with torch.device("meta"):
        flux_dev = FluxTransformer2DModel(**FLUX_1_DEV_CONFIG)
    flux_dev.requires_grad_(False)
    print(table(flux_dev))
