"""How a dataset's images become training data, how far that has come, and pictures of what training will see."""

import dataclasses
from dataclasses import dataclass
from enum import StrEnum


class LatentForm(StrEnum):
    """What is kept of the VAE's output."""

    POSTERIOR = "POSTERIOR"
    """Mean and log-variance: each step draws afresh."""
    MEAN = "MEAN"
    """The mean alone: half the size, each step sees the same latents."""


class AlphaPolicy(StrEnum):
    """What becomes of an image's transparency. Transparent pixels show the background colour either way."""

    COMPOSITE = "COMPOSITE"
    """It is dropped."""
    MASK = "MASK"
    """It is cached beside the latents as a mask of the loss, 1 where opaque."""


@dataclass(frozen=True, kw_only=True)
class EncodingOptions:
    """How images become latents. None or empty means the encoder's default, which is named with each field."""

    resolution_px: int | None = None
    """Side in px of the square whose area no image exceeds; images keep their aspect ratio, scaled down and cropped to
    sides that are multiples of `bucket_step_px`. A multiple of 16, 64 to 2048; default as the base model was trained.
    """
    resolutions_px: tuple[int, ...] = ()
    """Several resolutions instead of one, at most 4, each as `resolution_px`, which they exclude. An epoch shows every
    image at each of them; sizes that it is too small for come out once.
    """
    flip: bool | None = None
    """Cache a horizontally mirrored variant of each crop too. Default no."""
    bucket_step_px: int | None = None
    """Sides of a bucket are multiples of this; a larger step fills batches better and crops more. A multiple of 16,
    16 to 256; default 16.
    """
    upscale: bool | None = None
    """Enlarge images that are smaller than the resolution. Default no."""
    random_crops: int | None = None
    """Random crops of each image, cached as variants of which training draws one. 1 to 8; default one at the centre."""
    crop_seed: int | None = None
    """Seed of the random crops. 0 to 2^32 - 1; default 0."""
    latent_form: LatentForm | None = None
    """What is kept of the VAE's output; default POSTERIOR."""
    alpha_policy: AlphaPolicy | None = None
    """What becomes of transparency; default COMPOSITE."""
    background_color: str = ""
    """Colour behind transparent pixels as `#rrggbb`; default `#ffffff`."""
    trigger_word: str = ""
    """A word that stands for what is learnt. It replaces `[trigger]` in captions, and is put before captions that have
    neither. Up to 64 characters; default none.
    """
    skip_bad_samples: bool | None = None
    """Leave bad samples out and name them in `Dataset.problems`, instead of failing; of a folder also images without a
    caption, or with one that is empty or no text. Default no."""
    max_bad_share: float | None = None
    """With `skip_bad_samples`: the encoding fails when more than this share of the samples is bad, and a folder is
    refused when more of its images are. 0 to 1; default 1.
    """

    def merged(self, other: "EncodingOptions") -> "EncodingOptions":
        """Return these options with those that are set in `other` in their place."""
        given = {field.name: getattr(other, field.name) for field in dataclasses.fields(other)}
        return dataclasses.replace(self, **{name: value for name, value in given.items() if not _is_unset(value)})


def _is_unset(value: object) -> bool:
    return value is None or value in ((), "")


@dataclass(frozen=True, kw_only=True)
class EncodingProgress:
    """How an encoding moves on."""

    done_count: int = 0
    """Samples looked at, those that cannot be used included."""
    read_bytes: int = 0
    """Bytes of image files read so far."""
    written_bytes: int = 0
    """Bytes of tensors written so far; what was in the cache is not written."""
    samples_per_s: float = 0.0
    """Samples a second since the encoding began or was taken up; 0 while there is too little to tell."""
    elapsed_s: float = 0.0
    """Time since the encoding began or was taken up."""
    remaining_s: float | None = None
    """Time left at this speed; None while there is too little to tell."""


@dataclass(frozen=True, kw_only=True)
class ContactSheet:
    """One page of pictures of what training will see, as a PNG file in the store."""

    download_url: str
    """An address from which it can be fetched with plain HTTP for an hour."""
    uri: str
    """`s3://bucket/key`."""
    size_bytes: int
    content_digest: str
    """sha256 of the file as hexadecimal."""
