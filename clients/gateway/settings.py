"""Settings of the gateway, read from the environment once. Environment: `FLUXSMITH_GATEWAY_...`.

Where encoder and trainer are is read from FLUXSMITH_ENCODER and FLUXSMITH_TRAINER, as by every client.
"""

from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict


def host_and_port(address: str) -> tuple[str, int]:
    """Return the two parts of `host:port` or `[host]:port`; `ValueError` with a remedy for anything else."""
    host, _, port = address.rpartition(":")
    if not host or not (port.isdecimal() and int(port) < 2**16):
        raise ValueError("give host:port, such as 127.0.0.1:7400")
    return host.strip("[]"), int(port)


def _address(text: str) -> str:
    host_and_port(text)
    return text


class GatewaySettings(BaseSettings):
    """What only the gateway needs."""

    model_config = SettingsConfigDict(env_prefix="FLUXSMITH_GATEWAY_", frozen=True)

    address: Annotated[str, AfterValidator(_address)] = "127.0.0.1:7400"
    """Host and port to serve on."""
    max_body_bytes: int = Field(default=128 * 1024 * 1024, ge=1024)
    """Largest body of a request in bytes; base64 takes four for every three of a picture. It is held in memory."""
    max_samples: int = Field(default=100, ge=1)
    """Most samples in one request."""
    stop_s: float = Field(default=10.0, ge=0)
    """Seconds that requests under way are given when the gateway stops."""
