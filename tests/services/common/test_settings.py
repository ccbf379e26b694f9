"""Settings come from the environment, once, and keep secrets to themselves."""

from __future__ import annotations

import traceback

import pytest
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings

from services.common.errors import ServiceError
from services.common.settings import ServiceSettings, StoreSettings, read_settings
from services.encoder.settings import EncoderSettings
from services.trainer.settings import TrainerSettings

URL = "FLUXSMITH_TRAINER_DATABASE_URL"


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


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgres://fluxsmith:hunter2@db/x", "begins with postgres://; use"),
        ("postgresql://fluxsmith:hunter2@db/x", "begins with postgresql://; use"),
        ("mysql://fluxsmith:hunter2@db/x", "begins with mysql://; use"),
        ("hunter2", "use sqlite:///FILE or postgresql"),
        ("postgresql+psycopg://fluxsmith@db:hunter2/x", "%XX"),
    ],
)
def test_database_url_is_refused_with_the_remedy_and_without_its_password(
    monkeypatch: pytest.MonkeyPatch, url: str, told: str
) -> None:
    monkeypatch.setenv(URL, url)
    with pytest.raises(ServiceError) as caught:
        read_settings(TrainerSettings)
    assert f"{URL} is not shown here: " in caught.value.line
    assert told in caught.value.line
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_database_url_is_in_no_text_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URL, "postgresql+psycopg://fluxsmith:hunter2@db/x")
    settings = TrainerSettings()
    assert "hunter2" in settings.database_url
    assert "hunter2" not in f"{settings!r} {settings}"


class Guarded(BaseSettings):
    """Settings whose secrets have rules that they can break."""

    token: SecretStr = Field(default=SecretStr(""), max_length=3)
    url: str = Field(default="", max_length=3, repr=False)


@pytest.mark.parametrize("name", ["TOKEN", "URL"])
def test_no_wrong_setting_that_holds_a_secret_is_shown(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "hunter2")
    with pytest.raises(ServiceError, match=f"{name} is not shown here: ") as caught:
        read_settings(Guarded)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("kind", [StoreSettings, ServiceSettings, EncoderSettings, TrainerSettings])
def test_errors_of_pydantic_itself_show_no_values(kind: type[BaseSettings]) -> None:
    assert kind.model_config["hide_input_in_errors"]
