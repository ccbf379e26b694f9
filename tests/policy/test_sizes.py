"""A function has at most 60 lines, a file at most 400. Over it, it is two ideas."""

from __future__ import annotations

import ast

from tests.policy.sources import ROOT, sources, tree

MOST_LINES_OF_A_FUNCTION = 60
MOST_LINES_OF_A_FILE = 400


def test_sources_are_found() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in sources()}
    assert {"services/trainer/train.py", "clients/fluxsmith/client.py", "tests/policy/test_sizes.py"} <= names


def test_no_function_is_too_long() -> None:
    too_long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name} has {lines} lines"
        for path in sources()
        for node in ast.walk(tree(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > MOST_LINES_OF_A_FUNCTION
    ]
    assert not too_long


def test_no_file_is_too_long() -> None:
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in sources()}
    assert not {name: lines for name, lines in lengths.items() if lines > MOST_LINES_OF_A_FILE}
