"""Where the services are and who calls them: arguments first, then the environment, then the embedded stack."""

import os
import re
from dataclasses import dataclass

from fluxsmith.errors import FieldViolation, InvalidRequest

_TENANT = re.compile(r"[a-z0-9-]{1,63}")
_MOST_TOKEN_CHARACTERS = 4096  # gRPC takes 8 KiB of headers
_TOKEN = re.compile(rf"[!-~]{{1,{_MOST_TOKEN_CHARACTERS}}}")
_ADDRESS = re.compile(r"unix:.+|[^\s/]+:(?P<port>[0-9]{1,5})")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Addresses as `host:port`, and the tenant that owns what the caller makes."""

    encoder: str
    trainer: str
    tenant: str


def resolve_settings(*, encoder: str | None, trainer: str | None, tenant: str | None) -> Settings:
    """Fill in what is not given from FLUXSMITH_ENCODER, FLUXSMITH_TRAINER and FLUXSMITH_TENANT, or the defaults.

    Raises `InvalidRequest` for an address or a tenant that cannot be one.
    """
    settings = Settings(
        encoder=encoder or os.environ.get("FLUXSMITH_ENCODER") or "127.0.0.1:7401",
        trainer=trainer or os.environ.get("FLUXSMITH_TRAINER") or "127.0.0.1:7402",
        tenant=tenant or os.environ.get("FLUXSMITH_TENANT") or "default",
    )
    _check_address("encoder", settings.encoder)
    _check_address("trainer", settings.trainer)
    if not _TENANT.fullmatch(settings.tenant):
        message = f"the tenant {settings.tenant!r} is not made of 1 to 63 characters of a-z, 0-9 and `-`."
        violation = FieldViolation(field="tenant", description=message)
        raise InvalidRequest(
            message, reason="TENANT_INVALID", remedy="Give another name for it.", violations=(violation,)
        )
    return settings


def check_token(token: str | None) -> None:
    """Raise `InvalidRequest` for a token that cannot travel; whether it is right is the services' to say."""
    if token is not None and not _TOKEN.fullmatch(token):
        # It is a secret: not repeated.
        message = f"the token is not 1 to {_MOST_TOKEN_CHARACTERS} characters of visible ASCII."
        violation = FieldViolation(field="token", description=message)
        remedy = "Give it as it was issued, without the word Bearer."
        raise InvalidRequest(message, reason="TOKEN_INVALID", remedy=remedy, violations=(violation,))


def _check_address(service: str, address: str) -> None:
    read = _ADDRESS.fullmatch(address)
    if not read or int(read["port"] or 0) > 65535:
        message = f"the {service}'s address {address!r} is not of the form host:port."
        remedy = (
            f"Give it without a scheme and with a port, such as 127.0.0.1:{7401 if service == 'encoder' else 7402}."
        )
        violation = FieldViolation(field=service, description=message)
        raise InvalidRequest(message, reason="ADDRESS_INVALID", remedy=remedy, violations=(violation,))
