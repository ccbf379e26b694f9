"""One resolution, and the captions alone: the encoder's first and second encode beside the plain loop, in turns.

A round does all four once, so that whatever else the machine does hits each; every round has a tenant of its own, with
an empty cache, and every second one runs in the opposite order. Uploading the dataset is in none of the times.
"""

from __future__ import annotations

import statistics
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from diffusers import FluxPipeline
from torch import Tensor

from benchmarks.encoder_desk import EncoderDesk, uploaded
from benchmarks.measure import Durations, PeakMemory, durations, log, peak_memory, reset_peak
from benchmarks.pictures import CaptionedFile
from benchmarks.plain_loop import embedded, plain_loop, stored
from benchmarks.resident import ResidentMemory
from services.common.cache import ManifestPointer
from services.encoder.encoding import Progress
from services.encoder.stages import NO_TIME, Seconds

COMPARED = 4  # samples whose tensors are compared with the plain loop's
WARM_UP = 2  # samples that nobody times


@dataclass(frozen=True, kw_only=True)
class Run:
    """One way to encode all the samples, over all rounds."""

    seconds: Durations
    samples_per_s: float
    """By the median; a sample is an image with one caption."""
    cpu_s_a_sample: float
    """Time on cores of this process in the median round; the store's is not in it. Other programs hardly change it."""
    peak_resident_gb: float
    """Of the process, models included."""
    peak_memory: PeakMemory | None
    """Of the GPU."""
    thread_seconds: Seconds
    """Mean of a sample's time in each stage of the encoder: these overlap. Zero for the plain loop."""


@dataclass(frozen=True, kw_only=True)
class ResolutionFigures:
    """One resolution. Ratios are of speeds, 2 is twice as fast: medians over the rounds, `best` of the least times."""

    resolution_px: int
    plain: Run
    """The pipeline's own encode in a loop; its tensors are dropped."""
    plain_stored: Run
    """The same, with its tensors written to the store too."""
    first: Run
    second: Run
    """All cached, every object read and its digest checked."""
    first_to_plain: float
    first_to_plain_best: float
    first_to_plain_stored: float
    second_to_plain: float
    second_to_plain_best: float
    largest_difference: float
    """Between a cached tensor and the plain loop's."""


@dataclass(frozen=True, kw_only=True)
class CaptionFigures:
    """Captions alone, one at a time: captions per second."""

    plain_per_s: float
    first_per_s: float
    second_per_s: float


@dataclass(frozen=True, kw_only=True)
class _Timed:
    seconds: float
    cpu_s: float
    resident_bytes: int
    peak_memory: PeakMemory | None
    stages: Seconds = NO_TIME


def measure_resolution(
    desk: EncoderDesk, pipeline: FluxPipeline, files: Sequence[CaptionedFile], *, resolution_px: int, rounds: int
) -> ResolutionFigures:
    """All rounds of one resolution."""

    def plain(some: Iterable[CaptionedFile]) -> Iterable[dict[str, Tensor]]:
        tokens = desk.models.models.t5_tokens
        return plain_loop(pipeline, some, resolution_px=resolution_px, t5_tokens=tokens)

    _exhaust(plain(files[:WARM_UP]))
    times: dict[str, list[_Timed]] = {"plain": [], "plain_stored": [], "first": [], "second": []}
    for number in range(rounds):
        tenant = f"benchmark-{uuid.uuid4().hex}"
        dataset_id = uploaded(desk.datasets, files, tenant=tenant)

        def encode(tenant: str = tenant, dataset_id: str = dataset_id) -> tuple[Progress, ManifestPointer]:
            return desk.encode(dataset_id, resolution_px, tenant=tenant)

        ways: list[tuple[str, Callable[[], object]]] = [
            ("plain", lambda: _exhaust(plain(files))),
            ("plain_stored", lambda: _exhaust(stored(plain(files), desk.datasets.store))),
        ]
        encodes: list[tuple[str, Callable[[], object]]] = [("first", encode), ("second", encode)]
        for name, work in [*ways, *encodes] if number % 2 == 0 else [*encodes, *reversed(ways)]:
            times[name].append(_timed(work, desk, len(files)))
            log.info("%d px, round %d: %s %.1f s", resolution_px, number + 1, name, times[name][-1].seconds)
    _, pointer = desk.encode(dataset_id, resolution_px, tenant=tenant)
    return ResolutionFigures(
        resolution_px=resolution_px,
        **{name: _run(timed, len(files)) for name, timed in times.items()},
        first_to_plain=_ratio(times["plain"], times["first"]),
        first_to_plain_best=_best(times["plain"]) / _best(times["first"]),
        first_to_plain_stored=_ratio(times["plain_stored"], times["first"]),
        second_to_plain=_ratio(times["plain"], times["second"]),
        second_to_plain_best=_best(times["plain"]) / _best(times["second"]),
        largest_difference=_largest_difference(
            desk.tensors(tenant, pointer, files[:COMPARED]), plain(files[:COMPARED])
        ),
    )


def measure_captions(
    desk: EncoderDesk, pipeline: FluxPipeline, files: Sequence[CaptionedFile], *, rounds: int
) -> CaptionFigures:
    """`embed_captions` on an empty cache, again, and the pipeline's `encode_prompt`."""
    captions, tokens = [file.caption for file in files], desk.models.models.t5_tokens
    plain: list[float] = []
    first: list[float] = []
    second: list[float] = []
    for _ in range(rounds):
        embed = partial(desk.encoder.embed_captions, f"benchmark-{uuid.uuid4().hex}", captions)
        ways: tuple[tuple[list[float], Callable[[], object]], ...] = (
            (plain, lambda: [embedded(pipeline, caption, t5_tokens=tokens) for caption in captions]),
            (first, embed),
            (second, embed),
        )
        for seconds, work in ways:
            began_s = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - began_s)
    plain_s, first_s, second_s = (statistics.median(each) for each in (plain, first, second))
    count = len(captions)
    return CaptionFigures(plain_per_s=count / plain_s, first_per_s=count / first_s, second_per_s=count / second_s)


def _timed(work: Callable[[], object], desk: EncoderDesk, count: int) -> _Timed:
    device = desk.models.models.device
    reset_peak(device)
    with ResidentMemory() as memory:
        began_s, cpu_began_s = time.perf_counter(), time.process_time()
        result = work()
        seconds, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_began_s
    stages = NO_TIME
    if isinstance(result, tuple):
        total = result[0].seconds
        stages = Seconds(prepare=total.prepare / count, compute=total.compute / count, store=total.store / count)
    return _Timed(
        seconds=seconds, cpu_s=cpu_s, resident_bytes=memory.peak_bytes, peak_memory=peak_memory(device), stages=stages
    )


def _run(timed: Sequence[_Timed], count: int) -> Run:
    seconds = durations([each.seconds for each in timed])
    middle = min(timed, key=lambda each: abs(each.seconds - seconds.median_s))
    return Run(
        seconds=seconds,
        samples_per_s=count / seconds.median_s,
        cpu_s_a_sample=middle.cpu_s / count,
        peak_resident_gb=max(each.resident_bytes for each in timed) / 1e9,
        peak_memory=middle.peak_memory,
        thread_seconds=middle.stages,
    )


def _ratio(plain: Sequence[_Timed], ours: Sequence[_Timed]) -> float:
    return statistics.median(theirs.seconds / mine.seconds for theirs, mine in zip(plain, ours, strict=True))


def _best(timed: Sequence[_Timed]) -> float:
    return min(each.seconds for each in timed)


def _largest_difference(found: Iterable[Mapping[str, Tensor]], expected: Iterable[Mapping[str, Tensor]]) -> float:
    return max(
        float((ours[name].float() - tensor.float()).abs().max())
        for ours, theirs in zip(found, expected, strict=True)
        for name, tensor in theirs.items()
    )


def _exhaust(samples: Iterable[object]) -> None:
    for _ in samples:
        pass
