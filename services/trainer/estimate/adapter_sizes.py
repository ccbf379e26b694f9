"""What an adapter is made of, matrix by matrix, and what an optimizer keeps for each: arithmetic only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from services.trainer.config.choices import AdapterType, Optimizer
from services.trainer.config.fields import ConfigFields
from services.trainer.estimate.architecture import Linear

FLOAT = 4  # bytes; adapters train in float32 whatever the base's precision
SMALLEST_8BIT = 4096  # numbers; bitsandbytes keeps smaller matrices in 32 bits
BLOCK_8BIT = 256  # numbers that share a scale


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
    down, up = Matrix(rank, layer.inputs), Matrix(layer.outputs, rank, zero=True)
    match config.adapter_type:
        case AdapterType.LORA:
            return [down, up]
        case AdapterType.DORA:
            return [down, up, Matrix(layer.outputs, 1)]
        case AdapterType.LOHA:
            return [down, up, down, Matrix(layer.outputs, rank)]
        case AdapterType.LOKR:
            return _lokr(layer, rank, config.lokr_factor or -1)


def _lokr(layer: Linear, rank: int, factor: int) -> list[Matrix]:
    """Peft's division: a small matrix, and a larger one that is of low rank where that is smaller."""
    from peft.tuners.lokr.layer import factorization  # noqa: PLC0415 - seconds, which a server seldom needs

    small_in, large_in = factorization(layer.inputs, factor)
    small_out, large_out = factorization(layer.outputs, factor)
    small = Matrix(small_out, small_in, zero=True)
    if rank >= max(large_out, large_in) / 2:
        return [small, Matrix(large_out, large_in)]
    return [small, Matrix(large_out, rank), Matrix(rank, large_in)]


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
