"""From the tensors of a file to those of the job's adapter: one layer after the other, in float32.

Fused layers of the reference model are divided among diffusers' modules: their outputs are, so factors that give
outputs, and lengths, are divided by rows, and those that take inputs are the same for all.

Legend: O outputs of a layer, I inputs, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from services.trainer.adapters.file_names import ALPHA, DORA_SCALE, LENGTHS, LOHA, LOKR, A, B, Layer
from services.trainer.adapters.outline import LARGEST_ALPHA

Parts = dict[str, Tensor]


def layer_scale(layer: Layer, parts: Mapping[str, Tensor], told: float | None) -> float:
    """What a layer's change is multiplied by: by its alpha tensor, or as the header told. Raises `ValueError`."""
    if ALPHA not in parts:
        return 1.0 if told is None else told
    alpha = float(parts[ALPHA].reshape(()))
    if not 0 < abs(alpha) <= LARGEST_ALPHA and not _is_whole(parts):
        raise ValueError(f"alpha of {layer.title} is {alpha:g}")
    scale = alpha / rank if (rank := _rank(parts)) else 1.0
    if told is not None and abs(scale - told) > 1e-3 * abs(told):
        raise ValueError(f"{layer.title} is scaled by {scale:g} with its alpha tensor and by {told:g} with its header")
    return scale


def modules_tensors(layer: Layer, parts: Mapping[str, Tensor]) -> dict[str, Parts]:
    """What each module of a layer gets, by the names of `adapter_parameters` without the module's."""
    if A in parts:
        found = _of_lora(layer, parts)
    elif "hada_w1_a" in parts:
        found = _of_loha(layer, parts)
    else:
        found = _of_lokr(layer, parts)
    return {module: part for module, part in zip(layer.modules, found, strict=True) if part}


def _is_whole(parts: Mapping[str, Tensor]) -> bool:
    """Whether it is a LoKr of two whole matrices, whose alpha LyCORIS writes and does not use."""
    return "lokr_w1" in parts and "lokr_w2" in parts


def _rank(parts: Mapping[str, Tensor]) -> int:
    """The rank that alpha is divided by; 0 for a LoKr that has none."""
    sides = ((A, 0), ("hada_w1_b", 0), ("lokr_w2_b", 0), ("lokr_w1_b", 0))
    return next((parts[name].shape[axis] for name, axis in sides if name in parts), 0)


def _of_lora(layer: Layer, parts: Mapping[str, Tensor]) -> list[Parts]:
    a_RI, lengths = parts[A], parts.get(LENGTHS, parts.get(DORA_SCALE))
    rows = _divided(layer, parts[B])
    if lengths is not None:
        divided = _divided(layer, lengths.reshape(-1))
        return [
            {"lora_A.weight": a_RI, "lora_B.weight": b_OR, "lora_magnitude_vector.weight": lengths_O}
            for b_OR, lengths_O in zip(rows, divided, strict=True)
        ]
    if len(rows) == 1:
        return [{"lora_A.weight": a_RI, "lora_B.weight": rows[0]}]
    return [
        {"lora_A.weight": a_RI[columns], "lora_B.weight": b_OR[:, columns]} if columns.any() else {}
        for b_OR, columns in zip(rows, _columns(rows), strict=True)
    ]


def _of_loha(layer: Layer, parts: Mapping[str, Tensor]) -> list[Parts]:
    left = {name: _divided(layer, parts[name]) for name in LOHA if name.endswith("_a")}
    return [
        {name: left[name][number] if name in left else parts[name] for name in LOHA}
        for number in range(len(layer.modules))
    ]


def _of_lokr(layer: Layer, parts: Mapping[str, Tensor]) -> list[Parts]:
    """Rows of a Kronecker product are divided with those of its first matrix, which is small and kept whole."""
    small = parts["lokr_w1"] if "lokr_w1" in parts else parts["lokr_w1_a"] @ parts["lokr_w1_b"]
    large = {name: parts[name] for name in LOKR if name.startswith("lokr_w2") and name in parts}
    return [{"lokr_w1": rows, **large} for rows in _divided(layer, small)]


def _divided(layer: Layer, tensor: Tensor) -> Sequence[Tensor]:
    """A layer's outputs, the first axis, in the order of diffusers and divided among its modules."""
    if layer.swapped:
        first, second = tensor.chunk(2)
        tensor = torch.cat([second, first])
    width = len(tensor) // sum(layer.shares)
    return torch.split(tensor, [share * width for share in layer.shares])


def _columns(rows: Sequence[Tensor]) -> list[Tensor]:
    """Of the parts of a fused product, the columns of B that each has; none for one whose rows are zero.

    Where every part has columns of its own they are told apart, as `kohya.py` puts them together. Otherwise each part
    takes the columns that its rows use: all of them in files of trainers that train the fused layer itself.
    """
    used = [b_OR.any(dim=0) for b_OR in rows]
    return _own_columns(used) or used


def _own_columns(used: Sequence[Tensor]) -> list[Tensor]:
    """Equal runs of columns, one a part, where no part uses another's; else nothing."""
    rank, count = len(used[0]), len(used)
    if rank % count:
        return []
    own = [torch.arange(rank) // (rank // count) == number for number in range(count)]
    apart = all(not (columns & ~mine).any() for columns, mine in zip(used, own, strict=True))
    return own if apart else []
