"""What a dataset is made of: images with captions on the way in, their state and problems on the way back."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from fluxsmith_text import quoted

from fluxsmith._html import dataset_card
from fluxsmith._samples import with_plain_lines
from fluxsmith.encoding import EncodingOptions, EncodingProgress


class DatasetState(StrEnum):
    """Where a dataset stands."""

    OPEN = "OPEN"
    """Takes samples; nothing has been encoded since the last change."""
    ENCODING = "ENCODING"
    """Being encoded; takes no samples."""
    READY = "READY"
    """Encoded: jobs may train on it. Samples may be added, which makes it OPEN again."""
    FAILED = "FAILED"
    """The encoding failed: see `failure_message` and `problems`."""
    UNKNOWN = "UNKNOWN"
    """A state that this version of the library does not know."""


class SampleProblemReason(StrEnum):
    """Kinds of problem with a sample."""

    NOT_AN_IMAGE = "NOT_AN_IMAGE"
    """The bytes are not an image of a format that the encoder reads."""
    TRUNCATED = "TRUNCATED"
    """The image ends before its data does."""
    TOO_LARGE = "TOO_LARGE"
    """More bytes or pixels than the encoder takes."""
    TOO_SMALL = "TOO_SMALL"
    """Fewer pixels than one bucket needs."""
    CAPTION_EMPTY = "CAPTION_EMPTY"
    """No caption, or one of white space only."""
    CAPTION_TOO_LONG = "CAPTION_TOO_LONG"
    """The caption has more bytes than the encoder takes."""
    DUPLICATE = "DUPLICATE"
    """Warning: the same picture is in the dataset under another name."""
    CAPTION_TRUNCATED = "CAPTION_TRUNCATED"
    """Warning: the caption has more tokens than a text encoder reads; the message has the words that are not read."""
    ORIGINAL_LOST = "ORIGINAL_LOST"
    """The store has lost or damaged the uploaded image; upload it again."""
    NOT_FINITE = "NOT_FINITE"
    """An encoder's output for it has a number that is not finite."""
    COLOR_PROFILE_IGNORED = "COLOR_PROFILE_IGNORED"
    """Warning: its colour profile cannot be used; its pixels were taken as sRGB."""
    CACHE_REPAIRED = "CACHE_REPAIRED"
    """Warning: cached tensors of it were damaged or missing and have been encoded again."""
    TRIGGER_MISSING = "TRIGGER_MISSING"
    """Warning: a caption holds `[trigger]` and no trigger word is given, so that text itself is encoded."""
    CAPTION_UNREADABLE = "CAPTION_UNREADABLE"
    """Warning: a text encoder has no token for parts of a caption, and reads `<unk>`; the message has them."""
    UNKNOWN = "UNKNOWN"
    """A reason that this version of the library does not know."""


@dataclass(frozen=True, kw_only=True)
class SampleProblem:
    """What is wrong with one sample."""

    sample_name: str
    reason: SampleProblemReason
    message: str
    """The problem and its remedy in a sentence."""
    warning: bool = False
    """Whether the sample is used all the same."""


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
    """The first 100 samples that cannot be used, and then of warnings about samples that are used."""
    manifest_digest: str = ""
    """sha256 as hexadecimal, once READY: equal digests mean equal training data."""
    failure_message: str = ""
    """What failed the encoding as a whole; empty unless FAILED."""
    problem_count: int = 0
    """Problems of all samples, warnings included; `Datasets.samples` has all of them."""
    progress: EncodingProgress | None = None
    """How the encoding under way moves on; None unless ENCODING."""
    options: EncodingOptions | None = None
    """How it is being encoded or was encoded last, every default filled in; None before the first encoding."""

    def _repr_html_(self) -> str:
        return dataset_card(self)

    @property
    def bad_samples(self) -> tuple[SampleProblem, ...]:
        """Of the problems told here, those that keep a sample out; the others are warnings."""
        return tuple(problem for problem in self.problems if not problem.warning)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image with its captions, as stored by the service."""

    name: str
    """Unique within the dataset."""
    captions: tuple[str, ...]
    content_digest: str
    """sha256 of the image file as hexadecimal."""
    size_bytes: int
    repeats: int = 1
    """Times that an epoch shows it."""
    problems: tuple[SampleProblem, ...] = ()
    """What the last encoding, or the one under way, found wrong with it."""


@dataclass(frozen=True, kw_only=True)
class CaptionedImage:
    """One image file with its captions, to be uploaded as a sample: a file on this machine, or its bytes.

    CaptionedImage(path=Path("cat.png"), captions=("a cat",), name="cat.png")
    """

    path: Path | None = None
    captions: tuple[str, ...]
    """1 to 16, none of them empty; training chooses among them. Line ends become `\\n`; no other control characters but
    tabs."""
    name: str
    """Name of the sample, unique within the dataset, 1 to 200 characters, none of them a control character."""
    repeats: int = 1
    """Times that an epoch shows it, 1 to 1000."""
    content: bytes | Callable[[], bytes] | None = None
    """In place of `path`: the bytes of an image file, or what returns them, the same each time it is asked."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for what cannot be an image with captions."""
        if (self.path is None) == (self.content is None):
            raise ValueError(f"the image {quoted(str(self.name))} needs either a path or content")
        if not isinstance(self.name, str):
            raise ValueError(f"the name {self.name!r} of an image is not text")
        if isinstance(self.captions, str) or not all(isinstance(caption, str) for caption in self.captions):
            raise ValueError(
                f"the captions of the image {quoted(self.name)} are not a tuple of texts: {self.captions!r}"
            )
        # Of Windows, whose `\r` no caption may have.
        object.__setattr__(self, "captions", tuple(map(with_plain_lines, self.captions)))
        if type(self.repeats) is not int or not 1 <= self.repeats <= 1000:
            raise ValueError(f"the image {quoted(self.name)} has {self.repeats!r} repeats, not 1 to 1000")

    def read(self) -> bytes:
        """Return the bytes of the image file; raises `OSError` if it cannot be read."""
        if self.path is not None:
            return self.path.read_bytes()
        return self.content() if callable(self.content) else self.content or b""


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
    encoding: EncodingProgress | None = None
    """Speed, time left and bytes; only during ENCODE, and None once that has ended."""


OnProgress = Callable[[DatasetProgress], None]
"""Called as a dataset moves on: during an upload of `Client` from another thread, else where the caller waits."""
