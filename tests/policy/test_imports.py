"""Who may import whom: the services are separable, the client library is light, tensor code knows no wire."""

from __future__ import annotations

import ast
import json
import subprocess
import sys

import pytest

from tests.policy.sources import ROOT, importers, sources, tree

WIRE = ("grpc", "google", "fluxsmith")
AT_THE_EDGE = {"servicer.py", "wire.py", "requests.py", "server.py", "gate.py", "encoder_link.py", "app.py", "stack.py"}


def test_encoder_and_trainer_never_import_each_other() -> None:
    assert not importers("services/encoder", "services.trainer")
    assert not importers("services/trainer", "services.encoder")


def test_common_imports_neither_service() -> None:
    assert not importers("services/common", "services.encoder", "services.trainer", "services.stack")


def test_client_library_imports_nothing_of_the_services() -> None:
    assert not importers("clients/fluxsmith", "services", "torch", "numpy", "PIL", "tests")


def test_gateway_and_compatible_interface_are_clients_like_others() -> None:
    for folder in ("clients/gateway", "clients/compat"):
        assert not importers(folder, "services", "tests", "grpc", "fluxsmith.v1")


def test_services_import_no_tests_and_no_tools() -> None:
    assert not importers("services", "tests", "tools", "demo", "benchmarks")


def test_protobuf_and_grpc_stay_at_the_edge() -> None:
    inside = [line for line in importers("services", *WIRE) if line.split()[0].split("/")[-1] not in AT_THE_EDGE]
    assert not inside


@pytest.mark.parametrize("module", ["fluxsmith", "fluxsmith.cli.app"])
def test_importing_the_client_library_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, json, {module}; print(json.dumps(sorted(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(process.stdout)}
    assert "fluxsmith" in loaded
    assert not loaded & {"torch", "numpy", "PIL", "diffusers", "transformers", "services"}


def test_every_import_is_absolute() -> None:
    relative = [
        path.relative_to(ROOT)
        for path in sources()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not relative
