"""Two thousand changed adapters: each is read or refused as the user's fault, at creation and by the worker."""

from __future__ import annotations

import json
import random
import resource
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from services.common.errors import InvalidInput
from services.common.object_store import ObjectStore
from services.common.safetensors_header import Entry, Header
from services.trainer.adapters.outline import outline_of
from services.trainer.adapters.uploads import outline_of_warm_start
from services.trainer.adapters.warm_start import read_adapter
from tests.services.trainer.adapters.test_file_forms import FORMS, LYCORIS, REFUSED, file_of, lokr, pair

DESCRIPTION = json.dumps({"transformer.lora_alpha": 4, "transformer.alpha_pattern": {"attn.to_q": 2}})
SEEDS = [
    file_of(tensors, **{} if any(key.endswith(".alpha") for key in tensors) else {"lora_adapter_metadata": DESCRIPTION})
    for tensors, _ in FORMS.values()
]
SEEDS *= 3
SEEDS += [file_of(tensors, **metadata) for tensors, metadata, _, _ in REFUSED.values()]
SEEDS += [file_of(lokr("lycoris_transformer_blocks_1_attn_to_q"), **LYCORIS), file_of(pair("lora_te1_x"))]
ODD: list[Any] = [None, True, 0, -1, 1, 2**31, 2**63, 2**70, 1.5, "", "F32", "F8_E4M3", "BF16", "I64", "F4"]
ODD += ["\ud800", "\x00", "a" * 5000, [], [0], [1, 1], [2**40, 2**40], [-1, 4], [0, 0], {}, {"a": "b"}, [[]], "9" * 400]
NAMES = ["__metadata__", "alpha", "lora_unet_x.alpha", "lora_te1_a.alpha", "x", "proj_out.lokr_w1"]
DESCRIPTIONS = [*map(json.dumps, ODD), "{", '{"transformer.lora_alpha": NaN}', DESCRIPTION[:-2], DESCRIPTION]


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def joined(header: dict[str, Any], tensors: bytes, *, size: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return (len(text) if size is None else size).to_bytes(8, "little") + text + tensors


def edited(draw: random.Random, data: bytes) -> bytes:
    """The file with one to three edits of its header's JSON."""
    header, tensors = split(data)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        name = draw.choice(list(header) or ["x"])
        match draw.randrange(8):
            case 0:
                header[name] = draw.choice(ODD)
            case 1:
                header.pop(name, None)
            case 2:
                header[draw.choice(NAMES)] = header.get(name)
            case 3 if isinstance(header.get(name), dict):
                header[name][draw.choice(["dtype", "shape", "data_offsets", "lora_adapter_metadata"])] = draw.choice(
                    ODD
                )
            case 4 if isinstance(header.get(name), dict) and isinstance(header[name].get("shape"), list):
                draw.shuffle(header[name]["shape"])
            case 5:
                other = draw.choice(list(header) or ["x"])
                header[name], header[other] = header.get(other), header.get(name)
            case 6:
                header[name.replace(draw.choice("_.ab0"), draw.choice("_.Z9"), 1)] = header.pop(name, None)
            case _:
                header["__metadata__"] = {"lora_adapter_metadata": draw.choice(DESCRIPTIONS)}
    return joined(header, tensors, size=draw.choice([None] * 9 + [2**40]))


def flipped(draw: random.Random, data: bytes) -> bytes:
    """The file with some bits turned over, in its header or in its tensors."""
    changed = bytearray(data)
    header = 8 + int.from_bytes(data[:8], "little")
    begin, end = draw.choice([(0, header), (header, len(data)), (0, len(data))])
    for _ in range(draw.randint(1, 4)):
        changed[draw.randrange(begin, end)] ^= 1 << draw.randrange(8)
    return bytes(changed)


def rewritten(draw: random.Random, data: bytes) -> bytes:
    """The same file with its header in another order, another prefix, and more metadata."""
    header, tensors = split(data)
    names = draw.sample(list(header), len(header))
    prefix = draw.choice(["", "", "transformer.", "base_model.model."])
    header = {name if name == "__metadata__" else prefix + name: header[name] for name in names}
    header.setdefault("__metadata__", {})["note"] = draw.choice(["", "{" * 99, "\x00", "\u00e9"])
    return joined(header, tensors)


def mutated(number: int) -> bytes:
    """The file of this number."""
    draw = random.Random(number)  # noqa: S311
    data = draw.choice(SEEDS)
    match number % 5:
        case 0 | 1:
            return edited(draw, data)
        case 2:
            return flipped(draw, data)
        case 3:
            return rewritten(draw, data)
    return data[: draw.randrange(len(data))] + bytes(draw.choice([0, 0, 1, 100]))


def refused(action: Callable[[], object]) -> InvalidInput | None:
    """How an action refuses a file; None when it takes it. Whatever else it raises comes out."""
    try:
        action()
    except InvalidInput as error:
        return error
    return None


def test_every_damaged_file_is_read_or_refused_as_the_users_fault() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answers = [refused(partial(read_adapter, mutated(number))) for number in range(2000)]
    assert 200 < answers.count(None) < 1800
    assert {answer.reason for answer in answers if answer} == {"WARM_START_UNREADABLE"}
    assert max(len(answer.message) for answer in answers if answer) < 2000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_what_creation_refuses_of_them_the_worker_refuses_too(store: ObjectStore, tenant: str) -> None:
    answers = []
    for number in range(0, 2000, 37):
        uri = store.uri(store.put(f"{tenant}/jobs/job-{'0' * 20}/{number}/lora.safetensors", mutated(number)).key)
        answers.append(refused(partial(outline_of_warm_start, store, tenant, uri)))
        assert not answers[-1] or refused(partial(read_adapter, mutated(number)))
    assert {answer.reason for answer in answers if answer} == {"WARM_START_UNREADABLE"}
    assert None in answers


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.float64])
def test_every_float_is_widened_tensor_by_tensor(dtype: torch.dtype) -> None:
    tensors: dict[str, Tensor] = {name: tensor.to(dtype) for name, tensor in pair("proj_out").items()}
    file = read_adapter(safetensors.torch.save(tensors))
    assert {name: tensor.dtype for name, tensor in file.tensors.items()} == dict.fromkeys(tensors, torch.float32)
    assert all(torch.equal(file.tensors[name], tensor.float()) for name, tensor in tensors.items())


def test_file_that_would_be_too_large_in_float32_is_refused_by_its_header() -> None:
    sides = {"A": (1 << 16, 1 << 15), "B": (1 << 15, 1 << 16)}
    entries = {
        f"proj_out.lora_{side}.weight": Entry(dtype="F8_E4M3", shape=shape, begin=0, end=0)
        for side, shape in sides.items()
    }
    with pytest.raises(ValueError, match="17,179,869,184 bytes in float32"):
        outline_of(Header(tensors=entries, metadata={}))
