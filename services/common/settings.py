"""Settings that both services read from the environment, once, when they start."""

from __future__ import annotations

from typing import Literal, TypeVar

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.common.errors import ServiceError


class StoreSettings(BaseSettings):
    """Where the object store is. Environment: `FLUXSMITH_STORE_...`."""

    model_config = SettingsConfigDict(env_prefix="FLUXSMITH_STORE_", frozen=True)

    endpoint: str = "127.0.0.1:9000"
    """Host and port of an S3 server, without a scheme."""
    public_endpoint: str = ""
    """Host and port under which clients reach the server, for download addresses; empty means `endpoint`."""
    access_key: str = "fluxsmith"
    """Name of the S3 credentials."""
    secret_key: SecretStr = SecretStr("")
    """Secret of the S3 credentials."""
    bucket: str = "fluxsmith"
    """Bucket that holds everything; made when missing."""
    secure: bool = False
    """Speak TLS to the store."""


class ServiceSettings(BaseSettings):
    """What every service needs. Environment: `FLUXSMITH_...`."""

    model_config = SettingsConfigDict(env_prefix="FLUXSMITH_", frozen=True)

    base_model: str = "assets/flux-tiny"
    """Folder of the base model in diffusers' layout, or its hub identifier."""
    base_model_revision: str | None = None
    """Commit of the hub repository; required with a hub identifier."""
    device: str = "auto"
    """Torch device: `cuda`, `cpu`; `auto` takes CUDA where there is one. CUDA_VISIBLE_DEVICES says which."""
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of weights and activations; `auto` means bf16 on CUDA and fp32 on the CPU."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO")
    """Least severe log line written."""


Settings = TypeVar("Settings", bound=BaseSettings)


def read_settings(kind: type[Settings]) -> Settings:
    """Settings from the environment; raises `ServiceError` that names the variables at fault."""
    try:
        return kind()
    except ValidationError as error:
        prefix = kind.model_config.get("env_prefix", "")
        faults = [
            f"{str(prefix).upper()}{str(detail['loc'][0]).upper()} is {detail['input']!r}: {detail['msg']}"
            for detail in error.errors()
        ]
        raise ServiceError(
            "; ".join(faults), reason="SETTINGS_INVALID", remedy="Set the environment variables named, or unset them."
        ) from error
