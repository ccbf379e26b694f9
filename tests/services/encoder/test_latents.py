"""Latents that lie in the store become a picture beside them; whatever else lies there is refused."""

from __future__ import annotations

import io
import random

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
        safetensors.torch.save({"latents": torch.zeros(16, 8, 8, dtype=torch.int32)}),
        safetensors.torch.save({"latents": torch.full((16, 8, 8), torch.nan)}),
        safetensors.torch.save({"latents": torch.zeros(16, 258, 8)}),
    ],
    ids=["nothing", "text", "other name", "batch", "four channels", "integers", "not finite", "too high"],
)
def test_latents_of_another_form_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_latents(Source.of(data))
    assert caught.value.reason == "LATENTS_INVALID"


def test_latents_beside_metadata_of_null_are_refused_in_words() -> None:
    header = b'{"__metadata__":null,"latents":{"dtype":"F32","shape":[16,2,2],"data_offsets":[0,256]}}'
    with pytest.raises(InvalidInput, match="no safetensors file: its __metadata__ is not an object of texts"):
        read_latents(Source.of(len(header).to_bytes(8, "little") + header + bytes(256)))


def test_nothing_is_read_of_what_lies_beside_the_latents() -> None:
    data: bytes = safetensors.torch.save({"a": torch.zeros(1 << 20), "latents": torch.ones(16, 4, 4)})
    read: list[int] = []

    def part(offset: int, length: int) -> bytes:
        read.append(length)
        return data[offset : offset + length]

    assert torch.equal(read_latents(Source(size_bytes=len(data), read=part)), torch.ones(16, 4, 4))
    assert sum(read) < 5000


def test_changed_latents_in_the_store_are_decoded_or_refused(
    store: ObjectStore, tenant: str, model_thread: ModelThread
) -> None:
    data = safetensors.torch.save({cache.LATENTS: torch.zeros(16, 2, 2)}, {"format": "pt"})
    texts = [b"null", b"[]", b'{"format":1}', b'{"format":"pt"}', b'"pt"']
    files = [data[:size] for size in range(0, len(data), 97)]
    for text in texts:
        header = data[8 : 8 + int.from_bytes(data[:8], "little")].replace(b'{"format":"pt"}', text)
        files.append(len(header).to_bytes(8, "little") + header + data[-256:])
    for number in range(24):
        changed = bytearray(data)
        changed[random.Random(number).randrange(len(data) - 256)] ^= 1 << number % 8  # noqa: S311
        files.append(bytes(changed))
    answers = []
    for number, file in enumerate(files):
        key = store.put(f"{tenant}/{number}", file).key
        try:
            answers.append(decode_to_png(store, model_thread, key).key)
        except InvalidInput as error:
            answers.append(error.reason)
    assert {answer for answer in answers if not answer.endswith(".png")} == {"LATENTS_INVALID"}
    assert answers.count("LATENTS_INVALID") < len(answers)
