"""The documentation site: built from docs/ and docstrings without a warning, complete, and of nobody else's parts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fluxsmith import TrainConfig, errors
from fluxsmith.v1 import encoder_pb2, trainer_pb2

from tests.policy.sources import ROOT
from tools.pages.reasons import reasons


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    return folder


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    loads = re.compile(r"<(?:script|img|iframe)[^>]+src=.?https?:|<link[^>]+rel=.?(?:stylesheet|pre)[^>]+https?:")
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    assert not [page.name for page in pages if loads.search(page.read_text())]


def test_every_field_of_a_configuration_is_described(site: Path) -> None:
    page = (site / "reference/training.html").read_text()
    assert not [name for name in TrainConfig.__dataclass_fields__ if f"TrainConfig.{name}" not in page]


def test_choices_and_kinds_of_problem_are_explained(site: Path) -> None:
    assert "The image ends before its data does." in (site / "reference/data.html").read_text()
    assert "Serve for all tests of the run" in (site / "reference/testing.html").read_text()


def test_every_error_is_described(site: Path) -> None:
    page = (site / "reference/errors.html").read_text()
    kinds = [name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert not [name for name in kinds if f'id="fluxsmith.errors.{name}"' not in page]


def test_every_call_of_the_contract_is_described(site: Path) -> None:
    page = (site / "reference/contract.html").read_text()
    services = [*encoder_pb2.DESCRIPTOR.services_by_name.values(), *trainer_pb2.DESCRIPTOR.services_by_name.values()]
    assert not [method.name for service in services for method in service.methods if f"{method.name}(" not in page]


def test_reasons_are_told_under_the_clients_own_names() -> None:
    tables = dict(zip(*[iter(re.split(r"\n### (\w+)\n", reasons())[1:])] * 2, strict=True))
    assert "| `CONFIG_INVALID` | client, trainer |" in tables["InvalidRequest"]
    assert "| `NON_FINITE_LOSS` | trainer | Lower the learning rate" in tables["JobFailed"]
    assert "`STALLED`" in tables["JobWarning"]
    assert "`BASE_MODEL_MISMATCH`" in tables["FailedPrecondition"]


def test_links_out_of_the_documentation_are_named_instead(site: Path) -> None:
    page = (site / "examples.html").read_text()
    assert "<code>clients/examples/quickstart.py</code>" in page
    assert 'href="../clients' not in page
