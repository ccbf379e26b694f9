"""Every `reason` that an error, a failure or a warning can have, read from the sources, as Markdown tables."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {
    "client": "clients/fluxsmith",
    "either service": "services/common",
    "encoder": "services/encoder",
    "trainer": "services/trainer",
}
# What the client library makes of the services' own errors: their kinds, and then their statuses.
CLIENTS_NAME = {
    "InvalidInput": "InvalidRequest",
    "NotReady": "FailedPrecondition",
    "NotImplementedYet": "Unimplemented",
    "ServiceError": "InternalError",
    "JobFailure": "JobFailed",
}


@dataclass(frozen=True, kw_only=True, order=True)
class Reason:
    """One reason: who tells it, with which kind of error, and what there is to do."""

    kind: str
    reason: str
    teller: str
    remedy: str


def reasons() -> str:
    """Return a table for each kind of error."""
    by_kind: dict[str, dict[str, list[Reason]]] = defaultdict(lambda: defaultdict(list))
    for found in sorted(set(_all_reasons())):
        by_kind[found.kind][found.reason].append(found)
    return "\n".join(_table(kind, rows) for kind, rows in sorted(by_kind.items()))


def _table(kind: str, rows: dict[str, list[Reason]]) -> str:
    lines = [f"\n### {kind}\n", "| reason | told by | what to do |", "| --- | --- | --- |"]
    for reason, found in rows.items():
        tellers = ", ".join(sorted({each.teller for each in found}))
        remedies = sorted({each.remedy for each in found if each.remedy})
        lines.append(f"| `{reason}` | {tellers} | {'<br>'.join(remedies).replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def _all_reasons() -> Iterator[Reason]:
    for teller, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield from _reasons_in(ast.parse(path.read_text()), teller)


def _reasons_in(module: ast.Module, teller: str) -> Iterator[Reason]:
    for scope in ast.walk(module):
        if not isinstance(scope, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for call in _calls(scope):
            given = {keyword.arg: keyword.value for keyword in call.keywords}
            remedy = given.get("remedy") or next(iter(call.args[2:]), None)  # of invalid_field(field, fault, remedy)
            kind, reason = _kind(call, scope), _text(given.get("reason"), scope, module)
            if kind and reason.isupper():
                yield Reason(kind=kind, reason=reason, teller=teller, remedy=_text(remedy, scope, module))


def _calls(scope: ast.AST) -> Iterator[ast.Call]:
    """Calls in a class or function, those of functions inside it left to these."""
    for child in ast.iter_child_nodes(scope):
        if isinstance(child, ast.Call):
            yield child
        if isinstance(scope, ast.ClassDef) or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _calls(child)


def _kind(call: ast.Call, scope: ast.AST) -> str:
    """The client library's name of what the call makes; empty when that is no error."""
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name) if name != "__init__":
            pass
        case _:
            name = getattr(scope, "name", "")  # super().__init__(...) in a class of its own
    known = {**_parents(), **CLIENTS_NAME}
    seen = set()
    while name in known and name not in seen:
        seen.add(name)
        name = known[name]
    return name if name in _clients_errors() else ""


def _text(node: ast.expr | None, *scopes: ast.AST) -> str:
    """What an expression says, with an ellipsis for what is known only later."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(_text(part, *scopes) or "…" for part in parts)
        case ast.Name(id=name):
            values = (value for scope in scopes for value in _assigned(name, scope, node.lineno))
            return next((text for value in values if (text := _text(value, *scopes))), "")
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return (_text(left, *scopes) or "…") + (_text(right, *scopes) or "…")
        case ast.IfExp(body=body, orelse=other):
            return _text(body, *scopes) or _text(other, *scopes)
    return ""


def _assigned(name: str, scope: ast.AST, line: int) -> list[ast.expr]:
    """What a name was given before a line, the latest first."""
    values: list[ast.expr] = []
    for node in ast.walk(scope):
        match node:
            case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
                values.append(value)
            case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=given)):
                values += [value for each, value in zip(names, given, strict=False) if ast.unparse(each) == name]
    return sorted((value for value in values if value.lineno <= line), key=lambda value: -value.lineno)


@cache
def _parents() -> dict[str, str]:
    """Of each class its first base, and of each function what it returns, by name."""
    found: dict[str, str] = {}
    for folder in FOLDERS.values():
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef) and node.bases:
                    found.setdefault(node.name, ast.unparse(node.bases[0]).rpartition(".")[2])
                elif isinstance(node, ast.FunctionDef) and isinstance(node.returns, ast.Name | ast.Attribute):
                    found.setdefault(node.name, ast.unparse(node.returns).rpartition(".")[2])
    return {name: parent for name, parent in found.items() if name not in _clients_errors()}


@cache
def _clients_errors() -> frozenset[str]:
    """Names that the client library's users know: its errors, and the warnings among a job's events."""
    module = ast.parse((ROOT / "clients/fluxsmith/errors.py").read_text())
    return frozenset({node.name for node in module.body if isinstance(node, ast.ClassDef)} | {"JobWarning"})
