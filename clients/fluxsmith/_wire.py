"""What every translation between messages on the wire and this library's own types is made of.

A thing's own identifier and name lose their prefix on the way in (`job_id` becomes `id`); all other names stay.
Values that a newer service may send and this version does not know become UNKNOWN, or are left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any, TypeVar

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from fluxsmith._names import read_choice
from fluxsmith.errors import FieldViolation

_Enum = TypeVar("_Enum", bound=StrEnum)

_WHOLE = "a whole number"
_KINDS: Mapping[int, str] = MappingProxyType(
    {
        FieldDescriptor.CPPTYPE_INT32: _WHOLE,
        FieldDescriptor.CPPTYPE_INT64: _WHOLE,
        FieldDescriptor.CPPTYPE_UINT32: _WHOLE,
        FieldDescriptor.CPPTYPE_UINT64: _WHOLE,
        FieldDescriptor.CPPTYPE_ENUM: "one of the choices",
        FieldDescriptor.CPPTYPE_FLOAT: "a number",
        FieldDescriptor.CPPTYPE_DOUBLE: "a number",
        FieldDescriptor.CPPTYPE_BOOL: "True or False",
        FieldDescriptor.CPPTYPE_STRING: "text",
    }
)


@dataclass(frozen=True, kw_only=True)
class WireEnum:
    """An enum of the contract, whose values carry a prefix there, and the one that stands for it here."""

    ours: type[StrEnum]
    wire: EnumDescriptor
    prefix: str

    def write(self, value: object) -> int:
        """Return the number of a value, which may be text in any case; raises `ValueError` naming the choices."""
        return self.wire.values_by_name[f"{self.prefix}{read_choice(self.ours, str(value))}"].number

    def read(self, number: int) -> StrEnum | None:
        """Return the value; None for an unset one and for one that this version of the library does not know."""
        name = enum_name(self.wire, self.prefix, number)
        return self.ours(name) if name in set(self.ours) else None


def write_fields(
    values: Mapping[str, object], message: Message, *, enums: Mapping[str, WireEnum], path: str
) -> list[FieldViolation]:
    """Set the message's fields that are not None, and return what is wrong with those that cannot travel at all."""
    violations = []
    for name, value in values.items():
        if value is None:
            continue
        if problem := _write_field(name, value, message, enums.get(name)):
            violations.append(FieldViolation(field=f"{path}.{name}", description=problem))
    return violations


def _write_field(name: str, value: object, message: Message, choices: WireEnum | None) -> str:
    """Set one field, or return why it cannot travel."""
    written = value
    if choices:
        try:
            written = choices.write(value)
        except ValueError as error:
            return str(error)
    try:
        # A text would travel as its characters.
        if isinstance(value, str) and message.DESCRIPTOR.fields_by_name[name].is_repeated:
            raise TypeError
        message.MergeFrom(type(message)(**{name: written}))
    except (TypeError, ValueError):
        return _unfit(value, message.DESCRIPTOR.fields_by_name[name])
    return ""


def _unfit(value: object, field: Any) -> str:
    """Return what is wrong with a value that the field cannot hold, and what it holds."""
    if field.message_type:
        wanted = "a mapping of names to whole numbers"
    elif field.is_repeated:
        wanted = f"a list, each {_KINDS[field.cpp_type]}"
    else:
        wanted = _KINDS[field.cpp_type]
        if type(value) is int and wanted == _WHOLE:
            return f"{value} is out of range"
    return f"is {value!r}, not {wanted}"


def read_enum(known: type[_Enum], wire: EnumDescriptor, prefix: str, value: int) -> _Enum:
    """Return the value, or UNKNOWN."""
    name = enum_name(wire, prefix, value)
    return known(name) if name in set(known) else known("UNKNOWN")


def enum_name(wire: EnumDescriptor, prefix: str, value: int) -> str:
    """Return the name of a value without its prefix; empty for one that the contract does not have."""
    known = wire.values_by_number.get(value)
    return known.name.removeprefix(prefix) if known else ""


def read_time(message: Message, field: str) -> datetime | None:
    """Return the moment in UTC; None if unset."""
    if not message.HasField(field):
        return None
    stamp: Timestamp = getattr(message, field)
    return stamp.ToDatetime(tzinfo=UTC)


def read_seconds(duration: Duration) -> float:
    """Return a length of time in seconds."""
    return duration.seconds + duration.nanos / 1e9
