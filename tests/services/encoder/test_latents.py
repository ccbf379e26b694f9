"""Latents that lie in the store become a picture beside them; whatever else lies there is refused."""

from __future__ import annotations

import io

import pytest
import safetensors.torch
import torch
from PIL import Image

from services.common import cache
from services.common.errors import InvalidInput
from services.common.object_store import ObjectStore
from services.common.safetensors_header import Source
from services.encoder.latents import decode_to_png, read_latents
from services.encoder.models import ModelThread


def test_latents_are_decoded_into_a_picture_beside_them(
    store: ObjectStore, tenant: str, model_thread: ModelThread
) -> None:
    latents_Chw = torch.randn(16, 8, 6, generator=torch.Generator().manual_seed(0))
    key = store.put(f"{tenant}/l", safetensors.torch.save({cache.LATENTS: latents_Chw})).key
    image = decode_to_png(store, model_thread, key)
    found = Image.open(io.BytesIO(store.get(image.key, digest=image.digest)))
    assert (image.key, found.format, found.size) == (f"{key}.png", "PNG", (48, 64))
    assert found.tobytes() == model_thread.models.decode_latents(latents_Chw).tobytes()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no safetensors",
        safetensors.torch.save({"other": torch.zeros(16, 8, 8)}),
        safetensors.torch.save({"latents": torch.zeros(1, 16, 8, 8)}),
        safetensors.torch.save({"latents": torch.zeros(4, 8, 8)}),
    ],
    ids=["nothing", "text", "other name", "batch", "four channels"],
)
def test_latents_of_another_form_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_latents(Source.of(data))
    assert caught.value.reason == "LATENTS_INVALID"
