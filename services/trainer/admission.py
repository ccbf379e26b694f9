"""What a caller asks for becomes a job: checked against datasets and base model, held, and written down."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property

from services.common.fields import invalid_field
from services.common.object_store import ObjectStore
from services.common.settings import ServiceSettings
from services.trainer.adapters.targets import linear_names_of, target_ranks
from services.trainer.adapters.uploads import warm_start_key
from services.trainer.config import TrainConfig
from services.trainer.data.references import DatasetReferences
from services.trainer.job_store import JobStore, new_job_id, request_id_reused
from services.trainer.jobs import Job, NewJob

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A job as a caller asks for it: datasets by name, not yet looked at."""

    user_id: str = ""
    display_name: str = ""
    dataset_id: str
    held_out_dataset_id: str = ""
    config: TrainConfig
    start_while_encoding: bool = False


class Admission:
    """Makes jobs of one trainer."""

    def __init__(self, jobs: JobStore, objects: ObjectStore, service: ServiceSettings) -> None:
        self._jobs = jobs
        self._objects = objects
        self._service = service

    def create(self, tenant: str, asked: Asked, *, request_id: str) -> Job:
        """Queue a job, once for a `request_id`.

        Raises `AlreadyExists` for a request_id that came with another payload, `InvalidInput`, `NotFound` and
        `NotReady` for what cannot run, so that a worker hears only of jobs that can.
        """
        if known := self._jobs.created_by(tenant, request_id):
            refuse_other_payload(known, asked, request_id)
            return known
        refuse_contradictions(asked)
        self._refuse_unmatched_targets(asked.config)
        if asked.config.warm_start_uri:
            warm_start_key(self._objects, tenant, asked.config.warm_start_uri)
        references = DatasetReferences(self._objects, tenant)
        dataset = references.find("dataset_id", asked.dataset_id, while_encoding=asked.start_while_encoding)
        held_out = None
        if asked.held_out_dataset_id:
            held_out = references.find("held_out_dataset_id", asked.held_out_dataset_id)
            references.refuse_other_encoder(dataset, held_out)
        new = NewJob(
            user_id=asked.user_id,
            display_name=asked.display_name,
            dataset=dataset,
            held_out=held_out,
            config=asked.config,
            start_while_encoding=asked.start_while_encoding,
        )
        job_id = new_job_id()
        references.hold(job_id, *new.references())
        return self._jobs.create(tenant, new, request_id=request_id, job_id=job_id)

    def _refuse_unmatched_targets(self, config: TrainConfig) -> None:
        if (config.target_regex or config.rank_pattern) and self._linear_names:
            target_ranks(self._linear_names, config)

    @cached_property
    def _linear_names(self) -> tuple[str, ...]:
        """Names of the base's linear layers; none where only the workers have the base, who check for themselves."""
        from diffusers import FluxTransformer2DModel  # noqa: PLC0415 - as in targets.py

        try:
            config = FluxTransformer2DModel.load_config(
                self._service.base_model, subfolder="transformer", revision=self._service.base_model_revision
            )
        except (OSError, ValueError) as error:
            log.warning("target_regex and rank_pattern are left to the workers to check: %s", error)
            return ()
        return linear_names_of(config)


def refuse_contradictions(asked: Asked) -> None:
    """Raise `InvalidInput` for what the configuration and the datasets named do to each other."""
    config = asked.config
    if asked.start_while_encoding and config.steps is None:
        remedy = "Give its length in steps: epochs are counted in samples, which are not all known yet."
        raise invalid_field("start_while_encoding", "comes without config.steps", remedy)
    if config.held_out_share and asked.held_out_dataset_id:
        remedy = "Measure on a dataset of its own, or on a share of the one to train on."
        raise invalid_field("config.held_out_share", "comes with held_out_dataset_id", remedy)
    if config.held_out_share and asked.start_while_encoding:
        remedy = "Name a held-out dataset: which samples a share holds is known only once all are encoded."
        raise invalid_field("config.held_out_share", "comes with start_while_encoding", remedy)
    if config.early_stopping_patience and not (config.held_out_share or asked.held_out_dataset_id):
        remedy = "Name a held-out dataset, or set held_out_share."
        raise invalid_field("config.early_stopping_patience", "comes without held-out data", remedy)


def refuse_other_payload(known: Job, asked: Asked, request_id: str) -> None:
    """Raise `AlreadyExists` when a request_id comes again for another job than it made."""
    made = Asked(
        user_id=known.user_id,
        display_name=known.display_name,
        dataset_id=known.dataset.dataset_id,
        held_out_dataset_id=known.held_out.dataset_id if known.held_out else "",
        config=known.config,
        start_while_encoding=known.start_while_encoding,
    )
    if made != asked:
        raise request_id_reused(request_id)
