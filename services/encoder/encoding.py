"""Encode a dataset: every sample through the cache, the models only for what the cache lacks, the manifest last."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace

from fluxsmith_text import quoted

from services.common import cache
from services.common.cache import (
    CachedCaption,
    CachedSample,
    EncodingHead,
    EncodingPart,
    ManifestPointer,
    encoding_prefix,
    part_ends_at,
)
from services.common.errors import InvalidInput
from services.common.object_store import ObjectStore
from services.common.sweep import wait_for_sweep
from services.encoder.datasets import Datasets
from services.encoder.inference import give_back_free_memory
from services.encoder.models import ModelThread
from services.encoder.overlap import overlapped
from services.encoder.problems import BadSample, Problem
from services.encoder.records import EncodingOptions, EncodingOutcome, SampleProblem, WantedEncoding
from services.encoder.settings import EncoderSettings
from services.encoder.stages import NO_TIME, Seconds, Stages, Verdict, caption_recipe, embedding, finite
from services.encoder.tensor_cache import TensorCache

log = logging.getLogger(__name__)

WRITERS = 4
WRITTEN_AHEAD = 2 * WRITERS  # samples whose computed tensors are in memory
TRIMMED_EVERY = 200  # samples; else glibc 2.36 kept 7 to 14 KB more with each, all of it free


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far an encoding has come. `cached` samples needed no model work, those in `problems` may be unusable."""

    total: int = 0
    done: int = 0
    encoded: int = 0
    cached: int = 0
    problems: tuple[SampleProblem, ...] = ()
    read_bytes: int = 0
    written_bytes: int = 0
    elapsed_s: float = 0.0
    seconds: Seconds = NO_TIME

    @property
    def bad(self) -> tuple[SampleProblem, ...]:
        """What makes samples unusable."""
        return tuple(problem for problem in self.problems if not problem.warning)

    def after(
        self, verdict: Verdict, problems: tuple[SampleProblem, ...], elapsed_s: float, *, last_round: bool
    ) -> Progress:
        """The progress after a verdict. A sample is done with its last one; a round for captions comes before."""
        encoded = last_round and verdict.sample is not None
        return replace(
            self,
            done=self.done + last_round,
            encoded=self.encoded + encoded,
            cached=self.cached + (encoded and verdict.cached),
            problems=(*self.problems, *problems) if problems else self.problems,
            read_bytes=self.read_bytes + verdict.read_bytes,
            written_bytes=self.written_bytes + verdict.written_bytes,
            elapsed_s=elapsed_s,
            seconds=self.seconds + verdict.seconds,
        )


class DatasetEncoder:
    """Encodes datasets. `encode_dataset` is the story; the rest is its sentences."""

    def __init__(self, datasets: Datasets, models: ModelThread, settings: EncoderSettings) -> None:
        self._datasets = datasets
        self._models = models
        self._settings = settings
        self._decoders = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decode")
        self._writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="write")

    def encode_dataset(
        self, tenant: str, dataset_id: str, wanted: WantedEncoding, on_progress: Callable[[Progress], None]
    ) -> tuple[EncodingOutcome, ManifestPointer | None]:
        """Encode all samples and write the manifest. Doing it again costs no model work.

        `on_progress` may raise to end it early.
        """
        began_s = time.monotonic()
        wait_for_sweep(self._datasets.store, tenant)
        revision = self._datasets.revision(tenant, dataset_id)
        progress = Progress(total=self._datasets.sample_count(tenant, dataset_id))
        head = self._head(tenant, wanted.options.trigger_word)
        listing = _Listing(self._datasets.store, tenant, wanted.encoding_id, head)
        pictures = _Pictures()
        with closing(self._verdicts(tenant, dataset_id, wanted.options)) as verdicts:
            for verdict, last_round in verdicts:
                if last_round and verdict.sample:
                    listing.add(verdict.sample)
                problems = (*verdict.problems, *pictures.problems_of(verdict)) if last_round else ()
                progress = progress.after(verdict, problems, time.monotonic() - began_s, last_round=last_round)
                on_progress(progress)
                if last_round and progress.done % TRIMMED_EVERY == 0:
                    give_back_free_memory()
        self._log(dataset_id, progress)
        failure = why_failed(progress, wanted.options)
        bad_first = tuple(sorted(progress.problems, key=lambda problem: problem.warning))
        outcome = EncodingOutcome(failure=failure, problems=bad_first, options=wanted.options, revision=revision)
        if failure:
            return outcome, None
        pointer = ManifestPointer(
            manifest_digest=cache.publish_manifest(self._datasets.store, tenant, head, listing.samples),
            encoder_fingerprint=head.encoder_fingerprint,
            revision=revision,
            sample_count=progress.encoded,
            cached_count=progress.cached,
        )
        return outcome, pointer

    def embed_captions(self, tenant: str, captions: list[str]) -> list[CachedCaption]:
        """Embed captions through the cache, in their order."""
        embedded = []
        for caption in captions:
            wait_for_sweep(self._datasets.store, tenant)  # for each: one that lasted would outlive the look for it
            embedded.append(self._embedded(tenant, caption))
        return embedded

    def close(self) -> None:
        """End the threads; nothing may be under way."""
        self._decoders.shutdown()
        self._writers.shutdown()

    def _verdicts(
        self, tenant: str, dataset_id: str, options: EncodingOptions
    ) -> Generator[tuple[Verdict, bool], None, None]:
        """What becomes of each sample, in order, and whether that is its last round.

        Decoding, models and uploads overlap, each a few samples ahead of the next.
        """
        stages = Stages(
            self._datasets,
            self._tensors(tenant),
            self._models,
            tenant=tenant,
            dataset_id=dataset_id,
            options=options,
            max_image_pixels=self._settings.max_image_pixels,
        )
        rounds = [stages.prepare]
        if self._models.models.one_at_a_time:  # text first, so that its models make room once and for all
            rounds.insert(0, stages.prepare_captions)
        for prepare in rounds:
            records = self._datasets.samples(tenant, dataset_id)
            prepared = overlapped(records, prepare, self._decoders, ahead=self._settings.decode_threads + 2)
            verdicts = overlapped(map(stages.compute, prepared), stages.store, self._writers, ahead=WRITTEN_AHEAD)
            for verdict in verdicts:
                yield verdict, prepare == stages.prepare

    def _head(self, tenant: str, trigger_word: str) -> EncodingHead:
        models = self._models.models
        return EncodingHead(
            encoder_fingerprint=models.fingerprint,
            latent_shift=models.latent_shift,
            latent_scale=models.latent_scale,
            empty_caption=self._embedded(tenant, ""),
            trigger_word=trigger_word,
        )

    def _tensors(self, tenant: str) -> TensorCache:
        return TensorCache(self._datasets.store, tenant, self._models.models)

    def _embedded(self, tenant: str, caption: str) -> CachedCaption:
        tensors = self._tensors(tenant)
        recipe = caption_recipe(caption, self._models.models)
        cached = tensors.find("captions", recipe, refresh=self._settings.grace / 2)
        if cached is None:
            try:
                embeddings = finite(self._models.run(embedding(caption)), "captions")
            except BadSample as error:
                remedy = "Reword or shorten it; if every caption fails, check the weights of T5 and their precision."
                raise InvalidInput(
                    f"caption {quoted(caption[:40])}: {error.message}", reason="NOT_FINITE", remedy=remedy
                ) from error
            new = tensors.pack("captions", recipe, embeddings)
            tensors.write(new)
            cached = new.cached
        return CachedCaption(caption=caption, embedding=cached)

    def _log(self, dataset_id: str, progress: Progress) -> None:
        seconds, peak_gb = progress.seconds, self._models.models.memory_peak_bytes() / 1e9
        log.info(
            "dataset %s: %d samples (%d cached, %d bad) in %.1f s; prepare %.1f s, models %.1f s, store %.1f s; "
            "memory peak %.2f GB",
            *(dataset_id, progress.done, progress.cached, len(progress.bad), progress.elapsed_s),
            *(seconds.prepare, seconds.compute, seconds.store, peak_gb),
        )


def why_failed(progress: Progress, options: EncodingOptions) -> str:
    """Why the encoding as a whole has failed, or nothing."""
    if not progress.total:
        return "the dataset has no samples; upload some"
    bad_names = {problem.sample_name for problem in progress.bad}
    allowed = options.max_bad_share if options.skip_bad_samples else 0.0
    if progress.encoded and len(bad_names) / progress.done <= allowed:
        return ""
    first = progress.bad[0]
    cause = f"first {quoted(first.sample_name)}: {first.message}"
    if not progress.encoded:
        return f"none of {progress.done} samples can be used, {cause}"
    policy = f" (at most a share of {allowed:g} may be left out)" if options.skip_bad_samples else ""
    return f"{len(bad_names)} of {progress.done} samples cannot be used{policy}, {cause}"


class _Listing:
    """The samples of an encoding under way: written part by part for jobs that wait, kept as text for the manifest."""

    def __init__(self, store: ObjectStore, tenant: str, encoding_id: str, head: EncodingHead) -> None:
        self._store = store
        self._prefix = encoding_prefix(tenant, encoding_id)
        self._part: list[CachedSample] = []
        self.samples: list[bytes] = []
        store.put(f"{self._prefix}head.json", head.model_dump_json().encode(), content_type="application/json")

    def add(self, sample: CachedSample) -> None:
        """The next sample is done."""
        self.samples.append(sample.model_dump_json().encode())
        self._part.append(sample)
        if part_ends_at(len(self.samples)):
            part = EncodingPart(samples=tuple(self._part)).model_dump_json().encode()
            offset = len(self.samples) - len(self._part)
            self._store.put(f"{self._prefix}{offset:06}.json", part, content_type="application/json")
            self._part.clear()


class _Pictures:
    """Which pictures have been seen under which name, to warn of those that come twice."""

    def __init__(self) -> None:
        self._first_with: dict[str, str] = {}

    def problems_of(self, verdict: Verdict) -> Iterator[SampleProblem]:
        """The warning, if a usable sample shows what an earlier one shows."""
        if verdict.sample:
            name = verdict.record.sample_name
            first = self._first_with.setdefault(verdict.picture_digest, name)
            if first != name:
                message = f"shows the same picture as {quoted(first)}; remove one of them, or leave it to count twice"
                yield SampleProblem(sample_name=name, problem=Problem.DUPLICATE, message=message)
