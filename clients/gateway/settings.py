"""Settings of the gateway, read from the environment once. Environment: `FLUXSMITH_GATEWAY_...`.

Where encoder and trainer are is read from FLUXSMITH_ENCODER and FLUXSMITH_TRAINER, as by every client.
"""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class GatewaySettings(BaseSettings):
    """What only the gateway needs."""

    model_config = SettingsConfigDict(env_prefix="FLUXSMITH_GATEWAY_", frozen=True)

    address: str = Field(default="127.0.0.1:7400", pattern=r".:\d{1,5}$")
    """Host and port to serve on."""
    max_body_bytes: int = Field(default=128 * 1024 * 1024, ge=1024)
    """Largest body of a request in bytes; base64 takes four for every three of a picture. It is held in memory."""
    max_samples: int = Field(default=100, ge=1)
    """Most samples in one request."""
    stop_s: float = Field(default=10.0, ge=0)
    """Seconds that requests under way are given when the gateway stops."""
