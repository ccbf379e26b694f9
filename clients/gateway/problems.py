"""Errors as problem+json (RFC 9457): which status each has, and what is told beside it."""

from collections.abc import Mapping
from http import HTTPStatus
from math import ceil
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fluxsmith import Fault, FluxsmithError, errors
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

MEDIA_TYPE = "application/problem+json"

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
    """Every field at fault."""
    job_id: str | None = None
    """The job that the problem came up with or after; it can be asked for."""


def problem(status: HTTPStatus, detail: str, *, reason: str, **more: Any) -> JSONResponse:
    """A response that tells a problem."""
    return respond(Problem(title=status.phrase, status=status, detail=detail, reason=reason, **more))


def respond(told: Problem, *, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The response that tells this problem."""
    retry = {} if told.retry_after_s is None else {"Retry-After": str(ceil(told.retry_after_s))}
    content = told.model_dump(mode="json", exclude_defaults=True)
    return JSONResponse(content, told.status, {**(headers or {}), **retry}, MEDIA_TYPE)


def problem_of(error: FluxsmithError, *, job_id: str | None = None) -> Problem:
    """What is told of an error of the services; `job_id` is the job that it came up with."""
    if isinstance(error, errors.JobFailed):
        mendable = error.fault in {Fault.USER, Fault.RESOURCE}
        status = HTTPStatus.UNPROCESSABLE_ENTITY if mendable else HTTPStatus.INTERNAL_SERVER_ERROR
    else:
        status = next((status for kind, status in _STATUS_OF if isinstance(error, kind)), HTTPStatus.BAD_GATEWAY)
    violations = error.violations if isinstance(error, errors.InvalidRequest) else ()
    return Problem(
        title=status.phrase,
        status=status,
        detail=error.message,
        reason=error.reason,
        remedy=error.remedy,
        retry_after_s=error.retry_after_s,
        violations=[Violation(field=one.field, description=one.description) for one in violations],
        job_id=job_id,
    )


def install(app: FastAPI) -> None:
    """Answer every error of the application with a problem."""

    @app.exception_handler(FluxsmithError)
    async def of_services(_: Request, error: FluxsmithError) -> JSONResponse:
        return respond(problem_of(error))

    @app.exception_handler(RequestValidationError)
    async def of_body(_: Request, error: RequestValidationError) -> JSONResponse:
        violations = [
            Violation(field=".".join(map(str, fault["loc"])), description=str(fault["msg"])) for fault in error.errors()
        ]
        return problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "the request is not as /openapi.json describes it.",
            reason="REQUEST_INVALID",
            remedy="Mend the fields named.",
            violations=violations,
        )

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
