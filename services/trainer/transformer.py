"""The base transformer: loaded once, frozen, its guidance embedding bypassed, resident for all jobs of a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffusers import FluxTransformer2DModel
from diffusers.models.embeddings import CombinedTimestepTextProjEmbeddings
from torch import Tensor, nn

from services.common.base_model import base_folder, pick_device, pick_dtype

if TYPE_CHECKING:  # see services/common/base_model.py
    from services.common.settings import ServiceSettings


def load_transformer(settings: ServiceSettings) -> FluxTransformer2DModel:
    """Load FLUX's transformer frozen, on its device and in its precision, ready for adapters."""
    device = pick_device(settings.device)
    dtype = pick_dtype(settings.dtype, device)
    folder = base_folder(settings, ("transformer",))
    transformer = FluxTransformer2DModel.from_pretrained(
        folder,
        subfolder="transformer",
        dtype=dtype,
        device_map={"": device},  # straight to the device, shard by shard: never 24 GB of host memory
    )
    return prepared(transformer)


def prepared(transformer: FluxTransformer2DModel) -> FluxTransformer2DModel:
    """Freeze a transformer and bypass its guidance embedding."""
    transformer.requires_grad_(False)
    transformer.train()
    if transformer.config.guidance_embeds:
        transformer.time_text_embed = GuidanceBypass(transformer.time_text_embed)
    return transformer


class GuidanceBypass(nn.Module):
    """Conditioning without guidance: timestep embedding + pooled text embedding, sharing the weights of the original.

    dev was distilled to imitate guided sampling, which is not what training data looks like; without the guidance term
    the adapter learns the data itself. Swapped in once at load, since a patch around every forward is neither safe with
    threads nor friendly to torch.compile.
    """

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.time_proj = original.time_proj
        self.timestep_embedder = original.timestep_embedder
        self.text_embedder = original.text_embedder

    def forward(self, timestep: Tensor, pooled_BD: Tensor) -> Tensor:
        """Conditioning (B, hidden) of timesteps in 0..1000 and pooled text embeddings."""
        conditioning: Tensor = CombinedTimestepTextProjEmbeddings.forward(self, timestep, pooled_BD)
        return conditioning
