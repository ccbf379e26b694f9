"""Which samples of a dataset are kept from training, to measure on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from services.common.cache import CachedSample
from services.common.errors import FieldViolation, InvalidInput

Samples = tuple[CachedSample, ...]


def split(samples: Sequence[CachedSample], share: float, seed: int) -> tuple[Samples, Samples]:
    """The samples to train on and those to hold out, both in their order; with a share of 0 none is held out.

    Which ones is a matter of their names and the seed alone, so a job that starts again holds out the same. At least
    one sample is on each side; raises `InvalidInput` where that cannot be.
    """
    if share == 0:
        return tuple(samples), ()
    refuse_too_few(len(samples), share)
    count = min(max(round(share * len(samples)), 1), len(samples) - 1)
    in_order_of_hash = sorted(range(len(samples)), key=lambda index: _hash(seed, samples[index].sample_name))
    chosen = set(in_order_of_hash[:count])
    training = tuple(sample for index, sample in enumerate(samples) if index not in chosen)
    return training, tuple(samples[index] for index in sorted(chosen))


def _hash(seed: int, sample_name: str) -> bytes:
    return hashlib.blake2b(f"held-out {seed} {sample_name}".encode(), digest_size=16).digest()


def refuse_too_few(count: int, share: float) -> None:
    """Raise `InvalidInput` for a dataset of so many samples of which no share can be held out."""
    if not share or count >= 2:
        return
    problem = f"leaves nothing to train on: the dataset has {count} sample{'s' * (count != 1)}"
    raise InvalidInput(
        f"held_out_share {problem}",
        reason="DATASET_TOO_SMALL",
        remedy="Set held_out_share to 0, add samples, or give a held-out dataset.",
        violations=(FieldViolation(field="config.held_out_share", description=problem),),
    )
