"""Settings that both services read from the environment, once, when they start."""

from __future__ import annotations

from typing import Literal, TypeVar

from pydantic import Field, SecretStr, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.common.errors import ServiceError


class StoreSettings(BaseSettings):
    """Where the object store is. Environment: `FLUXSMITH_STORE_...`."""

    model_config = SettingsConfigDict(env_prefix="FLUXSMITH_STORE_", frozen=True, hide_input_in_errors=True)

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

    model_config = SettingsConfigDict(env_prefix="FLUXSMITH_", frozen=True, hide_input_in_errors=True)

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
    """Settings from the environment; raises `ServiceError` that names the variables at fault.

    It shows their values, but for those of fields that hold a secret: `SecretStr`, or `Field(repr=False)`.
    """
    try:
        return kind()
    except ValidationError as error:
        faults = "; ".join(_fault(kind, detail) for detail in error.errors(include_context=False))
    # Not raised from the other: that holds the values, and would be in the log with a traceback.
    raise ServiceError(faults, reason="SETTINGS_INVALID", remedy="Set the environment variables named, or unset them.")


def _fault(kind: type[BaseSettings], detail: ErrorDetails) -> str:
    name = str(detail["loc"][0])
    field = kind.model_fields[name]
    secret = not field.repr or field.annotation is SecretStr
    value = "not shown here" if secret else repr(detail["input"])
    return f"{str(kind.model_config.get('env_prefix', '')).upper()}{name.upper()} is {value}: {detail['msg']}"
