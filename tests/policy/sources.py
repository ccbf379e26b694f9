"""The project's own Python sources, read once."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("clients", "services", "demo", "tools", "benchmarks", "tests")


@cache
def sources(folder: str = "") -> tuple[Path, ...]:
    """Python files under a folder, or all; without the generated stubs."""
    found = (path for name in ([folder] if folder else FOLDERS) for path in sorted((ROOT / name).rglob("*.py")))
    return tuple(path for path in found if path.parent != ROOT / "clients/fluxsmith/v1")


@cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(), str(path))


def imports(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, wherever in it."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def importers(folder: str, *forbidden: str) -> list[str]:
    """What files under a folder import of the modules given, as `file imports module`."""
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(folder)
        for name in imports(path)
        if any(name == module or name.startswith(f"{module}.") for module in forbidden)
    ]


def is_standard(module: str) -> bool:
    """Whether a module comes with Python."""
    return module in sys.stdlib_module_names
