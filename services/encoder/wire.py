"""The encoder's domain as messages of the contract."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import accumulate

from fluxsmith.v1 import encoder_pb2 as pb
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from services.common.cache import CachedObject
from services.common.object_store import ObjectStore
from services.common.server import MAX_MESSAGE_BYTES
from services.encoder.encoding import Progress
from services.encoder.records import EncodingOptions, SampleProblem, SampleRecord

PROBLEMS_SHOWN = 100
TELLING_S = 1.0  # under this, a speed says nothing


def progress_message(progress: Progress) -> pb.EncodingProgress:
    """How an encoding moves on, with its speed and the time left."""
    message = pb.EncodingProgress(
        done_count=progress.done,
        read_bytes=progress.read_bytes,
        written_bytes=progress.written_bytes,
        elapsed=duration(progress.elapsed_s),
    )
    if progress.elapsed_s >= TELLING_S and progress.done:
        message.samples_per_second = progress.done / progress.elapsed_s
        message.remaining.CopyFrom(duration((progress.total - progress.done) / message.samples_per_second))
    return message


def options_message(options: EncodingOptions) -> pb.EncodingOptions:
    """Options with every default filled in. A single resolution stands in `resolution_px`."""
    single = len(options.resolutions_px) == 1
    return pb.EncodingOptions(
        resolution_px=options.resolutions_px[0] if single else None,
        resolutions_px=() if single else options.resolutions_px,
        flip=options.flip,
        bad_sample_policy=pb.BAD_SAMPLE_POLICY_SKIP if options.skip_bad_samples else pb.BAD_SAMPLE_POLICY_FAIL,
        max_bad_share=options.max_bad_share,
        bucket_step_px=options.bucket_step_px,
        upscale=options.upscale,
        random_crops=options.random_crops or None,
        crop_seed=options.crop_seed,
        latent_form=pb.LatentForm.Value(f"LATENT_FORM_{options.latent_form}"),
        alpha_policy=pb.AlphaPolicy.Value(f"ALPHA_POLICY_{options.alpha_policy}"),
        background_color=options.background_color,
        trigger_word=options.trigger_word,
    )


def add_problems(dataset: pb.Dataset, problems: Sequence[SampleProblem]) -> None:
    """The number of problems, and the first of them, those that keep samples out before warnings."""
    bad_first = sorted(problems, key=lambda problem: problem.warning)
    dataset.problem_count = len(problems)
    dataset.problems.extend(map(problem_message, bad_first[:PROBLEMS_SHOWN]))


def problem_message(problem: SampleProblem) -> pb.SampleProblem:
    """What is wrong with a sample."""
    reason = pb.SampleProblemReason.Value(f"SAMPLE_PROBLEM_REASON_{problem.problem.name}")
    return pb.SampleProblem(
        sample_name=problem.sample_name, reason=reason, message=problem.message, warning=problem.warning
    )


def sample_messages(
    records: Iterable[SampleRecord], problems: Mapping[str, Sequence[SampleProblem]]
) -> list[pb.Sample]:
    """Samples with what is wrong with them: as many, from the first, as a message holds."""
    samples = [
        pb.Sample(**record.model_dump(), problems=map(problem_message, problems.get(record.sample_name, ())))
        for record in records
    ]
    sizes = accumulate(sample.ByteSize() for sample in samples)
    return [sample for sample, size in zip(samples, sizes, strict=True) if size <= MAX_MESSAGE_BYTES // 2]


def reference(store: ObjectStore, stored: CachedObject) -> pb.ObjectReference:
    """Where an object lies."""
    return pb.ObjectReference(uri=store.uri(stored.key), content_digest=stored.digest, size_bytes=stored.size_bytes)


def timestamp(time: datetime) -> Timestamp:
    """A moment."""
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp


def duration(seconds: float) -> Duration:
    """A length of time."""
    message = Duration()
    message.FromTimedelta(timedelta(seconds=round(seconds, 3)))
    return message
