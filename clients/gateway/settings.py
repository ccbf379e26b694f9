"""Settings of the gateway, read from the environment once. Environment: `FLUXSMITH_GATEWAY_...`.

Where encoder and trainer are is read from FLUXSMITH_ENCODER and FLUXSMITH_TRAINER, as by every client.
"""

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

_AUTHORITY = re.compile(
    r"(?P<name>[a-z0-9_]([a-z0-9._-]*[a-z0-9_])?|\[[0-9a-f:.]+\])(:(?P<port>[0-9]{1,5}))?", re.IGNORECASE
)


def host_and_port(address: str) -> tuple[str, int]:
    """Return the two parts of `host:port` or `[host]:port`; `ValueError` with a remedy for anything else."""
    host, _, port = address.rpartition(":")
    if not host or not (port.isdecimal() and int(port) < 2**16):
        raise ValueError("give host:port, such as 127.0.0.1:7400")
    return host.strip("[]"), int(port)


def name_and_port(authority: str) -> tuple[str, int | None]:
    """Return the name in lower case and the port, None without one; `ValueError` with a remedy for anything else."""
    read = _AUTHORITY.fullmatch(authority)
    if not read or int(read["port"] or 0) >= 2**16:
        raise ValueError(
            f"{authority!r} is no name: give name or name:port, such as loras.example.com, with commas between"
        )
    return read["name"].strip("[]").lower(), int(read["port"]) if read["port"] else None


def _address(text: str) -> str:
    host_and_port(text)
    return text


def _names(given: object) -> object:
    return tuple(name.strip() for name in given.split(",") if name.strip()) if isinstance(given, str) else given


def _named(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        name_and_port(name)
    return names


class GatewaySettings(BaseSettings):
    """What only the gateway needs."""

    model_config = SettingsConfigDict(env_prefix="FLUXSMITH_GATEWAY_", frozen=True)

    address: Annotated[str, AfterValidator(_address)] = "127.0.0.1:7400"
    """Host and port to serve on."""
    public_hosts: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names), AfterValidator(_named)] = ()
    """Names by which it is reached besides its address and localhost, such as that of a proxy before it, with commas
    between; a name with a port is served on that port only.
    """
    max_body_bytes: int = Field(default=128 * 1024 * 1024, ge=1024)
    """Largest body of a request in bytes; base64 takes four for every three of a picture. It is held in memory."""
    max_bytes_under_way: int = Field(default=512 * 1024 * 1024, validate_default=True)
    """Bytes of bodies that are held at once over all requests; at least `max_body_bytes`."""
    body_s: float = Field(default=300.0, gt=0)
    """Seconds in which a body has to arrive."""
    max_samples: int = Field(default=100, ge=1)
    """Most samples in one request."""
    stop_s: float = Field(default=10.0, ge=0)
    """Seconds that requests under way are given when the gateway stops."""

    @field_validator("max_bytes_under_way")
    @classmethod
    def _holds_the_largest(cls, given: int, info: ValidationInfo) -> int:
        largest = info.data.get("max_body_bytes", 0)
        if given < largest:
            raise ValueError(f"give at least {largest}, the largest body that is taken")
        return given
