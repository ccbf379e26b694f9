"""What the owner of a job may not have meant or may not know, told before the first step. Stops nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from services.common.cache import CachedSample
from services.trainer.checkpoints.retention import thinned
from services.trainer.config import TrainConfig
from services.trainer.config.unused import unused
from services.trainer.data.job_data import Data
from services.trainer.jobs import JobWarning

SHORT_RUN_STEPS = 100
WASTE_TOLD = 1.25
"""Batches of an epoch, as a multiple of those that full ones would make."""
NAMES_SHOWN = 5
Buckets = Counter[tuple[int, int]]


def cautions(config: TrainConfig, data: Data, total_steps: int) -> list[JobWarning]:
    """Everything worth telling of a configuration and the data that it meets."""
    warnings = [JobWarning(reason="UNUSED_SETTING", message=text) for text in unused(config, total_steps)]
    warnings += [*data.trigger_warnings(config), *thinned(config, total_steps)]
    if total_steps < SHORT_RUN_STEPS:
        arithmetic = data.arithmetic(config, total_steps)
        message = f"{arithmetic}; under {SHORT_RUN_STEPS} steps a LoRA learns little: raise steps or epochs"
        warnings.append(JobWarning(reason="SHORT_RUN", message=message))
    if not data.manifest_digest:  # while samples are arriving, nobody knows them all
        return warnings
    if message := small_batches(data.training.samples, config.batch_size):
        warnings.append(JobWarning(reason="SMALL_BATCHES", message=message))
    return warnings + overlap(data)


def overlap(data: Data) -> list[JobWarning]:
    """A warning of images that are both measured on and learnt, if there are any; all samples must be known."""
    message = trained_and_held_out(data.training.samples, data.held_out.samples) if data.held_out else ""
    return [JobWarning(reason="HELD_OUT_TRAINED", message=message)] if message else []


def small_batches(samples: Sequence[CachedSample], batch_size: int) -> str:
    """How many images are in batches that their size does not fill, what that costs and what to do; empty for few."""
    buckets: Buckets = Counter()
    for sample in samples:
        for view in sample.views:
            buckets[view.height_px, view.width_px] += sample.repeats
    if not _wasteful(buckets, batch_size):
        return ""
    shown, batches = buckets.total(), _batches(buckets, batch_size)
    in_small = sum(count % batch_size for count in buckets.values())
    better = next(size for size in range(batch_size - 1, 0, -1) if not _wasteful(buckets, size))
    return (
        f"{in_small} of {shown} images are in batches of fewer than {batch_size}: a batch has images of one size, and "
        f"there are {len(buckets)} sizes. An epoch takes {batches} batches where {-(-shown // batch_size)} would do, "
        f"each of {shown / batches:.1f} images on average; use a batch_size of {better}, or encode with a larger "
        "bucket_step_px, which gives fewer sizes"
    )


def _wasteful(buckets: Buckets, batch_size: int) -> bool:
    full = -(-buckets.total() // batch_size)
    return _batches(buckets, batch_size) > WASTE_TOLD * full


def _batches(buckets: Buckets, batch_size: int) -> int:
    return sum(-(-count // batch_size) for count in buckets.values())


def trained_and_held_out(training: Iterable[CachedSample], held_out: Sequence[CachedSample]) -> str:
    """Which held-out images are trained on too, by their files or by what the encoder made of them; empty for none."""
    learnt: dict[str, str] = {}
    for sample in training:
        for mark in _marks(sample):
            learnt.setdefault(mark, sample.sample_name)
    found = []
    for sample in sorted(held_out, key=lambda sample: sample.sample_name):
        twin = next((learnt[mark] for mark in _marks(sample) if mark in learnt), None)
        if twin is not None:
            found.append(sample.sample_name if twin == sample.sample_name else f"{sample.sample_name} (as {twin})")
    if not found:
        return ""
    more = f" and {len(found) - NAMES_SHOWN} more" if len(found) > NAMES_SHOWN else ""
    return (
        f"{len(found)} of {len(held_out)} held-out images {'is' if len(found) == 1 else 'are'} trained on too: "
        f"{', '.join(found[:NAMES_SHOWN])}{more}; the held-out loss says less of what the adapter has not seen: take "
        "them out of one of the two"
    )


def _marks(sample: CachedSample) -> set[str]:
    latents = {variant.latents.digest for view in sample.views for variant in view.variants}
    return latents | {sample.content_digest} - {""}
