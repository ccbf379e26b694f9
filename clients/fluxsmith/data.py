"""What a dataset is made of: images with captions on the way in, their state and problems on the way back."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path


class DatasetState(StrEnum):
    """Where a dataset stands."""

    OPEN = "OPEN"
    """Takes samples; nothing has been encoded since the last change."""
    ENCODING = "ENCODING"
    """Being encoded; takes no samples."""
    READY = "READY"
    """Encoded: jobs may train on it."""
    FAILED = "FAILED"
    """The encoding failed: see `failure_message` and `problems`."""
    UNKNOWN = "UNKNOWN"
    """A state that this version of the library does not know."""


class SampleProblemReason(StrEnum):
    """Kinds of problem with a sample."""

    NOT_AN_IMAGE = "NOT_AN_IMAGE"
    TRUNCATED = "TRUNCATED"
    TOO_LARGE = "TOO_LARGE"
    TOO_SMALL = "TOO_SMALL"
    CAPTION_EMPTY = "CAPTION_EMPTY"
    CAPTION_TOO_LONG = "CAPTION_TOO_LONG"
    DUPLICATE = "DUPLICATE"
    CAPTION_TRUNCATED = "CAPTION_TRUNCATED"
    UNKNOWN = "UNKNOWN"
    """A reason that this version of the library does not know."""


@dataclass(frozen=True, kw_only=True)
class SampleProblem:
    """What is wrong with one sample."""

    sample_name: str
    reason: SampleProblemReason
    message: str
    """The problem and its remedy in a sentence."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A set of captioned images and the state of its encoding, as it was when asked for."""

    id: str
    name: str = ""
    """For people; need not be unique."""
    state: DatasetState
    create_time: datetime | None = None
    sample_count: int = 0
    """Samples stored so far."""
    encoded_count: int = 0
    """Samples encoded by the encoding under way or finished."""
    cached_count: int = 0
    """Of those, samples found in the cache, which cost no model work."""
    problems: tuple[SampleProblem, ...] = ()
    """Why the encoding failed, or which samples it left out."""
    manifest_digest: str = ""
    """sha256 as hexadecimal, once READY: equal digests mean equal training data."""
    failure_message: str = ""
    """What failed the encoding as a whole; empty unless FAILED."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image with its captions, as stored by the service."""

    name: str
    """Unique within the dataset."""
    captions: tuple[str, ...]
    content_digest: str
    """sha256 of the image file as hexadecimal."""
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class CaptionedImage:
    """One image file on this machine with its captions, to be uploaded as a sample."""

    path: Path
    captions: tuple[str, ...]
    """1 to 16, none of them empty; training chooses among them."""
    name: str
    """Name of the sample, unique within the dataset, 1 to 200 characters."""


class DatasetPhase(StrEnum):
    """What is being done to make a dataset ready."""

    UPLOAD = "upload"
    ENCODE = "encode"


@dataclass(frozen=True, kw_only=True)
class DatasetProgress:
    """How far a dataset has come in one phase, in samples."""

    phase: DatasetPhase
    done_count: int
    total_count: int
    cached_count: int = 0
    """Of the encoded samples, those found in the cache."""


OnProgress = Callable[[DatasetProgress], None]
"""Called as a dataset moves on; during the upload from another thread."""
