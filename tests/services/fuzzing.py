"""Messages that fit their descriptors and little else: edges of numbers, odd lengths of time, hostile text, torn bytes.

Identifiers are mostly those of things that are there, since what is made up ends at NOT_FOUND.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from fluxsmith.v1 import encoder_pb2 as pb
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

Living = Mapping[str, Sequence[Any]]

INTEGERS = (0, 1, 2, 3, 7, 64, 100, 1001, -1, -2, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, -(2**63), 2**64 - 1)
FLOATS = (0.0, -0.0, 0.05, 0.5, 1.0, 2.0, -1.0, 1e-4, 1e-300, 3e38, 1e308, math.nan, math.inf, -math.inf)
TEXTS = (
    *("", "a", " ", "a picture of a circle", "\u00a0", "\u200b\u200d", "\u65e5\u672c\u3000\u8a9e"),
    *("\U0001f469\u200d\U0001f680", "\x00", "\x1b[2J\x07", "line\nbreak", "\x9b2J", "\u2028"),
    *("../../x", "%2e%2e/", "//", "s3://", "s3://fluxsmith/", "http://127.0.0.1:1/", "file:///etc/passwd"),
    *("'; DROP TABLE jobs; --", "{{7*7}}", "(" * 50, ".*attn.*", "nan", "#ffffff"),
    *("x" * 65, "x" * 201, "x" * 9_000, "\U0001f34e" * 3_000),
)
DURATIONS = (
    *((0, 0), (1, 0), (60, 0), (604_800, 0), (604_801, -2_000_000_000), (604_801, -1), (0, 2**31 - 1), (0, -1)),
    *((-1, 1), (5, 10**9), (5, -(10**9)), (2**63 - 1, 0), (-(2**63), -999_999_999), (315_576_000_001, 0)),
)
# What would be legal and take minutes on a CPU: the fuzzer is after faults, not after load.
TAME: Living = {
    "resolution_px": (0, 1, 63, 64, 64, 80, -64, 2**31 - 1),
    "resolutions_px": (0, 64, 64, 80, 96, -1, 2**31 - 1),
    "page_size": (0, 1, 1, 2, 3, 1001, -1, 2**31 - 1),
    "priority": (0, 1, -1, 2**31 - 1),
}
MOST_INT = {"INT32": 31, "SINT32": 31, "SFIXED32": 31, "INT64": 63, "SINT64": 63, "SFIXED64": 63}
MOST_UINT = {"UINT32": 32, "FIXED32": 32, "UINT64": 64, "FIXED64": 64}
KIND_NAMES = {
    number: name.removeprefix("TYPE_") for name, number in vars(FieldDescriptor).items() if name.startswith("TYPE_")
}


class Fuzzer:
    """Makes messages; the same seed gives the same ones. `living` has values that are there, by name of field."""

    def __init__(self, seed: int, living: Living) -> None:
        self.random = random.Random(seed)  # noqa: S311 - not a secret
        self.living = living

    def message_bytes(self, kind: Descriptor) -> bytes:
        """A message of this kind, sometimes with fields that nobody knows, sometimes torn."""
        data = self.message(kind).SerializeToString()
        if self.random.random() < 0.1:
            data += bytes([0xBA, 0x3E, 0x03]) + self.random.randbytes(3)  # field 999, three bytes
        return self._torn(data) if self.random.random() < 0.12 else data

    def message(self, kind: Descriptor, depth: int = 0) -> Message:
        """A message with some of its fields set."""
        made = GetMessageClass(kind)()
        often = 0.7 if depth == 0 else self.random.choice((0.0, 0.02, 0.15, 0.5))
        for field in kind.fields:
            if self.random.random() < often:
                self._set(made, field, depth)
        return made

    def upload(self, image: bytes, header: pb.SampleHeader) -> list[bytes]:
        """A stream of parts: a whole sample as it should be, with odd parts among it or in its place."""
        kind = pb.UploadSamplesRequest.DESCRIPTOR
        target = pb.UploadTarget(dataset_id=self._text("dataset_id"))
        parts = [
            pb.UploadSamplesRequest(target=target).SerializeToString(),
            pb.UploadSamplesRequest(sample=header).SerializeToString(),
            pb.UploadSamplesRequest(chunk=image).SerializeToString(),
        ]
        for _ in range(self.random.choice((0, 0, 1, 2))):
            parts.insert(self.random.randint(0, len(parts)), self.message_bytes(kind))
        if self.random.random() < 0.3:
            parts.pop(self.random.randrange(len(parts)))
        return parts

    def _set(self, message: Message, field: FieldDescriptor, depth: int) -> None:
        count = self.random.choice((0, 1, 1, 2, 3, 70)) if field.is_repeated else 1
        for _ in range(count):
            if field.message_type is None:
                self._set_value(message, field)
                continue
            if field.message_type.GetOptions().map_entry:  # of plain values, in this contract
                key, value = (self._value(part) for part in field.message_type.fields)
                getattr(message, field.name)[key] = value
                continue
            made = self._of_kind(field.message_type, depth)
            into = getattr(message, field.name)
            if field.is_repeated:
                into.add().CopyFrom(made)
            else:
                into.CopyFrom(made)
            if count > 3 and depth:
                return

    def _of_kind(self, kind: Descriptor, depth: int) -> Message:
        if kind.full_name == "google.protobuf.Duration":
            seconds, nanos = self.random.choice(DURATIONS)
            return Duration(seconds=seconds, nanos=nanos)
        return self.message(kind, depth + 1)

    def _set_value(self, message: Message, field: FieldDescriptor) -> None:
        value = self._value(field)
        if field.is_repeated:
            getattr(message, field.name).append(value)
        else:
            setattr(message, field.name, value)

    def _value(self, field: FieldDescriptor) -> Any:
        name = KIND_NAMES[field.type]
        if name in ("STRING", "BYTES"):
            text = self._text(field.name)
            return text if name == "STRING" else text.encode()
        if name in ("DOUBLE", "FLOAT"):
            value = self.random.choice(FLOATS)
            return math.copysign(math.inf, value) if name == "FLOAT" and abs(value) > 3.4e38 else value
        if name == "BOOL":
            return self.random.random() < 0.5
        if field.enum_type:
            known = [value.number for value in field.enum_type.values]
            return self.random.choice((*known, *known, 99, -1, 2**31 - 1))
        number = self.random.choice(TAME.get(field.name, INTEGERS))
        low, high = -(2 ** MOST_INT.get(name, 0)), 2 ** MOST_INT.get(name, 0) - 1
        if name in MOST_UINT:
            low, high = 0, 2 ** MOST_UINT[name] - 1
        return min(max(number, low), high)

    def _text(self, name: str) -> str:
        if name in self.living and self.random.random() < 0.8:
            return str(self.random.choice(self.living[name]))
        return self.random.choice(TEXTS)

    def _torn(self, data: bytes) -> bytes:
        """A few bytes changed, left out or put in."""
        torn = bytearray(data or b"\x0a\x01a")
        for _ in range(self.random.choice((1, 1, 2, 5))):
            place = self.random.randrange(len(torn) + 1)
            how = self.random.random()
            if how < 0.5 and place < len(torn):
                torn[place] = self.random.randrange(256)
            elif how < 0.75:
                del torn[place : place + self.random.choice((1, 3, 20))]
            else:
                torn[place:place] = self.random.randbytes(self.random.choice((1, 2, 9)))
        return bytes(torn)
