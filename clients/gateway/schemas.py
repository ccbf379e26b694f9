"""What the gateway takes and answers, as its OpenAPI description shows it."""

import binascii
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Self

from fluxsmith import Fault, JobState, TrainConfig, TrainingJob
from fluxsmith._samples import MOST_CAPTION_BYTES, length_fault
from fluxsmith_text import fault_of, is_blank
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, WithJsonSchema
from pydantic_core import PydanticCustomError

from gateway.examples import DOWNLOAD_LINK, JOB, RED_DOT_PNG
from gateway.parameters import TrainingParams
from gateway.problems import CAPTION_TOO_LONG

# Characters, as the services take them.
MAX_USER_ID = 64
MAX_TRIGGER_WORD = 64
# Characters, four for three bytes.
_DECODED_AT_ONCE = 256 * 1024


def _decoded(text: object) -> bytes:
    if not isinstance(text, str):
        raise ValueError("is not text")
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    encoded = "".join(encoded.split())
    starts = range(0, len(encoded), _DECODED_AT_ONCE)
    if any(encoded[start - 1] == "=" for start in starts[1:]):
        raise ValueError("is not base64: it goes on after its end")
    # In pieces, between which other threads have their turn: a picture of 100 MB is decoded for a second.
    pieces = (encoded[start : start + _DECODED_AT_ONCE] for start in starts)
    try:
        return b"".join(binascii.a2b_base64(piece, strict_mode=True) for piece in pieces)
    except ValueError as error:
        raise ValueError(f"is not base64: {error}") from error


def _caption(text: str) -> str:
    if fault := length_fault(text):
        raise PydanticCustomError(CAPTION_TOO_LONG, "{fault}", {"fault": fault})
    if fault := fault_of(text, lines=True):
        raise ValueError(fault)
    return text


def _line(text: str) -> str:
    if fault := fault_of(text):
        raise ValueError(fault)
    if text and is_blank(text):
        raise ValueError("has nothing that can be seen: leave it out, or give what can be read")
    return text


def _user(given: int | str) -> int | str:
    _require_length(text := str(given), MAX_USER_ID)
    _line(text)
    return given


def _trigger_word(word: str) -> str:
    _require_length(word, MAX_TRIGGER_WORD)
    if word != word.strip():
        raise ValueError("begins or ends with a space: leave the space out")
    return _line(word)


def _require_length(text: str, most: int) -> None:
    if len(text) > most:
        raise ValueError(f"has {len(text)} characters: use at most {most}")


Caption = Annotated[str, AfterValidator(_caption), Field(json_schema_extra={"maxLength": MOST_CAPTION_BYTES})]
UserText = Annotated[str, Field(json_schema_extra={"maxLength": MAX_USER_ID})]
TriggerWord = Annotated[str, AfterValidator(_trigger_word), Field(json_schema_extra={"maxLength": MAX_TRIGGER_WORD})]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class TrainSample(_Body):
    """A picture with what it shows."""

    image: Annotated[
        bytes,
        BeforeValidator(_decoded),
        WithJsonSchema({"type": "string", "contentEncoding": "base64", "minLength": 4}),
    ]
    """An image file, PNG, JPEG or WebP among others, as base64; a `data:` address is read as well."""
    description: Caption
    """The caption; `[trigger]` in it stands for the trigger word of the request."""


class TrainRequest(_Body):
    """What to train on, for whom, and how."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "train_data": [{"image": RED_DOT_PNG, "description": "a red dot on white"}],
                "user_id": 123,
                "training_params": {"rank": 16, "alpha": 16, "learning_rate": 1e-4, "epochs": 1, "batch_size": 1},
            }
        }
    )

    train_data: Annotated[list[TrainSample], Field(min_length=1)]
    """The samples; 10 to 20 are usual. At most as many as the gateway is set to take."""
    user_id: Annotated[StrictInt | UserText, AfterValidator(_user)]
    """The product's user whom the job is for, up to 64 characters on one line."""
    trigger_word: TriggerWord = ""
    """A word that stands for what is learnt, up to 64 characters. It replaces `[trigger]` in captions and preview
    prompts, and is put before those that have neither."""
    training_params: TrainingParams = TrainConfig()
    """How to train; what is left out is the trainer's default: without `epochs` or `steps` one epoch, in which every
    sample is seen once, a few steps for a few pictures."""


class JobWarning(_Body):
    """Something worth knowing that stopped nothing."""

    reason: str
    """Stable, for programs, such as `SHORT_RUN`."""
    message: str
    """What it is, in a sentence."""


class TrainResponse(_Body):
    """What was trained."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "model_url": "s3://fluxsmith/default/jobs/job-0123456789abcdef0123/1/lora.safetensors",
                "job_id": "job-0123456789abcdef0123",
                "warnings": [],
            }
        }
    )

    model_url: str
    """`s3://bucket/key` of the LoRA, a safetensors file; `GET /jobs/{job_id}/download` gives an address for HTTP."""
    job_id: str
    """The job that made it."""
    warnings: list[JobWarning]
    """What the trainer warned of, such as a run too short to learn much."""


class Failure(_Body):
    """Why a job failed."""

    fault: Fault
    """Whose fault it was."""
    reason: str
    """Stable, for programs."""
    message: str
    """What happened."""
    remedy: str
    """What to do about it; may be empty."""


class Job(_Body):
    """A job as it is now."""

    model_config = ConfigDict(json_schema_extra={"example": JOB})

    job_id: str
    """Identifier given by the trainer."""
    user_id: str
    """As given, as text."""
    state: JobState
    """Where it stands."""
    step: int
    """Optimizer steps done."""
    total_steps: int | None
    """Optimizer steps in all; null before it has run."""
    queue_position: int
    """Jobs ahead of it while QUEUED."""
    time_left_s: float | None
    """How long it still runs, in seconds; null unless RUNNING."""
    create_time: datetime | None
    """When it was created."""
    end_time: datetime | None
    """When it ended."""
    model_url: str | None
    """`s3://bucket/key` of the LoRA once SUCCEEDED."""
    failure: Failure | None
    """Why it failed; null unless FAILED."""
    last_sequence: int
    """Sequence of its newest event."""

    @classmethod
    def of(cls, job: TrainingJob) -> Self:
        """Return what the gateway tells of a job."""
        return cls(
            job_id=job.id,
            user_id=job.user_id,
            state=job.state,
            step=job.step,
            total_steps=job.total_steps or None,
            queue_position=job.queue_position,
            time_left_s=job.time_left_s,
            create_time=job.create_time,
            end_time=job.end_time,
            model_url=job.result.lora_uri if job.result else None,
            failure=Failure(**asdict(job.failure)) if job.failure else None,
            last_sequence=job.last_sequence,
        )


class Jobs(_Body):
    """Some jobs."""

    jobs: list[Job]
    """Newest first."""


class DownloadLink(_Body):
    """Where a file can be fetched with plain HTTP by whoever has the address."""

    model_config = ConfigDict(json_schema_extra={"example": DOWNLOAD_LINK})

    url: str
    """The address."""
    expire_time: datetime | None
    """When it ceases to work."""
    size_bytes: int
    """Size of the file."""
    content_digest: str
    """sha256 of the file as hexadecimal."""


class Health(_Body):
    """That the gateway answers."""

    status: str
    """`ok`."""
