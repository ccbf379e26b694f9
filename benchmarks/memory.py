"""GPU memory of a training step at its peak, configuration by configuration: what the estimate is held against.

    python -m benchmarks.memory --out DIR [--device cuda --scale full]

The trainer's own step on random weights, two steps each: the optimizer's state is there from the second on. Writes
DIR/memory-<device>-<scale>.json; without a GPU the figures are None.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel

from benchmarks.measure import Failure, PeakMemory, allocated_gb, attempted, peak_memory, reset_peak
from benchmarks.scales import SCALES, Scale
from benchmarks.training import random_transformer, synthetic_batch
from services.trainer.adapters.adapter import adapter_parameters, attached
from services.trainer.config import TrainConfig
from services.trainer.flow_matching import Batch
from services.trainer.train import Training
from services.trainer.transformer import prepared

STEPS = 2
PLAIN: Mapping[str, Any] = {"rank": 16, "alpha": 16.0, "batch_size": 1, "gradient_checkpointing": True}
KEPT: Mapping[str, Any] = {"gradient_checkpointing": False}
# (index of the scale's resolution, fields); the largest last, so that one that does not fit costs no other.
CASES: Sequence[tuple[int, Mapping[str, Any]]] = (
    (0, {}),
    (-1, {}),
    (-1, {"rank": 32, "alpha": 32.0}),
    (-1, {"batch_size": 2}),
    (-1, {"batch_size": 4}),
    (-1, {"ema_decay": 0.99}),
    (-1, {"optimizer": "ADAMW_8BIT"}),
    (-1, {"optimizer": "PRODIGY", "learning_rate": 1.0}),
    (-1, {"optimizer": "ADAFACTOR"}),
    (-1, {"targets": "ALL_LINEAR"}),
    (-1, {"adapter_type": "LOKR"}),
    (-1, {"adapter_type": "DORA"}),
    (0, {"adapter_type": "LOHA", "rank": 8, "alpha": 8.0}),
    (0, {"batch_size": 4}),
    (0, KEPT),
    (0, {"targets": "ALL_LINEAR", **KEPT}),
    (0, {"batch_size": 2, **KEPT}),
    (-1, KEPT),
)


@dataclass(frozen=True, kw_only=True)
class MemoryFigures:
    """One configuration; memory in units of 1e9 bytes, None without a GPU."""

    resolution_px: int
    changed: dict[str, Any]
    """What differs from rank 16, batch 1, AdamW, IMAGE_STREAM and gradient checkpointing."""
    adapter_parameters: int
    before_gb: float | None
    """Allocated with the base alone."""
    between_steps_gb: float | None
    """Allocated after the last step, the base included: adapter and optimizer state, no activations."""
    peak: PeakMemory | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write. Returns 2 when there is no such device."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the JSON file")
    parser.add_argument("--device", default="cuda", help="torch device (default: %(default)s)")
    parser.add_argument("--scale", choices=sorted(SCALES), default="full", help="sizes (default: %(default)s)")
    options = parser.parse_args(arguments)
    device, scale = torch.device(options.device), SCALES[options.scale]
    if device.type == "cuda" and not torch.cuda.is_available():
        print("benchmarks.memory: torch sees no CUDA GPU", file=sys.stderr)
        return 2
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    transformer = prepared(random_transformer(scale.transformer, device))
    cases = [_case(transformer, scale, scale.resolutions_px[index], changed) for index, changed in CASES]
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": name,
        "torch": torch.__version__,
        "scale": scale.name,
        "t5_tokens": scale.t5_tokens,
        "steps": STEPS,
        "cases": cases,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"memory-{name.lower().replace(' ', '-')}-{scale.name}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    for case in cases:
        print(json.dumps(case))
    return 0


def _case(
    transformer: FluxTransformer2DModel, scale: Scale, resolution_px: int, changed: Mapping[str, Any]
) -> dict[str, Any]:
    measured = attempted(lambda: memory(transformer, scale, resolution_px, changed))
    if isinstance(measured, Failure):
        return {"resolution_px": resolution_px, "changed": dict(changed), **asdict(measured)}
    return asdict(measured)


def memory(
    transformer: FluxTransformer2DModel, scale: Scale, resolution_px: int, changed: Mapping[str, Any]
) -> MemoryFigures:
    """Two steps of one configuration, on an otherwise empty device."""
    config = TrainConfig.model_validate({**PLAIN, **changed})
    if config.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    else:
        transformer.disable_gradient_checkpointing()
    batch = _batch(scale, resolution_px, config.batch_size)
    reset_peak(transformer.device)
    before_gb = allocated_gb(transformer.device)
    with attached(transformer, config):
        parameters = sum(each.numel() for each in adapter_parameters(transformer).values() if each.requires_grad)
        training = Training(transformer, config, STEPS)
        for _ in range(STEPS):
            training.step([batch])
        between_steps_gb = allocated_gb(transformer.device)
        del training
    return MemoryFigures(
        resolution_px=resolution_px,
        changed=dict(changed),
        adapter_parameters=parameters,
        before_gb=before_gb,
        between_steps_gb=between_steps_gb,
        peak=peak_memory(transformer.device),
    )


def _batch(scale: Scale, resolution_px: int, size: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    one = [vars(synthetic_batch(scale, resolution_px, generator)) for _ in range(size)]
    names = [name for name, value in one[0].items() if isinstance(value, torch.Tensor)]
    return Batch(**{name: torch.cat([each[name] for each in one]) for name in names})


if __name__ == "__main__":
    sys.exit(main())
