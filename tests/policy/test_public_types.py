"""What users of the client library see is its own: no protobuf or gRPC type is in a public signature."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import fluxsmith
import grpc
from fluxsmith.v1 import encoder_pb2

FOREIGN = ("grpc", "google", "fluxsmith.v1")


def public_things() -> Iterator[tuple[str, Any]]:
    """Every class, function and method of the package's surface."""
    for owner in (fluxsmith, fluxsmith.errors):
        names = fluxsmith.__all__ if owner is fluxsmith else [name for name in dir(owner) if name[0] != "_"]
        yield from ((name, getattr(owner, name)) for name in names if not inspect.ismodule(getattr(owner, name)))
    for kind in (fluxsmith.Client, fluxsmith.Datasets, fluxsmith.JobHandle):
        yield from of_class(kind)
        yield from of_class(getattr(fluxsmith, f"Async{kind.__name__}"))


def of_class(kind: type) -> Iterator[tuple[str, Any]]:
    """The methods and properties that users call. Handles are made by the library, not by them."""
    for name, member in inspect.getmembers(kind):
        made_by_users = name == "__init__" and kind.__name__.endswith("Client")
        if made_by_users or name[0] != "_":
            yield f"{kind.__name__}.{name}", member.fget if isinstance(member, property) else member


def types_in(annotation: Any) -> Iterator[Any]:
    """Every type that an annotation is made of."""
    yield annotation
    for part in get_args(annotation):
        yield from types_in(part)


def foreign(thing: Any) -> list[str]:
    """The types in a thing's annotations that are of gRPC or protobuf."""
    hints = get_type_hints(thing) if dataclasses.is_dataclass(thing) or callable(thing) else {}
    found = [part for hint in hints.values() for part in types_in(hint)]
    return [repr(part) for part in found if str(getattr(part, "__module__", "")).startswith(FOREIGN)]


def test_no_public_signature_has_a_foreign_type() -> None:
    things = dict(public_things())
    assert len(things) > 100
    assert not {name: found for name, thing in things.items() if (found := foreign(thing))}


def test_foreign_types_are_recognized() -> None:
    def inner(call: list[grpc.Channel]) -> encoder_pb2.Dataset | None: ...

    inner.__annotations__ = {"call": list[grpc.Channel], "return": encoder_pb2.Dataset | None}
    assert len(foreign(inner)) == 2


def test_errors_and_values_are_public() -> None:
    returned = {
        part.__name__
        for _, thing in public_things()
        if callable(thing)
        for hint in get_type_hints(thing).values()
        for part in types_in(hint)
        if inspect.isclass(part) and part.__module__.startswith("fluxsmith.")
    }
    assert sorted(returned - {*fluxsmith.__all__, *dir(fluxsmith.errors)}) == []
