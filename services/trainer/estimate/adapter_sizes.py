"""What an adapter is made of, matrix by matrix, and what an optimizer keeps for each: arithmetic only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from services.trainer.adapters.fit import layer_shapes
from services.trainer.config.choices import Optimizer
from services.trainer.config.fields import ConfigFields
from services.trainer.estimate.architecture import Linear

FLOAT = 4  # bytes; adapters train in float32 whatever the base's precision
SMALLEST_8BIT = 4096  # numbers; bitsandbytes keeps smaller matrices in 32 bits
BLOCK_8BIT = 256  # numbers that share a scale
_ZERO = ("lora_B.weight", "hada_w1_a", "lokr_w1")  # at the start, so that the adapter changes nothing


class Matrix(NamedTuple):
    """A trainable matrix. `zero` says that it begins with zeros, of which Prodigy keeps no copy."""

    rows: int
    columns: int
    zero: bool = False

    @property
    def numbers(self) -> int:
        """Numbers in it."""
        return self.rows * self.columns


def adapter_matrices(layers: Mapping[str, Linear], ranks: Mapping[str, int], config: ConfigFields) -> list[Matrix]:
    """Every matrix of the adapter that has these ranks on these layers."""
    return [matrix for name, rank in ranks.items() for matrix in _of_layer(layers[name], rank, config)]


def optimizer_bytes(matrices: Iterable[Matrix], optimizer: Optimizer) -> int:
    """What an optimizer keeps beside weights and gradients. `docs/optimization.md` has the same a number."""
    return sum(_state(matrix, optimizer) for matrix in matrices)


def _of_layer(layer: Linear, rank: int, config: ConfigFields) -> list[Matrix]:
    return [
        Matrix(shape[0], shape[1] if len(shape) > 1 else 1, zero=name in _ZERO)
        for name, shape in layer_shapes(layer, rank, config)
    ]


def _state(matrix: Matrix, optimizer: Optimizer) -> int:
    numbers = matrix.numbers
    match optimizer:
        case Optimizer.ADAMW | Optimizer.ADAMW_SCHEDULE_FREE:
            return 2 * FLOAT * numbers
        case Optimizer.ADAMW_8BIT:
            small = numbers < SMALLEST_8BIT
            return 2 * FLOAT * numbers if small else 2 * (numbers + FLOAT * math.ceil(numbers / BLOCK_8BIT))
        case Optimizer.PRODIGY:
            return (3 if matrix.zero else 4) * FLOAT * numbers
        case Optimizer.ADAFACTOR:
            return FLOAT * (numbers if matrix.columns == 1 else matrix.rows + matrix.columns)
        case Optimizer.LION:
            return FLOAT * numbers
