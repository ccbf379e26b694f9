"""Errors of the domain: what went wrong, with the wrong value and the remedy. `server.py` makes them gRPC statuses."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class FieldViolation:
    """One wrong field of a request: its path, and what is wrong with its value in a sentence."""

    field: str
    description: str


class ServiceError(Exception):
    """Base of all. `reason` is stable and for programs; `remedy` tells a person what to do.

    Callers see these three. `detail` is for the log alone: addresses, and what others said of them.
    """

    def __init__(self, message: str, *, reason: str, remedy: str, detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.remedy = remedy
        self.detail = detail

    @property
    def line(self) -> str:
        """What went wrong and what to do, in one line."""
        return f"{self.message}. {self.remedy}"

    @property
    def log_line(self) -> str:
        """The same for who runs the services, with the detail."""
        return f"{self.told}. {self.remedy}"

    @property
    def told(self) -> str:
        """What went wrong, with the detail."""
        return f"{self.message} ({self.detail})" if self.detail else self.message


class InvalidInput(ServiceError):
    """The request itself is wrong, whatever the state of the service. `violations` has all of them."""

    def __init__(self, message: str, *, reason: str, remedy: str, violations: tuple[FieldViolation, ...] = ()) -> None:
        super().__init__(message, reason=reason, remedy=remedy)
        self.violations = violations


class NotFound(ServiceError):
    """The caller's tenant has no such resource."""


class AlreadyExists(ServiceError):
    """A `request_id` came again with another payload."""


class NotReady(ServiceError):
    """The resource is in a state that does not allow this."""


class LimitExceeded(ServiceError):
    """More than this service takes."""


class QuotaExceeded(LimitExceeded):
    """As much as `subject`, `user:NAME` or `tenant:NAME`, may have; what it has must become less first."""

    def __init__(self, message: str, *, reason: str, remedy: str, subject: str) -> None:
        super().__init__(message, reason=reason, remedy=remedy)
        self.subject = subject


class Unavailable(ServiceError):
    """Something this service depends on does not answer; the same call may succeed after `retry_after_s` seconds."""

    def __init__(self, message: str, *, reason: str, remedy: str, detail: str = "", retry_after_s: float = 2.0) -> None:
        super().__init__(message, reason=reason, remedy=remedy, detail=detail)
        self.retry_after_s = retry_after_s
