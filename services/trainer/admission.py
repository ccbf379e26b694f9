"""What a caller asks for becomes a job: checked against datasets and base model, held, and written down."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from services.common.base_model import known_transformer
from services.common.cache import hold_key
from services.common.errors import InvalidInput, ServiceError, Unavailable
from services.common.fields import invalid_field
from services.common.object_store import ObjectStore
from services.common.settings import ServiceSettings
from services.trainer.adapters.fit import adapter_shapes, refuse_other_rank, refuse_other_type, refuse_unlike
from services.trainer.adapters.targets import target_ranks
from services.trainer.adapters.uploads import outline_of_warm_start
from services.trainer.config import TrainConfig, parse_config, valid_part
from services.trainer.config.fields import ConfigFields
from services.trainer.data.references import DatasetReferences
from services.trainer.database.job_store import JobStore, new_job_id, request_id_reused
from services.trainer.estimate.architecture import Architecture, Linear
from services.trainer.foreseen import foreseen
from services.trainer.jobs import DatasetReference, Job, NewJob
from services.trainer.settings import TrainerSettings

HIGHEST_PRIORITY = 100


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A job as a caller asks for it: `config` as it was sent, datasets by name, none of it looked at.

    `held_out_to_come` says of a job that is only checked that it will have a held-out dataset.
    """

    user_id: str = ""
    display_name: str = ""
    dataset_id: str = ""
    held_out_dataset_id: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    start_while_encoding: bool = False
    held_out_to_come: bool = False
    priority: int = 0

    @property
    def measures_on_a_dataset(self) -> bool:
        """Whether it has a held-out dataset."""
        return bool(self.held_out_dataset_id) or self.held_out_to_come


class Admission:
    """Makes jobs of one trainer."""

    def __init__(
        self, jobs: JobStore, objects: ObjectStore, service: ServiceSettings, settings: TrainerSettings
    ) -> None:
        self._jobs = jobs
        self._objects = objects
        self._service = service
        self._settings = settings

    def create(self, tenant: str, asked: Asked, *, request_id: str) -> Job:
        """Queue a job, once for a `request_id`.

        Raises `AlreadyExists` for a request_id that came with another payload, `InvalidInput`, `NotFound` and
        `NotReady` for what cannot run, so that a worker hears only of jobs that can, and `QuotaExceeded` when the user
        or the tenant has as many unfinished jobs as the settings allow.
        """
        if known := self._jobs.created_by(tenant, request_id):
            refuse_other_payload(known, asked, request_id)
            return known
        config = self.check(tenant, asked)
        references = DatasetReferences(self._objects, tenant)
        dataset, held_out = self._find(references, asked, config)
        new = NewJob(
            user_id=asked.user_id,
            display_name=asked.display_name,
            dataset=dataset,
            held_out=held_out,
            config=config,
            start_while_encoding=asked.start_while_encoding,
            priority=asked.priority,
        )
        job_id = new_job_id()
        references.hold(job_id, *new.references())
        try:
            job = self._jobs.create(
                tenant,
                new,
                request_id=request_id,
                job_id=job_id,
                max_user_jobs=self._settings.max_user_jobs,
                max_tenant_jobs=self._settings.max_tenant_jobs,
                warnings=foreseen(config, tuple(self._layers) if config.target_regex else ()),
            )
        except Unavailable:
            raise  # it may be there all the same
        except ServiceError:
            self._let_go(tenant, job_id, new)
            raise
        if job.job_id != job_id:  # another call with this request_id came first
            self._let_go(tenant, job_id, new)
        return job

    def check_only(self, tenant: str, asked: Asked) -> None:
        """Raise what `create` would, but for datasets that are not named yet; nothing is queued."""
        config = self.check(tenant, asked)
        if asked.dataset_id:
            self._find(DatasetReferences(self._objects, tenant), asked, config)

    def check(self, tenant: str, asked: Asked) -> TrainConfig:
        """The configuration with its defaults; raises one `InvalidInput` with all that is wrong with the request."""
        known = valid_part(asked.config)
        checks: list[Callable[[], object]] = [
            partial(parse_config, asked.config),
            *contradictions(asked, known),
            partial(self._refuse_unmatched_targets, known),
            partial(self._refuse_unmatched_targets, known.model_copy(update={"target_regex": ""})),
        ]
        if known.warm_start_uri:
            whole = not is_refused(partial(parse_config, asked.config))
            checks.append(partial(self._refuse_other_file, tenant, known, whole=whole))
        refuse_all(checks)
        return parse_config(asked.config)

    def _let_go(self, tenant: str, job_id: str, new: NewJob) -> None:
        for reference in new.references():
            self._objects.delete(hold_key(tenant, reference.held_by, job_id))

    def _find(
        self, references: DatasetReferences, asked: Asked, config: TrainConfig
    ) -> tuple[DatasetReference, DatasetReference | None]:
        dataset = references.find("dataset_id", asked.dataset_id, while_encoding=asked.start_while_encoding)
        references.refuse_too_few(dataset, config.held_out_share)
        if not asked.held_out_dataset_id:
            return dataset, None
        held_out = references.find("held_out_dataset_id", asked.held_out_dataset_id)
        references.refuse_other_encoder(dataset, held_out)
        return dataset, held_out

    def _refuse_unmatched_targets(self, config: ConfigFields) -> None:
        if (config.target_regex or config.rank_pattern) and self._layers:
            target_ranks(self._layers, config)

    def _refuse_other_file(self, tenant: str, config: ConfigFields, *, whole: bool) -> None:
        """Read the header of the file to begin with; with a `whole` configuration it must be like the job's adapter."""
        outline = outline_of_warm_start(self._objects, tenant, config.warm_start_uri)
        if not whole:
            return
        refuse_other_type(outline, config)
        if self._layers:
            ranks = target_ranks(self._layers, config)
            refuse_unlike(outline, config, adapter_shapes(self._layers, ranks, config))
        else:
            refuse_other_rank(outline, config)

    @cached_property
    def _layers(self) -> dict[str, Linear]:
        """The base's linear layers; none where only the workers have the base, who check for themselves."""
        config = known_transformer(self._service)
        return Architecture.of(config, text_tokens=0).linears() if config else {}


def contradictions(asked: Asked, config: ConfigFields) -> Iterator[Callable[[], None]]:
    """What the configuration and the rest of the request do to each other, each a check that raises `InvalidInput`."""

    def refused(wrong: bool, place: str, description: str, remedy: str) -> Callable[[], None]:
        def check() -> None:
            if wrong:
                raise invalid_field(place, description, remedy)

        return check

    yield refused(
        not -HIGHEST_PRIORITY <= asked.priority <= HIGHEST_PRIORITY,
        "priority",
        f"is {asked.priority}",
        f"Use {-HIGHEST_PRIORITY} to {HIGHEST_PRIORITY}.",
    )
    yield refused(
        asked.start_while_encoding and "steps" not in asked.config,
        "start_while_encoding",
        "comes without config.steps",
        "Give its length in steps: epochs are counted in samples, which are not all known yet.",
    )
    yield refused(
        bool(config.held_out_share) and asked.measures_on_a_dataset,
        "config.held_out_share",
        "comes with held_out_dataset_id",
        "Measure on a dataset of its own, or on a share of the one to train on.",
    )
    yield refused(
        bool(config.held_out_share) and asked.start_while_encoding,
        "config.held_out_share",
        "comes with start_while_encoding",
        "Name a held-out dataset: which samples a share holds is known only once all are encoded.",
    )
    yield refused(
        bool(config.early_stopping_patience)
        and not (asked.config.get("held_out_share") or asked.measures_on_a_dataset),
        "config.early_stopping_patience",
        "comes without held-out data",
        "Name a held-out dataset, or set held_out_share.",
    )


def is_refused(check: Callable[[], object]) -> bool:
    """Whether a check raises `InvalidInput`."""
    try:
        check()
    except InvalidInput:
        return True
    return False


def refuse_all(checks: list[Callable[[], object]]) -> None:
    """Run every check; raise what one of them raised, or one `InvalidInput` of all."""
    errors: dict[str, InvalidInput] = {}
    for check in checks:
        try:
            check()
        except InvalidInput as error:
            errors.setdefault(error.message, error)
    found = list(errors.values())
    if len(found) == 1:
        raise found[0]
    if found:
        raise InvalidInput(
            "; ".join(errors),
            reason="CONFIG_INVALID",
            remedy=" ".join(dict.fromkeys(error.remedy for error in found)),
            violations=tuple(violation for error in found for violation in error.violations),
        )


def refuse_other_payload(known: Job, asked: Asked, request_id: str) -> None:
    """Raise `AlreadyExists` when a request_id comes again for another job than it made."""
    held_out = known.held_out.dataset_id if known.held_out else ""
    made = (
        known.user_id,
        known.display_name,
        known.dataset.dataset_id,
        held_out,
        known.start_while_encoding,
        known.priority,
    )
    now = (
        asked.user_id,
        asked.display_name,
        asked.dataset_id,
        asked.held_out_dataset_id,
        asked.start_while_encoding,
        asked.priority,
    )
    if made != now or known.config != parse_config(asked.config):
        raise request_id_reused(request_id)
