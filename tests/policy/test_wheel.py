"""The wheel: the client library alone, with everything it needs and nothing heavy."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import packages_distributions
from typing import Any

from tests.policy.sources import ROOT, imports, is_standard, sources

BESIDE = ("fluxsmith_command", "fluxsmith_text")
"""Modules beside the package: what imports them does not import all of it."""
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def canonical(requirement: str) -> str:
    """Name of a distribution without version, as the index compares it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[<>=!~\[; ]", requirement)[0]).lower()


# What brings the package is who asks for the module: a notebook, a run of pytest.
BROUGHT_BY_THE_USER = {"notebook.py": {"IPython"}, "pytest_plugin.py": {"pytest"}}


def required() -> set[str]:
    """Distributions that a plain `pip install fluxsmith` brings."""
    return {canonical(requirement) for requirement in PROJECT["project"]["dependencies"]}


def test_wheel_has_the_client_library_and_no_services() -> None:
    target = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert target["packages"] == ["clients/fluxsmith", *(f"clients/{name}.py" for name in BESIDE)]
    assert not {"include", "force-include", "only-include", "artifacts", "sources"} & set(target)


def test_folder_that_becomes_the_wheel_holds_code_and_its_types_only() -> None:
    files = {
        path for path in (ROOT / "clients/fluxsmith").rglob("*") if path.is_file() and path.parent.name != "__pycache__"
    }
    assert {path.suffix for path in files} <= {".py", ".pyi", ".typed", ""}
    assert ROOT / "clients/fluxsmith/py.typed" in files


def test_folders_beside_it_are_no_part_of_the_wheel() -> None:
    beside = {path.name for path in (ROOT / "clients").iterdir()} - {"__pycache__", "fluxsmith"}
    beside -= {f"{name}.py" for name in BESIDE}
    assert beside <= {"compat", "examples", "gateway"}


def test_wheel_requires_what_the_client_library_imports() -> None:
    distributions = packages_distributions()
    stubs = sorted((ROOT / "clients/fluxsmith/v1").glob("*.py"))
    names = {
        name.partition(".")[0]
        for path in (*sources("clients/fluxsmith"), *(ROOT / f"clients/{name}.py" for name in BESIDE), *stubs)
        for name in imports(path)
        if name.partition(".")[0] not in BROUGHT_BY_THE_USER.get(path.name, ())
    }
    needed = {
        name: {canonical(distribution) for distribution in distributions[name]}
        for name in names - {"fluxsmith", *BESIDE}
        if not is_standard(name)
    }
    assert not {name for name, providers in needed.items() if not providers & required()}


def test_plain_install_is_light() -> None:
    assert not required() & {"torch", "numpy", "pillow", "diffusers", "transformers", "safetensors", "minio"}


def test_every_extra_but_the_full_one_pins_torch_through_server() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    assert [line for line in extras["server"] if canonical(line) == "torch"] == ["torch==2.13.0"]
    assert all("fluxsmith[server]" in extras[name] for name in ("encoder", "trainer"))
