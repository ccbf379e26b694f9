"""One tensor of a safetensors file, read and widened on its own, after the header has been checked."""

from __future__ import annotations

import torch
from torch import Tensor

from services.common.safetensors_header import Entry, NotSafetensors, Source

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def read_tensor(source: Source, entry: Entry) -> Tensor:
    """A floating-point tensor in float32, in memory of its own; an empty one is not read.

    Raises `NotSafetensors` when the file is shorter than its header said, and what `source` raises.
    """
    if not entry.numbers:
        return torch.zeros(entry.shape)
    data = bytearray(source.read(entry.begin, entry.end - entry.begin))
    if len(data) != entry.end - entry.begin:
        raise NotSafetensors("it changed while it was read")
    return torch.frombuffer(data, dtype=_DTYPES[entry.dtype]).reshape(entry.shape).float()
