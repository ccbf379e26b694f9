"""Every call has a tenant, and a tenant's name can never reach into another's keys."""

from __future__ import annotations

import pytest

from services.common.caller import TENANT_KEY, TOKEN_KEY, caller_from
from services.common.errors import InvalidInput


def test_call_without_tenant_is_for_the_default_one() -> None:
    assert caller_from([("user-agent", "grpc")]).tenant == "default"


@pytest.mark.parametrize("name", ["a", "team-7", "0", "x" * 63])
def test_tenant_is_read_from_the_metadata(name: str) -> None:
    assert caller_from([("user-agent", "grpc"), (TENANT_KEY, name)]).tenant == name


@pytest.mark.parametrize("name", ["", "a/b", "..", "A", "-a", "a-", "x" * 64, "a b", "a\n", "ä", b"a"])
def test_malformed_tenant_is_refused(name: str | bytes) -> None:
    with pytest.raises(InvalidInput) as caught:
        caller_from([(TENANT_KEY, name)])
    assert caught.value.reason == "TENANT_INVALID"
    assert caught.value.violations[0].field == f"metadata.{TENANT_KEY}"


@pytest.mark.parametrize("key", [TENANT_KEY, TOKEN_KEY])
@pytest.mark.parametrize("values", [("a", "a"), ("a", "b", "c")])
def test_header_that_comes_twice_is_refused_though_both_be_right(key: str, values: tuple[str, ...]) -> None:
    with pytest.raises(InvalidInput, match=f"{key} comes {len(values)} times") as caught:
        caller_from([(key, value) for value in values])
    assert caught.value.reason == "METADATA_REPEATED"
    assert "proxy" in caught.value.remedy
