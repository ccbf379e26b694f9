"""What the gateway takes and answers, as its OpenAPI description shows it."""

import ast
import base64
from dataclasses import asdict
from datetime import datetime
from inspect import getsource
from itertools import pairwise
from typing import Annotated, Any, Self

from fluxsmith import Fault, JobState, TrainConfig, TrainingJob
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, WithJsonSchema
from pydantic.dataclasses import dataclass


def _describe(schema: dict[str, Any]) -> None:
    """Add the sentences that stand below the fields of `TrainConfig`; pydantic reads those of its own classes only."""
    (definition,) = ast.parse(getsource(TrainConfig)).body
    for field, below in pairwise(getattr(definition, "body", ())):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            schema["properties"][ast.unparse(field.target)]["description"] = " ".join(str(below.value.value).split())


# Every field of `TrainConfig`, and none besides.
TrainingParams = dataclass(
    TrainConfig, config=ConfigDict(extra="forbid", json_schema_extra=_describe), frozen=True, kw_only=True
)

# 64 x 64 px, so that the example of the description can be sent as it stands.
RED_DOT_PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABAAQMAAACQp+OdAAAABlBMVEX////cHh7/Hx2WAAAAcklEQVR42s3QsQ3CMBSE4c/PSKRkBDYhbO4R"
    "GCEjuIwQiilMCgsKyvzV6e6e9HQcj3P9iNuGjCWlIkjMvdJaJZiYiP00uHAiuBJjNJNGp5MpSOU7+kdkzNx/dwptdBY2gsprjFZWgicPgtZ/"
    "29cY9jkAb7FqFwcNkzldAAAAAElFTkSuQmCC"
)


def _decoded(text: object) -> bytes:
    if not isinstance(text, str):
        raise ValueError("is not text")
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode("".join(encoded.split()), validate=True)
    except ValueError as error:
        raise ValueError(f"is not base64: {error}") from error


def _sendable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # such as \ud83d alone, which JSON can say
        raise ValueError("has half a character, which UTF-8 cannot hold") from error
    return text


Text = Annotated[str, AfterValidator(_sendable)]


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
    description: Text
    """The caption."""


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
    user_id: StrictInt | Text
    """The product's user whom the job is for, up to 64 characters."""
    training_params: TrainingParams = TrainingParams()  # type: ignore[valid-type]  # made from TrainConfig above
    """How to train; what is left out is the trainer's default."""


class TrainResponse(_Body):
    """What was trained."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "model_url": "s3://fluxsmith/default/jobs/job-0123456789abcdef0123/1/lora.safetensors",
                "job_id": "job-0123456789abcdef0123",
            }
        }
    )

    model_url: str
    """`s3://bucket/key` of the LoRA, a safetensors file; `GET /jobs/{job_id}/download` gives an address for HTTP."""
    job_id: str
    """The job that made it."""


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

    job_id: str
    """Identifier given by the trainer."""
    user_id: str
    """As given, as text."""
    state: JobState
    """Where it stands."""
    step: int
    """Optimizer steps done."""
    total_steps: int
    """Optimizer steps in all, once it runs; 0 before."""
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
            total_steps=job.total_steps,
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
