"""Names that say nothing are not used."""

from __future__ import annotations

import ast
import re

from tests.policy.sources import ROOT, sources, tree

EMPTY_WORDS = {"util", "utils", "helper", "helpers", "manager", "managers", "misc"}
GIVEN_BY_THE_INTERFACE = {"flux_training_utils.py"}  # clients/compat keeps the names that callers use already


def words(name: str) -> set[str]:
    """The words of a name in snake_case or CamelCase."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def test_no_module_or_folder_has_an_empty_name() -> None:
    chosen = [path for path in sources() if path.name not in GIVEN_BY_THE_INTERFACE]
    parts = {part for path in chosen for part in path.relative_to(ROOT).with_suffix("").parts}
    assert not {part for part in parts if words(part) & EMPTY_WORDS}


def test_no_class_has_an_empty_name() -> None:
    classes = (node.name for path in sources() for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef))
    assert not {name for name in classes if words(name) & EMPTY_WORDS}


def test_every_file_opens_with_what_it_is_for() -> None:
    silent = [path for path in sources() if path.read_text().strip() and not ast.get_docstring(tree(path))]
    assert not [path for path in silent if path.relative_to(ROOT).parts[0] in {"clients", "services"}]
