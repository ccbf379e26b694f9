"""What the encoder writes down about datasets, as JSON in the object store (`datasets.py` says where)."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from services.encoder.images.buckets import BUCKET_STEP_PX
from services.encoder.problems import WARNINGS, Problem


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DatasetRecord(_Record):
    """A dataset as created."""

    dataset_id: str
    display_name: str
    create_time: datetime


class SampleRecord(_Record):
    """A stored sample: its captions, and where its image lies."""

    sample_name: str
    captions: tuple[str, ...]
    content_digest: str
    size_bytes: int
    repeats: int = 1


class SampleProblem(_Record):
    """What is wrong with one sample, or worth knowing about it."""

    sample_name: str
    problem: Problem
    message: str

    @property
    def warning(self) -> bool:
        """Whether the sample is used all the same."""
        return self.problem in WARNINGS


class EncodingOptions(_Record):
    """How images become latents. Fields as in the contract's message of this name, defaults filled in."""

    resolutions_px: tuple[int, ...] = Field(min_length=1, max_length=4)
    flip: bool = False
    skip_bad_samples: bool = False
    max_bad_share: float = 1.0
    bucket_step_px: int = BUCKET_STEP_PX
    upscale: bool = False
    random_crops: int = 0
    """Random crops of each image; 0 means one at the centre."""
    crop_seed: int = 0
    latent_form: Literal["POSTERIOR", "MEAN"] = "POSTERIOR"
    alpha_policy: Literal["COMPOSITE", "MASK"] = "COMPOSITE"
    background_color: str = Field(default="#ffffff", pattern="^#[0-9a-f]{6}$")
    trigger_word: str = ""

    @property
    def background_rgb(self) -> tuple[int, int, int]:
        """The background colour as numbers from 0 to 255."""
        red, green, blue = bytes.fromhex(self.background_color[1:])
        return red, green, blue

    @property
    def variant_count(self) -> int:
        """Crops an image gives in all, mirrored ones too."""
        return len(self.resolutions_px) * max(1, self.random_crops) * (2 if self.flip else 1)


class WantedEncoding(_Record):
    """An encoding that has not ended. Its identifier is where its samples are listed as they become ready."""

    encoding_id: str
    options: EncodingOptions


class EncodingOutcome(_Record):
    """How an encoding ended. `failure` is empty when a manifest was published."""

    failure: str = ""
    problems: tuple[SampleProblem, ...] = ()
    options: EncodingOptions | None = None
    revision: str = ""
    """Of the samples that it looked at."""
