"""The client without an event loop is the one for asyncio without `async` and `await`."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys

import fluxsmith
import pytest

from tests.policy.sources import ROOT

TWINS = [
    (fluxsmith.AsyncClient, fluxsmith.Client),
    (fluxsmith.AsyncDatasets, fluxsmith.Datasets),
    (fluxsmith.AsyncJobHandle, fluxsmith.JobHandle),
]


def test_twins_are_fresh() -> None:
    command = [sys.executable, str(ROOT / "scripts/make_sync.py"), "--check"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr


@pytest.mark.parametrize(("written", "made"), TWINS)
def test_twins_offer_the_same(written: type, made: type) -> None:
    def offered(kind: type) -> dict[str, list[str]]:
        methods = inspect.getmembers(kind, inspect.isfunction)
        return {name: list(inspect.signature(value).parameters) for name, value in methods if name[0] != "_"}

    assert offered(written) == offered(made)


def test_only_the_runtime_knows_asyncio() -> None:
    knowing = [
        path.name
        for path in (ROOT / "clients/fluxsmith/_async").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Name) and node.id == "asyncio"
    ]
    assert set(knowing) == {"_runtime.py"}
