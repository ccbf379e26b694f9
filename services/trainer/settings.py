"""Settings of the trainer and its workers, read from the environment once. Environment: `FLUXSMITH_TRAINER_...`."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class TrainerSettings(BaseSettings):
    """What only the trainer needs."""

    model_config = SettingsConfigDict(env_prefix="FLUXSMITH_TRAINER_", frozen=True)

    address: str = "127.0.0.1:7402"
    """Host and port to serve on."""
    encoder_address: str = "127.0.0.1:7401"
    """Host and port of the encoder, for previews and the report's contact sheet; jobs go on without it."""
    database_url: str = "sqlite:///data/jobs.sqlite"
    """SQLAlchemy URL of the database with jobs and events: `sqlite:///FILE` or `postgresql+psycopg://...`."""
    workers: int = Field(default=1, ge=0, le=16)
    """Worker processes that this server starts, one a GPU; 0 where workers are started by other means."""
    lease_s: float = Field(default=15.0, ge=1)
    """A worker silent for this many seconds has lost its job to the next one that asks."""
    heartbeat_s: float = Field(default=0.5, gt=0)
    """Seconds between a worker's signs of life; also how soon it notices a cancellation."""
    max_attempts: int = Field(default=3, ge=1)
    """Tries of one job, by lost workers or with errors of the service's own, before it is given up."""
    retry_delay_s: float = Field(default=10.0, ge=0)
    """Seconds before a job is tried again after an error of the service's own; more with each attempt."""
