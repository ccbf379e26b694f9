"""One measure for LoRA files of any trainer: the project's held-out loss with the file loaded by diffusers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel

from services.common.cache import read_manifest
from services.common.object_store import ObjectStore
from services.trainer.config import TrainConfig
from services.trainer.config.choices import GuidanceMode
from services.trainer.data.cached_dataset import CachedDataset
from services.trainer.transformer import prepared
from services.trainer.validation import held_out_loss

ADAPTER = "measured"
GUIDANCE_SCALE = 3.5
BYPASS = TrainConfig(batch_size=8)
GUIDED = TrainConfig(batch_size=8, guidance=GuidanceMode.FIXED, guidance_scale=GUIDANCE_SCALE)


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The held-out loss under both ways that a transformer may be told guidance."""

    bypass: float
    """Without the guidance embedding, as the trainer measures by default."""
    guided: float
    """Told `GUIDANCE_SCALE`, as diffusers' script trains."""


class HeldOut:
    """The held-out samples, and a base of its own to load LoRA files into."""

    def __init__(self, model: Path, store: ObjectStore, tenant: str, manifest_digest: str) -> None:
        manifest = read_manifest(store, tenant, manifest_digest)
        self._dataset = CachedDataset(store, manifest, manifest.samples)
        base = FluxTransformer2DModel.from_pretrained(model, subfolder="transformer", dtype=torch.float32)
        self._transformer = prepared(base).eval()

    def losses(self, lora: Path | None = None) -> Losses:
        """Both losses with a LoRA file, or of the base."""
        if lora is None:
            return self._losses()
        self._transformer.load_lora_adapter(
            lora.parent, weight_name=lora.name, prefix="transformer", adapter_name=ADAPTER
        )
        try:
            return self._losses()
        finally:
            self._transformer.delete_adapters(ADAPTER)

    def _losses(self) -> Losses:
        bypass, guided = (
            held_out_loss(self._transformer, self._dataset, config, lambda: None) for config in (BYPASS, GUIDED)
        )
        return Losses(bypass=bypass, guided=guided)
