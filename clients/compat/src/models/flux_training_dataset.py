"""Samples as `train_lora` takes them, checked, and encoded once."""

import base64
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import overload

from fluxsmith import CaptionedImage, Client, Dataset, SampleProblemReason
from fluxsmith.errors import InvalidRequest
from fluxsmith_text import fault_of, is_blank
from src.models.errors import InvalidImageFormat, TextEncodingFailed, refused_samples

_KEYS = frozenset({"image", "description"})


class FluxTrainingDataset(Sequence[tuple[bytes, str]]):
    """The pictures' files with their captions, in order.

    `train_data` has samples {"image": base64, "description": caption}; a `data:` address is read as well. Raises
    `InvalidImageFormat`, `TextEncodingFailed` or `InvalidRequest`, which name the sample.
    """

    def __init__(self, train_data: Iterable[Mapping[str, str]]) -> None:
        try:
            given = iter(train_data)
        except TypeError as error:
            message = f"train_data is of type {type(train_data).__name__}, not a list of samples."
            remedy = "Give a list of mappings with image and description."
            raise InvalidRequest(message, reason="FIELD_INVALID", remedy=remedy) from error
        self._samples = [_read_sample(number, sample) for number, sample in enumerate(given)]
        if not self._samples:
            raise InvalidRequest(
                "train_data has no samples.", reason="FIELD_INVALID", remedy="Give one at least; 10 to 20 are usual."
            )

    def __len__(self) -> int:
        return len(self._samples)

    @overload
    def __getitem__(self, index: int) -> tuple[bytes, str]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[bytes, str]]: ...
    def __getitem__(self, index: int | slice) -> tuple[bytes, str] | list[tuple[bytes, str]]:
        return self._samples[index]

    def cache(self, client: Client, *, trigger_word: str = "") -> Dataset:
        """Have the encoder compute latents and text embeddings and keep them; return the READY dataset.

        `trigger_word` takes the place of `[trigger]` in captions, and is put before those that have neither. What the
        encoder has computed for an equal picture or caption before costs no model work.
        """
        return encode(self, client, trigger_word=trigger_word)


def encode(samples: FluxTrainingDataset, client: Client, *, trigger_word: str = "") -> Dataset:
    """Do the work of `FluxTrainingDataset.cache`; its warnings point to the line that called its caller."""
    images = [
        CaptionedImage(name=f"train_data[{number}]", captions=(caption,), content=image)
        for number, (image, caption) in enumerate(samples)
    ]
    with refused_samples():
        dataset = client.datasets.create_from(images, name="train_data", trigger_word=trigger_word)
    for problem in dataset.problems:
        if problem.reason is SampleProblemReason.CAPTION_TRUNCATED:
            warnings.warn(f"{problem.sample_name}: {problem.message}", stacklevel=3)
    return dataset


def _read_sample(number: int, sample: Mapping[str, str]) -> tuple[bytes, str]:
    if not isinstance(sample, Mapping):
        message = f"train_data[{number}] is of type {type(sample).__name__}, not a mapping with image and description."
        raise InvalidRequest(message, reason="FIELD_INVALID", remedy="Give both for every sample.")
    if missing := sorted(_KEYS - sample.keys()):
        message = f"train_data[{number}] has no {' and no '.join(missing)}; it has {sorted(map(str, sample))}."
        raise InvalidRequest(message, reason="FIELD_INVALID", remedy="Give image and description for every sample.")
    image, caption = sample["image"], sample["description"]
    if not isinstance(caption, str) or is_blank(caption):
        raise TextEncodingFailed(
            f"train_data[{number}] has no description.",
            reason="CAPTION_EMPTY",
            remedy="Write a caption that says what the image shows.",
        )
    if fault := fault_of(caption, lines=True):
        raise TextEncodingFailed(
            f"train_data[{number}] {fault} in its description.",
            reason="FIELD_INVALID",
            remedy="Remove it, or write the character whole.",
        )
    return _decoded(number, image), caption


def _decoded(number: int, image: object) -> bytes:
    try:
        if isinstance(image, bytes):
            image = image.decode("ascii")
        if not isinstance(image, str):
            raise TypeError(f"it is of type {type(image).__name__}")
        text = image.partition(",")[2] if image.startswith("data:") else image
        data = base64.b64decode("".join(text.split()), validate=True)
    except (TypeError, ValueError) as error:
        raise _no_image(number, f"is not base64: {error}") from error
    if not data:
        raise _no_image(number, "is empty")
    return data


def _no_image(number: int, fault: str) -> InvalidImageFormat:
    remedy = "Give the bytes of a PNG, JPEG or WebP file as base64 text."
    return InvalidImageFormat(f"the image of train_data[{number}] {fault}.", reason="NOT_AN_IMAGE", remedy=remedy)
