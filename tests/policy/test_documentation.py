"""What the documentation names exists: paths, make targets, settings, commands, RPCs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fluxsmith.cli.app import app
from fluxsmith.v1 import encoder_pb2, trainer_pb2
from gateway.settings import GatewaySettings
from pydantic_settings import BaseSettings

from services.common.settings import ServiceSettings, StoreSettings
from services.encoder.servicer import EncoderServicer
from services.encoder.settings import EncoderSettings
from services.trainer.servicer import TrainerServicer
from services.trainer.settings import TrainerSettings
from tests.policy.sources import ROOT, sources

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])
SETTINGS: tuple[type[BaseSettings], ...] = (
    ServiceSettings,
    StoreSettings,
    EncoderSettings,
    TrainerSettings,
    GatewaySettings,
)
OF_CLIENTS_AND_SCRIPTS = {
    "FLUXSMITH_BROWSER_TESTS",
    "FLUXSMITH_CHROMIUM",
    "FLUXSMITH_ENCODER",
    "FLUXSMITH_TRAINER",
    "FLUXSMITH_TENANT",
    "FLUXSMITH_VENV",
}
# Made by the commands that the documentation is about.
MADE_LATER = (".venv", "build", "dist", "data", "demo-output")


def each_document(*, without_links: bool = False) -> list[tuple[Path, str]]:
    """Every document and its text."""
    texts = [(path, path.read_text()) for path in DOCUMENTS]
    return [(path, re.sub(r"\[[^\]]*\]\([^)]*\)", "", text)) for path, text in texts] if without_links else texts


def exists(name: str, document: Path) -> bool:
    """Whether a path is there, from the root or from the document, or is made later."""
    if Path(name).parts[:1] and Path(name).parts[0] in MADE_LATER:
        return True
    return any((folder / name).exists() for folder in (ROOT, document.parent))


def test_links_lead_somewhere() -> None:
    links = [
        (document, target.partition("#")[0])
        for document, text in each_document()
        for target in re.findall(r"\]\(([^)\s]+)\)", text)
        if not re.match(r"https?:|#|mailto:", target)
    ]
    assert len(links) > 5
    assert not [f"{document.name}: {target}" for document, target in links if not exists(target, document)]


def is_path(word: str) -> bool:
    """Whether a word in backticks means a file or folder of the project."""
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)*\.(py|sh|md|toml|yml|proto|binpb)", word):
        return True
    return bool(re.fullmatch(r"[\w.-]+/[\w./-]*", word)) and (ROOT / word.partition("/")[0]).is_dir()


def test_paths_in_backticks_exist() -> None:
    named = [
        (document, word)
        for document, text in each_document(without_links=True)
        for code in re.findall(r"`([^`\n]+)`", text)
        for word in code.split()
        if is_path(word)
    ]
    assert len(named) > 10
    sources_by_name = {path.name for path in (*sources(), *ROOT.glob("scripts/*"))}  # a bare `train.py` is one of them
    missing = [(document, word) for document, word in named if not exists(word, document)]
    assert not [f"{document.name}: {word}" for document, word in missing if word not in sources_by_name]


def test_paths_in_tables_of_folders_exist() -> None:
    rows = re.findall(
        r"^    ([\w./-]+/[\w./-]*)(?:, ([\w./-]+/))?  +\S", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE
    )
    named = [name for row in rows for name in row if name]
    assert len(named) > 5
    assert not [name for name in named if not (ROOT / name).exists()]


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        target
        for _, text in each_document()
        for target in re.findall(r"(?:`|\$ |^ {4}|=\S+ )make ([a-z]+)", text, re.MULTILINE)
    }
    assert {"demo", "test"} <= named
    assert named <= targets


def test_scripts_that_make_calls_exist_and_can_be_run() -> None:
    called = re.findall(r"@(scripts/[\w-]+\.sh)", (ROOT / "Makefile").read_text())
    assert called
    assert not [name for name in called if not (ROOT / name).stat().st_mode & 0o100]


def known_variables() -> set[str]:
    """Every environment variable that something reads."""
    services = {f"{kind.model_config['env_prefix']}{field.upper()}" for kind in SETTINGS for field in kind.model_fields}
    return services | OF_CLIENTS_AND_SCRIPTS


@pytest.mark.parametrize("pattern", ["*.md", "docs/*.md", "docker-compose*.yml", "scripts/*.sh", "services/**/*.py"])
def test_environment_variables_are_read_by_something(pattern: str) -> None:
    named = {
        name
        for path in ROOT.glob(pattern)
        for name in re.findall(r"\bFLUXSMITH_[A-Z0-9_]*[A-Z0-9]\b", path.read_text())
        if not name.endswith(("_STORE", "FLUXSMITH"))
    }
    prefixes = {str(kind.model_config["env_prefix"]).rstrip("_") for kind in SETTINGS}
    assert not named - known_variables() - prefixes


def test_every_rpc_of_the_contract_is_answered_by_code_of_its_own() -> None:
    for contract, servicer in ((encoder_pb2, EncoderServicer), (trainer_pb2, TrainerServicer)):
        (service,) = contract.DESCRIPTOR.services_by_name.values()
        assert not [method.name for method in service.methods if method.name not in vars(servicer)]


def test_every_command_has_a_section_in_the_documentation() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    titles = {word for line in re.findall(r"^## (.+)$", text, re.MULTILINE) for word in line.split(", ")}
    commands = {str(command.name or command.callback.__name__).replace("_", "-") for command in app.registered_commands}  # type: ignore[union-attr]
    assert len(commands) > 15
    assert commands <= titles
