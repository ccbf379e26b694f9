"""The contract as Markdown: every service, message and enumeration of protos/ with its comments."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc_tools
from google.protobuf import descriptor_pb2 as pb
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[2]
SERVICE, MESSAGE, ENUM = 6, 4, 5  # numbers of the fields of FileDescriptorProto, of which paths are made
NESTED, NESTED_ENUM = 3, 4  # of DescriptorProto
TYPES = pb.FieldDescriptorProto.Type


class File:
    """One file of the contract, with the comments before its elements."""

    def __init__(self, file: pb.FileDescriptorProto) -> None:
        self.file = file
        self._comments = {
            tuple(place.path): place.leading_comments or place.trailing_comments
            for place in file.source_code_info.location
        }

    def comment(self, *path: int) -> str:
        """The comment of an element in one line, fit for a cell of a table."""
        return " ".join(self._comments.get(path, "").split()).replace("|", "\\|").replace("<", "&lt;")


def contract() -> str:
    """Return all of it."""
    return "\n".join(line for file in _files() for line in _file(File(file)))


def _files() -> Sequence[pb.FileDescriptorProto]:
    sources = sorted(str(path.relative_to(ROOT / "protos")) for path in (ROOT / "protos").rglob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "contract.binpb"
        folders = (ROOT / "protos", Path(grpc_tools.__file__).parent / "_proto")
        flags = [*(f"--proto_path={each}" for each in folders), f"--descriptor_set_out={out}", "--include_source_info"]
        if protoc.main(["protoc", *flags, *sources]):
            raise RuntimeError("protoc does not read the contract; `make lint` tells more")
        return pb.FileDescriptorSet.FromString(out.read_bytes()).file


def _file(file: File) -> Iterator[str]:
    for at, service in enumerate(file.file.service):
        yield f"\n## {service.name}\n\n{file.comment(SERVICE, at)}\n"
        for number, method in enumerate(service.method):
            request = ("stream " if method.client_streaming else "") + _short(method.input_type)
            response = ("stream " if method.server_streaming else "") + _short(method.output_type)
            comment = file.comment(SERVICE, at, 2, number)
            yield f"\n### {method.name}\n\n`{method.name}({request}) returns ({response})`\n\n{comment}\n"
    yield f"\n## Messages of {Path(file.file.name).name}\n"
    for at, message in enumerate(file.file.message_type):
        yield from _message(file, message, message.name, (MESSAGE, at))
    for at, enum in enumerate(file.file.enum_type):
        yield from _enum(file, enum, enum.name, (ENUM, at))


def _message(file: File, message: pb.DescriptorProto, name: str, path: tuple[int, ...]) -> Iterator[str]:
    yield f"\n### {name}\n\n{file.comment(*path)}\n"
    if message.field:
        yield "| field | type | |\n| --- | --- | --- |"
    for at, field in enumerate(message.field):
        yield f"| `{field.name}` | {_type(field, message)} | {file.comment(*path, 2, at)} |"
    for at, nested in enumerate(message.nested_type):
        if not nested.options.map_entry:
            yield from _message(file, nested, f"{name}.{nested.name}", (*path, NESTED, at))
    for at, enum in enumerate(message.enum_type):
        yield from _enum(file, enum, f"{name}.{enum.name}", (*path, NESTED_ENUM, at))


def _enum(file: File, enum: pb.EnumDescriptorProto, name: str, path: tuple[int, ...]) -> Iterator[str]:
    yield f"\n### {name}\n\n{file.comment(*path)}\n\n| value | |\n| --- | --- |"
    for at, value in enumerate(enum.value):
        yield f"| `{value.name}` | {file.comment(*path, 2, at)} |"


def _type(field: pb.FieldDescriptorProto, message: pb.DescriptorProto) -> str:
    entries = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
    if entry := entries.get(_short(field.type_name)):
        key, value = entry.field
        return f"map of {_type(key, message)} to {_type(value, message)}"
    name = _short(field.type_name) or TYPES.Name(field.type).removeprefix("TYPE_").lower()
    repeated = "repeated " if field.label == pb.FieldDescriptorProto.LABEL_REPEATED else ""
    return repeated + ("optional " if field.proto3_optional else "") + name


def _short(name: str) -> str:
    return name.rpartition(".")[2]
