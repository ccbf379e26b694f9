"""Every error this library raises: one tree under `FluxsmithError`, each with a stable reason and a remedy."""

from dataclasses import dataclass

from fluxsmith_text import on_one_line

from fluxsmith.data import Dataset
from fluxsmith.training import JobFailure, TrainingJob

LEAVE_OUT = "Or leave them out with skip_bad_samples=True."
_MAX_NAMED = 10


class FluxsmithError(Exception):
    """Something went wrong.

    `message` says what, in a sentence; `remedy` what to do about it, in a sentence, or is empty; `reason` is stable and
    meant for programs, such as `DATASET_NOT_FOUND`; `retry_after_s` is the wait in seconds that the service asked for
    before the same is tried again, or None.
    """

    def __init__(self, message: str, *, reason: str = "", remedy: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.remedy = remedy
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return on_one_line(f"{_sentence(self.message)} {self.remedy}".strip())


@dataclass(frozen=True, kw_only=True)
class FieldViolation:
    """What is wrong with one field of a request."""

    field: str
    description: str


class InvalidRequest(FluxsmithError):
    """The request itself is wrong: sent again, it fails again. `violations` names every field at fault."""

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        remedy: str = "",
        retry_after_s: float | None = None,
        violations: tuple[FieldViolation, ...] = (),
    ) -> None:
        super().__init__(message, reason=reason, remedy=remedy, retry_after_s=retry_after_s)
        self.violations = violations

    def __str__(self) -> str:
        named = [f"{violation.field}: {violation.description}" for violation in self.violations]
        unsaid = [text for text, violation in zip(named, self.violations, strict=True) if _adds(violation, self)]
        return on_one_line(" ".join([*map(_sentence, [self.message, *unsaid]), self.remedy]).strip())


class InvalidSource(InvalidRequest):
    """What a dataset was to be made of cannot become one; told before sending, unless a file changed since.

    `violations` names the rows at fault, as `row 3`, counted from 1.
    """


class InvalidFolder(InvalidSource):
    """The folder, or a file in it, cannot become a dataset; told before sending, unless a file changed since."""


class NotFound(FluxsmithError):
    """No such dataset, job or file for this tenant."""


class AlreadyExists(FluxsmithError):
    """The identifier of the request was used for something else."""


class FailedPrecondition(FluxsmithError):
    """The thing is not in a state that allows this."""


class LimitExceeded(FluxsmithError):
    """More than the service takes or the caller may have."""


class QuotaExceeded(LimitExceeded):
    """A user or a tenant has as many unfinished jobs as it may: `reason` is USER_QUOTA or TENANT_QUOTA.

    `subject` says whose quota it is, as `user:ada` or `tenant:acme`.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        remedy: str = "",
        retry_after_s: float | None = None,
        subject: str = "",
    ) -> None:
        super().__init__(message, reason=reason, remedy=remedy, retry_after_s=retry_after_s)
        self.subject = subject


class PermissionDenied(FluxsmithError):
    """The caller is unknown or may not do this."""


class Unimplemented(FluxsmithError):
    """The service does not offer this, or not yet."""


class DeadlineExceeded(FluxsmithError):
    """The answer did not come in time; whether the service did the work is not known."""


class InternalError(FluxsmithError):
    """The service failed for a reason it did not foresee."""


class Unavailable(FluxsmithError):
    """The service, or something it needs, is away or busy."""


class DatasetFailed(FluxsmithError):
    """A dataset could not be encoded: see `dataset.bad_samples`."""

    def __init__(self, dataset: Dataset) -> None:
        # The service's own sentence may name a sample already.
        bad = dataset.bad_samples
        unsaid = [problem for problem in bad if problem.sample_name not in dataset.failure_message]
        named = [f"{problem.sample_name}: {problem.message.rstrip('.')}" for problem in unsaid[:_MAX_NAMED]]
        # Only so many travel with a dataset, bad ones first: a list without a warning may be cut.
        cut = dataset.problem_count > len(dataset.problems) == len(bad)
        count = f"{'at least ' if cut else ''}{len(unsaid) - _MAX_NAMED}"
        more = [f"and {count} more"] if len(unsaid) > _MAX_NAMED else []
        causes = [text for text in (dataset.failure_message.rstrip("."), *named, *more) if text]
        message = f"dataset {dataset.id} could not be encoded: {'; '.join(causes)}."
        remedy = (
            f"Mend or remove these samples and try again. {LEAVE_OUT}"
            if bad
            else "Encode it again, or read the encoder's log."
        )
        super().__init__(message, reason="DATASET_FAILED", remedy=remedy)
        self.dataset = dataset


class JobFailed(FluxsmithError):
    """A training job ended without a result; `failure` says whose fault it was."""

    def __init__(self, job: TrainingJob) -> None:
        self.failure = job.failure or JobFailure(message="the service gave no cause")
        message = f"job {job.id} failed: {self.failure.message}"
        super().__init__(message, reason=self.failure.reason, remedy=self.failure.remedy)
        self.fault = self.failure.fault
        self.job = job


class JobCancelled(FluxsmithError):
    """A training job was cancelled before it had a result."""

    def __init__(self, job: TrainingJob) -> None:
        remedy = "Fetch the LoRA of a checkpoint, or train it again." if job.checkpoint_step else "Train it again."
        super().__init__(f"job {job.id} was cancelled.", reason="JOB_CANCELLED", remedy=remedy)
        self.job = job


class DownloadFailed(FluxsmithError):
    """A file could not be fetched whole and unchanged. Nothing was written under the target's name."""


class UploadFailed(FluxsmithError):
    """The object store did not take a file."""


def _adds(violation: FieldViolation, error: FluxsmithError) -> bool:
    """Whether the violation says something that the message does not say already."""
    return violation.description.rstrip(".") not in error.message


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
