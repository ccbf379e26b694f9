"""Nested values with tensors in them as JSON and a flat mapping of tensors, and back: no pickle.

JSON has no tuples, no keys but text and no infinity, so these are wrapped:

    (0.9, 0.999)           {"tuple": [0.9, 0.999]}
    {0: 1, "lr": 2}        {"dict": [[0, 1], ["lr", 2]]}
    inf                    {"float": "inf"}
    a tensor               {"tensor": "0.exp_avg"}, its name in the mapping
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def packed(value: Any, tensors: dict[str, Tensor], name: str = "") -> Any:
    """The value as JSON; its tensors are put into `tensors`, each named after its place. Raises `TypeError`."""
    match value:
        case Tensor():
            tensors[name] = value
            return {"tensor": name}
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else {"float": str(value)}
        case tuple():
            return {"tuple": [packed(each, tensors, _below(name, at)) for at, each in enumerate(value)]}
        case list():
            return [packed(each, tensors, _below(name, at)) for at, each in enumerate(value)]
        case dict():
            if wrong := [key for key in value if type(key) not in {int, str}]:
                raise TypeError(f"{name or 'the value'} has the key {wrong[0]!r}, which is neither text nor a number")
            return {"dict": [[key, packed(each, tensors, _below(name, key))] for key, each in value.items()]}
    raise TypeError(f"{name or 'the value'} is a {type(value).__name__}, which a checkpoint does not hold")


def unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What was packed, with its very types. Raises `ValueError`, or `KeyError` when a tensor is missing."""
    if isinstance(value, list):
        return [unpacked(each, tensors) for each in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"tensor": str(name)}:
            return tensors[name]
        case {"float": str(text)}:
            return float(text)
        case {"tuple": list(items)}:
            return tuple(unpacked(each, tensors) for each in items)
        case {"dict": list(items)}:
            return {key: unpacked(each, tensors) for key, each in items}
    raise ValueError(f"a checkpoint's JSON has an unknown form: {sorted(value)[:3]}")


def _below(name: str, key: int | str) -> str:
    # In quotes unless it is a plain name: so that 0 is told from "0", and no two places have one name.
    own = key if isinstance(key, str) and key.isidentifier() else repr(key)
    return f"{name}.{own}" if name else own
