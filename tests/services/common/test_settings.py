"""Settings come from the environment, once, and keep secrets to themselves."""

from __future__ import annotations

import pytest
from pydantic import SecretStr, ValidationError

from services.common.errors import ServiceError
from services.common.settings import ServiceSettings, StoreSettings, read_settings


def test_environment_overrides_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXSMITH_STORE_ENDPOINT", "store:9000")
    monkeypatch.setenv("FLUXSMITH_DTYPE", "bf16")
    assert StoreSettings().endpoint == "store:9000"
    assert ServiceSettings().dtype == "bf16"


def test_settings_never_change_afterwards() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        StoreSettings().endpoint = "elsewhere"  # type: ignore[misc]


def test_secret_is_not_printed() -> None:
    assert "hush" not in repr(StoreSettings(secret_key=SecretStr("hush")))


def test_unknown_precision_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXSMITH_DTYPE", "fp4")
    with pytest.raises(ValidationError, match="dtype"):
        ServiceSettings()


def test_wrong_setting_is_named_as_it_stands_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_settings(ServiceSettings) == ServiceSettings()
    monkeypatch.setenv("FLUXSMITH_DTYPE", "fp4")
    with pytest.raises(ServiceError, match="FLUXSMITH_DTYPE is 'fp4'") as caught:
        read_settings(ServiceSettings)
    assert caught.value.remedy
