"""From latents in the object store to a picture beside them: what previews need of the VAE.

Legend: C latent channels (16), h/w latent height and width.
"""

from __future__ import annotations

import io

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from services.common import cache
from services.common.cache import CachedObject
from services.common.errors import InvalidInput
from services.common.object_store import ObjectStore
from services.encoder.models import ModelThread

LATENT_CHANNELS = 16
LATENT_SIDES = range(2, 257, 2)  # up to 2048 px


def decode_to_png(store: ObjectStore, models: ModelThread, key: str) -> CachedObject:
    """Decode the latents under `key`, a safetensors object, into a PNG beside them."""
    latents_Chw = read_latents(store.get(key))
    picture = models.run(lambda models: models.decode_latents(latents_Chw))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    stored = store.put(f"{key}.png", buffer.getvalue(), content_type="image/png")
    return CachedObject(key=stored.key, digest=stored.digest, size_bytes=stored.size_bytes)


def read_latents(data: bytes) -> Tensor:
    """The tensor `latents` (16, h, w) of a safetensors file; raises `InvalidInput` when there is no such thing."""
    try:
        latents_Chw: Tensor = safetensors.torch.load(data)[cache.LATENTS]
    except (SafetensorError, KeyError) as error:
        raise InvalidInput(
            f"the object is not a safetensors file with a tensor {cache.LATENTS!r} ({error})",
            reason="LATENTS_INVALID",
            remedy="Write latents of shape (16, height/8, width/8) in model space under that name.",
        ) from error
    channels, *sides = latents_Chw.shape or (0,)
    shaped = channels == LATENT_CHANNELS and len(sides) == 2 and all(side in LATENT_SIDES for side in sides)
    if not shaped or not latents_Chw.is_floating_point() or not torch.isfinite(latents_Chw.float()).all():
        raise InvalidInput(
            f"latents have shape {tuple(latents_Chw.shape)} and type {latents_Chw.dtype}, or a number is not finite",
            reason="LATENTS_INVALID",
            remedy="Write finite floating-point latents of shape (16, height/8, width/8), sides even, from 2 to 256.",
        )
    return latents_Chw
