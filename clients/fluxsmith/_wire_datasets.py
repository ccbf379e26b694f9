"""Datasets, their samples and their encoding: from messages on the wire to this library's own types and back."""

from typing import Any

from fluxsmith._samples import trigger_word_fault
from fluxsmith._wire import WireEnum, read_enum, read_seconds, read_time, write_fields
from fluxsmith.data import Dataset, DatasetState, Sample, SampleProblem, SampleProblemReason
from fluxsmith.encoding import AlphaPolicy, ContactSheet, EncodingOptions, EncodingProgress, LatentForm
from fluxsmith.errors import FieldViolation, InvalidRequest
from fluxsmith.v1 import encoder_pb2

_OPTION_ENUMS = {
    "latent_form": WireEnum(ours=LatentForm, wire=encoder_pb2.LatentForm.DESCRIPTOR, prefix="LATENT_FORM_"),
    "alpha_policy": WireEnum(ours=AlphaPolicy, wire=encoder_pb2.AlphaPolicy.DESCRIPTOR, prefix="ALPHA_POLICY_"),
}
_POLICY_OF_SKIP = {True: encoder_pb2.BAD_SAMPLE_POLICY_SKIP, False: encoder_pb2.BAD_SAMPLE_POLICY_FAIL}
_SKIP_OF_POLICY = {policy: skip for skip, policy in _POLICY_OF_SKIP.items()}


def read_dataset(message: encoder_pb2.Dataset) -> Dataset:
    """Translate the state of a dataset."""
    return Dataset(
        id=message.dataset_id,
        name=message.display_name,
        state=read_enum(DatasetState, encoder_pb2.DatasetState.DESCRIPTOR, "DATASET_STATE_", message.state),
        create_time=read_time(message, "create_time"),
        sample_count=message.sample_count,
        encoded_count=message.encoded_count,
        cached_count=message.cached_count,
        problems=tuple(map(_read_problem, message.problems)),
        manifest_digest=message.manifest_digest,
        failure_message=message.failure_message,
        problem_count=message.problem_count,
        progress=_read_progress(message.progress) if message.HasField("progress") else None,
        options=read_options(message.options) if message.HasField("options") else None,
    )


def _read_problem(message: encoder_pb2.SampleProblem) -> SampleProblem:
    kinds = encoder_pb2.SampleProblemReason.DESCRIPTOR
    return SampleProblem(
        sample_name=message.sample_name,
        reason=read_enum(SampleProblemReason, kinds, "SAMPLE_PROBLEM_REASON_", message.reason),
        message=message.message,
        warning=message.warning,
    )


def _read_progress(message: encoder_pb2.EncodingProgress) -> EncodingProgress:
    return EncodingProgress(
        done_count=message.done_count,
        read_bytes=message.read_bytes,
        written_bytes=message.written_bytes,
        samples_per_s=message.samples_per_second,
        elapsed_s=read_seconds(message.elapsed),
        remaining_s=read_seconds(message.remaining) if message.HasField("remaining") else None,
    )


def read_sample(message: encoder_pb2.Sample) -> Sample:
    """Translate one stored sample."""
    return Sample(
        name=message.sample_name,
        captions=tuple(message.captions),
        content_digest=message.content_digest,
        size_bytes=message.size_bytes,
        repeats=message.repeats,
        problems=tuple(map(_read_problem, message.problems)),
    )


def write_options(options: EncodingOptions) -> encoder_pb2.EncodingOptions:
    """Translate encoding options, leaving unset what is None or empty.

    Raises `InvalidRequest` with every field whose value cannot travel at all, or is no text; ranges are the encoder's
    to check.
    """
    message = encoder_pb2.EncodingOptions()
    values = dict(vars(options))
    skip = values.pop("skip_bad_samples")
    violations = write_fields(values, message, enums=_OPTION_ENUMS, path="options")
    if options.resolution_px is not None and options.resolutions_px:
        text = "resolution_px and resolutions_px exclude each other"
        violations.insert(0, FieldViolation(field="options.resolutions_px", description=text))
    if isinstance(options.trigger_word, str) and (fault := trigger_word_fault(options.trigger_word)):
        violations.append(FieldViolation(field="options.trigger_word", description=fault))
    if isinstance(skip, bool):
        message.bad_sample_policy = _POLICY_OF_SKIP[skip]
    elif skip is not None:
        text = f"is {skip!r}, not True or False"
        violations.append(FieldViolation(field="options.skip_bad_samples", description=text))
    if violations:
        text, remedy = "the encoding options are wrong.", "Correct the fields named."
        raise InvalidRequest(text, reason="OPTIONS_INVALID", remedy=remedy, violations=tuple(violations))
    return message


def read_options(message: encoder_pb2.EncodingOptions) -> EncodingOptions:
    """Translate encoding options; what is unset, or of a kind not known here, becomes None or empty."""
    present = [field.name for field in message.DESCRIPTOR.fields if field.has_presence]
    values: dict[str, Any] = {name: getattr(message, name) for name in present if message.HasField(name)}  # type: ignore[arg-type]
    values |= {name: enum.read(getattr(message, name)) for name, enum in _OPTION_ENUMS.items()}
    return EncodingOptions(
        resolutions_px=tuple(message.resolutions_px),
        background_color=message.background_color,
        trigger_word=message.trigger_word,
        skip_bad_samples=_SKIP_OF_POLICY.get(message.bad_sample_policy),
        **values,
    )


def read_sheet(message: encoder_pb2.RenderContactSheetResponse) -> ContactSheet:
    """Translate one page of a contact sheet."""
    return ContactSheet(
        download_url=message.download_url,
        uri=message.image.uri,
        size_bytes=message.image.size_bytes,
        content_digest=message.image.content_digest,
    )
