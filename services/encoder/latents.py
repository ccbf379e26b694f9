"""From latents in the object store to a picture beside them: what previews need of the VAE.

Legend: C latent channels (16), h/w latent height and width.
"""

from __future__ import annotations

import io
from functools import partial

import torch
from torch import Tensor

from services.common import cache
from services.common.cache import CachedObject
from services.common.errors import InvalidInput
from services.common.object_store import ObjectStore
from services.common.safetensors_header import NotSafetensors, Source, read_header
from services.common.tensor_file import read_tensor
from services.encoder.models import ModelThread

LATENT_CHANNELS = 16
LATENT_SIDES = range(2, 257, 2)  # up to 2048 px


def decode_to_png(store: ObjectStore, models: ModelThread, key: str) -> CachedObject:
    """Decode the latents under `key`, a safetensors object, into a PNG beside them."""
    source = Source(size_bytes=store.size_bytes(key), read=partial(store.get_range, key))
    latents_Chw = read_latents(source)
    picture = models.run(lambda models: models.decode_latents(latents_Chw))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    stored = store.put(f"{key}.png", buffer.getvalue(), content_type="image/png")
    return CachedObject(key=stored.key, digest=stored.digest, size_bytes=stored.size_bytes)


def read_latents(source: Source) -> Tensor:
    """The tensor `latents` (16, h, w) of a safetensors file; raises `InvalidInput` when there is no such thing.

    Nothing else of the file is read, and nothing at all before its header says that it is one.
    """
    try:
        entry = read_header(source).tensors.get(cache.LATENTS)
    except NotSafetensors as error:
        raise _refusal(f"the object is no safetensors file: {error}") from error
    if not entry:
        raise _refusal(f"the object has no tensor {cache.LATENTS!r}")
    channels, *sides = entry.shape or (0,)
    shaped = channels == LATENT_CHANNELS and len(sides) == 2 and all(side in LATENT_SIDES for side in sides)
    if not shaped or not entry.is_floating_point:
        raise _refusal(f"latents have shape {entry.shape} and type {entry.dtype}")
    try:
        latents_Chw = read_tensor(source, entry)
    except NotSafetensors as error:
        raise _refusal(f"the object {error}") from error
    if not torch.isfinite(latents_Chw).all():
        raise _refusal("latents have a number that is not finite")
    return latents_Chw


def _refusal(what: str) -> InvalidInput:
    return InvalidInput(
        what,
        reason="LATENTS_INVALID",
        remedy=f"Write finite floating-point latents of shape (16, height/8, width/8) in model space, sides even and "
        f"from 2 to 256, as {cache.LATENTS!r} of a safetensors file.",
    )
