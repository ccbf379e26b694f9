"""Errors as problem+json (RFC 9457): which status each has, and what is told beside it."""

import logging
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from math import ceil
from typing import Any, Self

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fluxsmith import Fault, FluxsmithError, errors
from pydantic import BaseModel, ConfigDict
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
_ADDRESS = re.compile(r"(?<=^the (?:encoder|trainer)) at \S+")  # as the client tells of one that is away
MOST_VIOLATIONS = 20
"""Most fields at fault that one answer lists."""
CAPTION_TOO_LONG = "CAPTION_TOO_LONG"
"""Type of a fault, and the reason of an answer that tells no other."""
_LONGEST_FIELD, _LONGEST_DESCRIPTION = 200, 1000
_OF_SAMPLE = re.compile(r"(?P<part>\w+) of sample 'train_data\[(?P<number>\d+)\]'")

# The first kind that fits; whatever is not here is a fault of the services or the gateway.
_STATUS_OF: tuple[tuple[type[FluxsmithError], HTTPStatus], ...] = (
    (errors.InvalidRequest, HTTPStatus.UNPROCESSABLE_ENTITY),
    (errors.DatasetFailed, HTTPStatus.UNPROCESSABLE_ENTITY),
    (errors.NotFound, HTTPStatus.NOT_FOUND),
    (errors.AlreadyExists, HTTPStatus.CONFLICT),
    (errors.FailedPrecondition, HTTPStatus.CONFLICT),
    (errors.JobCancelled, HTTPStatus.CONFLICT),
    (errors.QuotaExceeded, HTTPStatus.TOO_MANY_REQUESTS),
    (errors.LimitExceeded, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    (errors.PermissionDenied, HTTPStatus.FORBIDDEN),
    (errors.Unimplemented, HTTPStatus.NOT_IMPLEMENTED),
    (errors.DeadlineExceeded, HTTPStatus.GATEWAY_TIMEOUT),
    (errors.Unavailable, HTTPStatus.SERVICE_UNAVAILABLE),
)


class Violation(BaseModel):
    """What is wrong with one field."""

    field: str
    description: str


class Problem(BaseModel):
    """What went wrong, and what to do about it."""

    model_config = ConfigDict(
        use_attribute_docstrings=True,
        json_schema_extra={
            "example": {
                "title": "Not Found",
                "status": 404,
                "detail": "there is no job 'job-1'",
                "reason": "JOB_NOT_FOUND",
                "remedy": "List the jobs of your tenant, or create one.",
            }
        },
    )

    title: str
    """The status in words."""
    status: int
    """The HTTP status."""
    detail: str
    """What went wrong, in a sentence."""
    reason: str
    """Stable, for programs, such as `JOB_NOT_FOUND`; docs/errors.md has a table of them."""
    remedy: str = ""
    """What to do about it; may be empty."""
    retry_after_s: float | None = None
    """Seconds after which to try again, if the service named them; also in the header Retry-After."""
    violations: list[Violation] = []
    """The fields at fault, the first 20 of them."""
    more_violations: int = 0
    """How many further fields are at fault."""
    job_id: str | None = None
    """The job that the problem came up with or after; it can be asked for."""


class Refusal(HTTPException):
    """A problem to raise; of starlette's kind, which passes through whatever calls the code that raises it."""

    def __init__(self, status: HTTPStatus, detail: str, *, reason: str, **more: Any) -> None:
        super().__init__(status, detail)
        self.told = Problem(title=status.phrase, status=status, detail=detail, reason=reason, **more)

    @classmethod
    def of_fields(cls, faults: Sequence[ErrorDetails | dict[str, Any]], *, within: tuple[str, ...] = ()) -> Self:
        """Of the faults that pydantic found, their places below `within`."""
        too_long = {fault["type"] for fault in faults} == {CAPTION_TOO_LONG}
        return cls(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "the request is not as /openapi.json describes it.",
            reason=CAPTION_TOO_LONG if too_long else "REQUEST_INVALID",
            remedy="Mend the fields named.",
            violations=[
                Violation(
                    field=".".join(map(str, (*within, *fault["loc"]))),
                    description=fault["msg"].removeprefix("Value error, "),
                )
                for fault in faults[:MOST_VIOLATIONS]
            ],
            more_violations=max(0, len(faults) - MOST_VIOLATIONS),
        )


def problem(status: HTTPStatus, detail: str, *, reason: str, **more: Any) -> JSONResponse:
    """A response that tells a problem."""
    return respond(Problem(title=status.phrase, status=status, detail=detail, reason=reason, **more))


def respond(told: Problem, *, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The response that tells this problem, its violations cut to what a person reads."""
    listed = told.violations[:MOST_VIOLATIONS]
    told = told.model_copy(
        update={
            "violations": [
                Violation(
                    field=_cut(one.field, _LONGEST_FIELD), description=_cut(one.description, _LONGEST_DESCRIPTION)
                )
                for one in listed
            ],
            "more_violations": told.more_violations + len(told.violations) - len(listed),
        }
    )
    retry = {} if told.retry_after_s is None else {"Retry-After": str(ceil(told.retry_after_s))}
    content = told.model_dump(mode="json", exclude_defaults=True)
    return JSONResponse(content, told.status, {**(headers or {}), **retry}, MEDIA_TYPE)


def _cut(text: str, most: int) -> str:
    """The text as an answer can hold it: not too long, and without half a character."""
    whole = text.encode(errors="backslashreplace").decode()
    return whole if len(whole) <= most else f"{whole[:most]}... ({len(whole):,} characters)"


def problem_of(error: FluxsmithError, *, job_id: str | None = None) -> Problem:
    """What is told of an error of the services; `job_id` is the job that it came up with."""
    if isinstance(error, errors.JobFailed):
        mendable = error.fault in {Fault.USER, Fault.RESOURCE}
        status = HTTPStatus.UNPROCESSABLE_ENTITY if mendable else HTTPStatus.INTERNAL_SERVER_ERROR
    else:
        status = next((status for kind, status in _STATUS_OF if isinstance(error, kind)), HTTPStatus.BAD_GATEWAY)
    violations = error.violations if isinstance(error, errors.InvalidRequest) else ()
    detail = _ADDRESS.sub("", error.message)  # ours to know, not our callers'
    if detail != error.message:
        log.warning("%s", error.message)
    return Problem(
        title=status.phrase,
        status=status,
        detail=detail,
        reason=error.reason,
        remedy=error.remedy,
        retry_after_s=error.retry_after_s,
        violations=[Violation(field=_field(one.field), description=one.description) for one in violations],
        job_id=job_id,
    )


def _field(name: str) -> str:
    """The services' name of a field as callers of the gateway have it."""
    if of_sample := _OF_SAMPLE.fullmatch(name):
        part = "description" if of_sample["part"] == "captions" else "image"
        return f"body.train_data.{of_sample['number']}.{part}"
    return f"body.training_params.{name.removeprefix('config.')}" if name.startswith("config.") else name


def install(app: FastAPI) -> None:
    """Answer every error of the application with a problem."""

    @app.exception_handler(FluxsmithError)
    async def of_services(request: Request, error: FluxsmithError) -> JSONResponse:
        told = problem_of(error)
        key = request.headers.get("Idempotency-Key")  # the services call it request_id
        if told.reason == "REQUEST_ID_REUSED":
            told.detail = f"the Idempotency-Key {key!r} came with another body before."
            told.remedy = "Send that body again, or another Idempotency-Key with this one."
        if told.reason == "JOB_DELETED":
            told.detail = f"the Idempotency-Key {key!r} made a job that has been deleted."
            told.remedy = "Send another Idempotency-Key to train anew."
        if told.reason == "TOKEN_INVALID":
            told.status, told.title = HTTPStatus.UNAUTHORIZED, HTTPStatus.UNAUTHORIZED.phrase
            return respond(told, headers={"WWW-Authenticate": "Bearer"})
        return respond(told)

    @app.exception_handler(RequestValidationError)
    async def of_parameters(_: Request, error: RequestValidationError) -> JSONResponse:
        return respond(Refusal.of_fields(error.errors()).told)

    @app.exception_handler(Refusal)
    async def of_refusal(_: Request, error: Refusal) -> JSONResponse:
        return respond(error.told)

    @app.exception_handler(HTTPException)
    async def of_routing(_: Request, error: HTTPException) -> JSONResponse:
        status = HTTPStatus(error.status_code)
        told = Problem(
            title=status.phrase,
            status=status,
            detail=str(error.detail),
            reason=status.name,
            remedy="/docs has the endpoints there are.",
        )
        return respond(told, headers=error.headers)

    @app.exception_handler(Exception)
    async def of_gateway(_: Request, __: Exception) -> JSONResponse:  # the server logs it besides
        return problem(
            HTTPStatus.INTERNAL_SERVER_ERROR,
            "the gateway failed for a reason that it did not foresee.",
            reason="INTERNAL",
            remedy="Its log has the traceback; report it.",
        )
