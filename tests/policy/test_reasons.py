"""Every reason that an error or a warning can have is documented, and every error of the client has a remedy."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tests.policy.sources import ROOT, sources, tree

DOCUMENT = (ROOT / "docs/errors.md").read_text()


def calls_with_a_reason(folder: str) -> Iterator[tuple[str, ast.Call]]:
    """Each call that is given a reason as text, and that reason."""
    for path in sources(folder):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call):
                for keyword in node.keywords:
                    if keyword.arg == "reason":
                        yield from ((reason, node) for reason in texts_in(keyword.value))


def texts_in(value: ast.expr) -> Iterator[str]:
    """The reasons that an expression may give: one, or one of two."""
    parts = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
    yield from (str(part.value) for part in parts if isinstance(part, ast.Constant))


def test_every_reason_is_documented() -> None:
    reasons = {reason for folder in ("services", "clients/fluxsmith") for reason, _ in calls_with_a_reason(folder)}
    assert len(reasons) > 80
    assert not reasons - set(re.findall(r"`([A-Z_]+)`", DOCUMENT))


def test_every_documented_error_is_provoked_by_a_test() -> None:
    rows = re.findall(r"^\| (`[A-Z_`, ]+`) \|", DOCUMENT, re.MULTILINE)
    documented = {reason for row in rows for reason in re.findall(r"[A-Z_]+", row)}
    assert len(documented) > 80
    tests = "".join(path.read_text() for path in sources("tests") if path.parent.name != "policy")
    assert not {reason for reason in documented if not re.search(rf"\b{reason}\b", tests)}


def test_every_error_of_the_client_has_a_remedy() -> None:
    without = [
        reason
        for reason, call in calls_with_a_reason("clients/fluxsmith")
        if "remedy" not in {keyword.arg for keyword in call.keywords}
    ]
    assert not without


def test_every_error_in_the_document_exists() -> None:
    named = set(re.findall(r"`errors\.(\w+)`", DOCUMENT))
    defined = {node.name for node in tree(ROOT / "clients/fluxsmith/errors.py").body if isinstance(node, ast.ClassDef)}
    assert len(named) > 10
    assert not named - defined
