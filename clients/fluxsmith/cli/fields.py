"""The fields of a training configuration as people write them: `field=value` words and TOML files."""

import math
import tomllib
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from fluxsmith._names import suggestion
from fluxsmith.training import TrainConfig

_Choice = TypeVar("_Choice", bound=StrEnum)

_BOOLEANS = {"yes": True, "true": True, "on": True, "1": True, "no": False, "false": False, "off": False, "0": False}


def read_words(words: Sequence[str]) -> dict[str, object]:
    """Return the values of `field=value` words; raises `ValueError` for the first that means nothing.

    A field given twice has the last value; prompts and rank patterns, `rank_pattern=REGEX=RANK`, add up.
    """
    texts: dict[str, list[str]] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise ValueError(f"{word!r} is not of the form field=value")
        _require_field(name.strip())
        texts.setdefault(name.strip(), []).append(text)
    return {name: _told(name, _from_texts, given) for name, given in texts.items()}


def read_file(path: Path) -> dict[str, object]:
    """Return the values of a TOML file, a flat table of fields; raises `ValueError` for what cannot be read."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no TOML: {error}") from error
    for name in table:
        _require_field(name)
    return {name: _told(name, _from_toml, value) for name, value in table.items()}


def read_choice(kind: type[_Choice], text: str) -> _Choice:
    """Return the choice of that name, in upper or lower case; raises `ValueError` for any other."""
    name = text.strip().upper().replace("-", "_")
    if name in set(kind):
        return kind(name)
    names = [choice.lower() for choice in kind]
    raise ValueError(f"{text!r} is none of {', '.join(names)}{suggestion(name.lower(), names)}")


def _require_field(name: str) -> None:
    if name not in _KINDS:
        raise ValueError(f"{name!r} is no field of the configuration{suggestion(name.replace('-', '_'), _KINDS)}")


def _told(name: str, read: Any, given: object) -> object:
    """Return what `read` makes of the given value of a field, whose name an error then tells."""
    try:
        return read(_KINDS[name], given)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _from_texts(kind: Any, texts: Sequence[str]) -> object:
    if kind is Sequence:
        return tuple(texts)
    if kind is Mapping:
        return dict(map(_entry, texts))
    return _from_text(kind, texts[-1])


def _entry(text: str) -> tuple[str, object]:
    pattern, equals, rank = text.rpartition("=")
    if not equals:
        raise ValueError(f"{text!r} is not of the form REGEX=RANK")
    return pattern, _from_text(int, rank)


def _from_text(kind: Any, text: str) -> object:
    if kind is str:
        return text
    if kind is bool:
        if text.strip().lower() in _BOOLEANS:
            return _BOOLEANS[text.strip().lower()]
        raise ValueError(f"{text!r} is neither yes nor no")
    if issubclass(kind, StrEnum):
        return read_choice(kind, text)
    try:
        return _finite(kind(text))
    except ValueError:
        raise ValueError(f"{text!r} is no {_WORDS[kind]}") from None


def _from_toml(kind: Any, value: object) -> object:
    if kind is Sequence and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if kind is Mapping and isinstance(value, dict) and all(type(item) is int for item in value.values()):
        return value
    if kind is float and type(value) in {int, float}:
        return _finite(float(value))  # type: ignore[arg-type]
    if isinstance(value, str) and isinstance(kind, type) and issubclass(kind, StrEnum):
        return read_choice(kind, value)
    if kind in {int, bool, str} and type(value) is kind:
        return value
    raise ValueError(f"{value!r} is no {_WORDS.get(kind, 'name of a choice')}")


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise ValueError(f"{number} is no finite number")
    return number


def _kind(hint: Any) -> Any:
    """Return the type that a field has beside None; for lists and tables, what they are of."""
    [kind] = [part for part in get_args(hint) if part is not NoneType]
    return get_origin(kind) or kind


_WORDS = {
    int: "whole number",
    float: "number",
    bool: "true or false",
    str: "text",
    Sequence: "list of texts",
    Mapping: "table of whole numbers",
}
_KINDS = {name: _kind(hint) for name, hint in get_type_hints(TrainConfig).items()}
