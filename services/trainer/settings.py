"""Settings of the trainer and its workers, read from the environment once. Environment: `FLUXSMITH_TRAINER_...`."""

from __future__ import annotations

import math
import re

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError


class TrainerSettings(BaseSettings):
    """What only the trainer needs."""

    model_config = SettingsConfigDict(env_prefix="FLUXSMITH_TRAINER_", frozen=True, hide_input_in_errors=True)

    address: str = "127.0.0.1:7402"
    """Host and port to serve on."""
    stop_grace_s: float = Field(default=70.0, ge=1)
    """Seconds from SIGTERM to the server's end; its workers have 60 of them for a checkpoint of each job. A second
    signal ends the server at once."""
    encoder_address: str = "127.0.0.1:7401"
    """Host and port of the encoder, for previews and the report's contact sheet; jobs go on without it."""
    database_url: str = Field(default="sqlite:///data/jobs.sqlite", repr=False)
    """SQLAlchemy URL of the database with jobs and events: `sqlite:///FILE` or `postgresql+psycopg://...`. Never shown,
    since it may hold a password."""
    workers: int = Field(default=1, ge=0, le=16)
    """Worker processes that this server starts, one a GPU; 0 where workers are started by other means."""
    lease_s: float = Field(default=15.0, ge=1)
    """A worker silent for this many seconds has lost its job to the next one that asks."""
    heartbeat_s: float = Field(default=0.5, gt=0)
    """Seconds between a worker's signs of life; also how soon it notices a cancellation."""
    stall_s: float = Field(default=1800.0, ge=1)
    """A worker whose job has not got on for so many seconds, in a step or between steps, ends itself to be replaced."""
    max_attempts: int = Field(default=3, ge=1)
    """Attempts at one job, by lost workers or with errors of the service's own, without a new checkpoint in between,
    before it is given up."""
    retry_delay_s: float = Field(default=10.0, ge=0)
    """Seconds before a job is tried again after an error of the service's own; more with each attempt."""
    active_jobs: int = Field(default=4, ge=1, le=64)
    """Jobs that take turns on one worker's base. Those that wait their turn keep their state in main memory."""
    slice_s: float = Field(default=10.0, gt=0)
    """Seconds of a turn, when others wait: it ends with the step that is then under way."""
    checkpoint_interval_s: float = Field(default=300.0, gt=0)
    """Seconds of training between checkpoints of jobs that say nothing about it: the most work that can be lost."""
    deterministic: bool = True
    """Keep a GPU to kernels that sum in a fixed order; without them a job that was interrupted, or that took turns with
    others, ends with other last bits. Set to false where a kernel of that kind is missing."""
    max_user_jobs: int = Field(default=0, ge=0)
    """Unfinished jobs of one user, beyond which no more are taken; 0 means no limit."""
    max_tenant_jobs: int = Field(default=0, ge=0)
    """Unfinished jobs of one tenant, beyond which no more are taken; 0 means no limit."""
    events_kept_days: float = Field(default=30.0, ge=0)
    """Days after a job's end when its events are removed, but for the last; 0 means never."""
    jobs_kept_days: float = Field(default=0.0, ge=0)
    """Days after its end when a job is deleted with all its files; 0 means never."""

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, url: str) -> str:
        if not url.startswith(("sqlite:///", "postgresql+psycopg://")):
            scheme = re.match(r"[a-z0-9+]{1,30}://", url)
            begins = f"it begins with {scheme[0]}; " if scheme else ""
            raise ValueError(f"{begins}use sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME")
        try:
            make_url(url)
        except (ValueError, ArgumentError):  # which name a part of it
            message = "it has no form of a URL; write what is no letter or digit in its password as %XX"
            raise ValueError(message) from None
        return url

    @field_validator("heartbeat_s")
    @classmethod
    def _beats_within_the_lease(cls, heartbeat_s: float, info: ValidationInfo) -> float:
        lease_s = info.data.get("lease_s", math.inf)
        if heartbeat_s > lease_s / 2:
            raise ValueError(f"use at most half of the lease, which is {lease_s:g} s: it must not run out in between")
        return heartbeat_s
