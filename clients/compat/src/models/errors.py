"""Successors of the error messages that callers know: each begins as it did, then says what is wrong and what helps."""

from collections.abc import Iterator
from contextlib import contextmanager

from fluxsmith import Client, Dataset, EncodingOptions, EstimatedModel, FluxsmithError
from fluxsmith.errors import DatasetFailed, InvalidRequest, JobFailed

GB = 1e9
DEFAULT_RESOLUTION_PX = 1024
_OF_CAPTIONS = {"CAPTION_EMPTY", "CAPTION_TOO_LONG"}
_OF_IMAGES = {"NOT_AN_IMAGE", "TRUNCATED", "TOO_LARGE", "TOO_SMALL"}


class InvalidImageFormat(FluxsmithError, ValueError):
    """A sample's image cannot be used: the message names it, and the formats that are read."""

    def __init__(self, fault: str, *, reason: str, remedy: str) -> None:
        super().__init__(f"Invalid image format: {fault}", reason=reason, remedy=remedy)


class TextEncodingFailed(FluxsmithError, ValueError):
    """A sample's caption is empty or too long: the message names it, with length and limit."""

    def __init__(self, fault: str, *, reason: str, remedy: str) -> None:
        super().__init__(f"Text encoding failed: {fault}", reason=reason, remedy=remedy)


class OutOfMemory(FluxsmithError, RuntimeError):
    """The GPU's memory is too small: the message says what is needed, the remedy what would save how much."""

    def __init__(self, fault: str, *, remedy: str) -> None:
        super().__init__(f"CUDA out of memory: {fault}", reason="GPU_OUT_OF_MEMORY", remedy=remedy)


@contextmanager
def refused_samples() -> Iterator[None]:
    """Raise what the encoder refuses as `InvalidImageFormat` or `TextEncodingFailed`."""
    try:
        yield
    except DatasetFailed as error:
        for reasons, kind in ((_OF_IMAGES, InvalidImageFormat), (_OF_CAPTIONS, TextEncodingFailed)):
            if named := [problem for problem in error.dataset.bad_samples if problem.reason in reasons]:
                faults = "; ".join(f"{problem.sample_name}: {problem.message.rstrip('.')}" for problem in named)
                raise kind(f"{faults}.", reason=named[0].reason, remedy=error.remedy) from error
        raise
    except InvalidRequest as error:
        if error.reason in _OF_CAPTIONS:
            raise TextEncodingFailed(error.message, reason=error.reason, remedy=error.remedy) from error
        if error.reason in _OF_IMAGES:
            raise InvalidImageFormat(error.message, reason=error.reason, remedy=error.remedy) from error
        raise


def successor_of(error: JobFailed, client: Client, dataset: Dataset) -> FluxsmithError:
    """Return a job's lack of GPU memory with the trainer's figures; any other failure as it is."""
    if error.reason != "GPU_OUT_OF_MEMORY":
        return error
    config, options = error.job.config, dataset.options or EncodingOptions()
    resolution_px = max(options.resolutions_px or (options.resolution_px or DEFAULT_RESOLUTION_PX,))
    try:
        estimate = client.estimate_memory(config, resolution_px=resolution_px, model=EstimatedModel.LOADED)
    except FluxsmithError:  # the failure is worth telling without figures too
        return OutOfMemory(error.failure.message, remedy=error.remedy)
    fault = (
        f"batch size {config.batch_size} with rank {config.rank} at {resolution_px} px needs about "
        f"{estimate.recommended_bytes / GB:.1f} GB, and the GPU has {estimate.device_bytes / GB:.1f} GB."
    )
    savings = [f"{saving.change} ({saving.bytes / GB:.1f} GB less)" for saving in estimate.savings]
    return OutOfMemory(fault, remedy=f"Reduce batch size, resolution or rank: {'; '.join(savings)}.")
