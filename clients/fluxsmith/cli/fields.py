"""The fields of a training configuration as people write them: options, `field=value` words and TOML files."""

import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from fluxsmith_text import quoted

from fluxsmith._names import read_choice, suggestion
from fluxsmith.training import TrainConfig

_BOOLEANS = {"yes": True, "true": True, "on": True, "1": True, "no": False, "false": False, "off": False, "0": False}


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What one source says of the configuration: what could be read, and all that is wrong with the rest."""

    values: Mapping[str, Any] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    """Where each of the values was given, for people."""
    faults: Sequence[tuple[str, str]] = ()
    """Where, and what is wrong."""


def read_options(texts: Mapping[str, Sequence[str]], flags: Mapping[str, str]) -> Layer:
    """Return the values of options, by the fields that they stand for; `flags` are the options' own names."""
    return _layer({name: partial(_from_texts, _KINDS[name], given) for name, given in texts.items()}, flags)


def read_words(words: Sequence[str]) -> Layer:
    """Return the values of `field=value` words.

    A field given twice has the last value; prompts and rank patterns, `rank_pattern=REGEX=RANK`, add up, and an empty
    value takes back those before it.
    """
    faults, texts = [], dict[str, list[str]]()
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            faults.append(("--set", f"{quoted(word)} is not of the form field=value"))
        elif fault := _unknown(name.strip()):
            faults.append(("--set", fault))
        else:
            texts.setdefault(name.strip(), []).append(text)
    readers = {name: partial(_from_texts, _KINDS[name], _after_last_empty(given)) for name, given in texts.items()}
    return _layer(readers, {name: f"--set {name}" for name in texts}, faults)


def read_file(path: Path) -> Layer:
    """Return the values of a TOML file, a flat table of fields."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        return Layer(faults=[("--config", f"{path} cannot be read: {error.strerror}")])
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        return Layer(faults=[("--config", f"{path} is not TOML: {error}")])
    faults = [(str(path), fault) for fault in map(_unknown, table) if fault]
    readers = {name: partial(_from_toml, _KINDS[name], value) for name, value in table.items() if name in _KINDS}
    return _layer(readers, {name: f"{path}: {name}" for name in readers}, faults)


def _layer(
    readers: Mapping[str, Callable[[], object]], origins: Mapping[str, str], faults: Sequence[tuple[str, str]] = ()
) -> Layer:
    """Return what the readers of the fields make of what they were given."""
    values, found = dict[str, object](), [*faults]
    for name, read in readers.items():
        try:
            values[name] = read()
        except ValueError as error:
            found.append((origins[name], str(error)))
    return Layer(values=values, origins={name: origins[name] for name in values}, faults=found)


def _unknown(name: str) -> str:
    """Return what is wrong with the name of a field; empty when nothing is."""
    if name in _KINDS:
        return ""
    return f"{quoted(name)} is not a field of the configuration{suggestion(name.replace('-', '_'), _KINDS)}"


def _after_last_empty(texts: Sequence[str]) -> list[str]:
    """Return the texts that count: for lists and tables, `--set preview_prompts=` means none."""
    kept: list[str] = []
    for text in texts:
        kept = [*kept, text] if text else []
    return kept


def _from_texts(kind: Any, texts: Sequence[str]) -> object:
    if kind is Sequence:
        return tuple(texts)
    if kind is Mapping:
        return dict(map(_entry, texts))
    return _from_text(kind, texts[-1] if texts else "")


def _entry(text: str) -> tuple[str, object]:
    pattern, equals, rank = text.rpartition("=")
    if not equals:
        raise ValueError(f"{quoted(text)} is not of the form REGEX=RANK")
    return pattern, _from_text(int, rank)


def _from_text(kind: Any, text: str) -> object:
    if kind is str:
        return text
    if kind is bool:
        if text.strip().lower() in _BOOLEANS:
            return _BOOLEANS[text.strip().lower()]
        raise ValueError(f"{quoted(text)} is neither yes nor no")
    if issubclass(kind, StrEnum):
        return read_choice(kind, text)
    try:
        return _finite(kind(text))
    except ValueError:
        raise ValueError(f"{quoted(text)} is not {_WORDS[kind]}") from None


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
    raise ValueError(f"{value!r} is not {_WORDS.get(kind, 'the name of a choice')}")


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise ValueError(f"{number} is not a finite number")
    return number


def _kind(hint: Any) -> Any:
    """Return the type that a field has beside None; for lists and tables, what they are of."""
    [kind] = [part for part in get_args(hint) if part is not NoneType]
    return get_origin(kind) or kind


_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Sequence: "a list of texts",
    Mapping: "a table of whole numbers",
}
_KINDS = {name: _kind(hint) for name, hint in get_type_hints(TrainConfig).items()}
