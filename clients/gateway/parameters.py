"""How to train, as requests have it: every field of `TrainConfig`, with its range and its sentence."""

import ast
from inspect import getsource
from itertools import pairwise
from typing import Annotated, Any

from fluxsmith import TrainConfig
from fluxsmith._names import suggestion
from fluxsmith._ranges import excesses, faults
from pydantic import ConfigDict, GetPydanticSchema, ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from gateway.problems import MOST_VIOLATIONS

# More names than these cannot be mistyped ones.
_MOST_PARAMETERS = 2 * len(TrainConfig.__dataclass_fields__)


def _describe(schema: dict[str, Any]) -> None:
    """Add the sentences that stand below the fields of `TrainConfig`; pydantic reads those of its own classes only."""
    (definition,) = ast.parse(getsource(TrainConfig)).body
    for field, below in pairwise(getattr(definition, "body", ())):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            schema["properties"][ast.unparse(field.target)]["description"] = " ".join(str(below.value.value).split())


def _with_ranges(given: object, read: ValidatorFunctionWrapHandler) -> TrainConfig:
    """Check ranges beside names and types, so that one answer has every field at fault."""
    found: list[InitErrorDetails] = []
    if isinstance(given, dict) and len(given) > _MOST_PARAMETERS:
        raise ValueError(f"has {len(given)} parameters: there are {len(TrainConfig.__dataclass_fields__)}")
    if isinstance(given, dict) and (too_much := excesses(given)):
        # Before anything is made of it: 8,000 prompts that are none are a quarter of a second of errors.
        found = [_fault((name,), text) for name, text in too_much.items()]
        given = {name: value for name, value in given.items() if name not in too_much}
    try:
        config: TrainConfig = read(given)
    except ValidationError as error:
        told = error.errors()
        if not isinstance(given, dict) or not all(one["loc"] for one in told):
            raise  # no parameters at all, or one whose name is no text
        # The search for similar names takes a millisecond each, and no more faults than these are told.
        found += [
            _fault(one["loc"], _text(one) if place < MOST_VIOLATIONS else one["msg"]) for place, one in enumerate(told)
        ]
        wrong = {one["loc"][0] for one in told}
        config = read({name: value for name, value in given.items() if name not in wrong})
    found += [_fault((name,), text) for name, text in faults(vars(config)).items()]
    if found:
        raise ValidationError.from_exception_data("TrainConfig", found)
    return config


def _text(fault: ErrorDetails) -> str:
    if fault["type"] == "unexpected_keyword_argument":
        near = suggestion(str(fault["loc"][0]), TrainConfig.__dataclass_fields__)
        return f"there is no such parameter{near}"
    return fault["msg"]


def _fault(location: tuple[int | str, ...], text: str) -> InitErrorDetails:
    return InitErrorDetails(type=PydanticCustomError("parameter", "{text}", {"text": text}), loc=location, input=None)


# Every field of `TrainConfig`, and none besides.
_Fields = dataclass(
    TrainConfig, config=ConfigDict(extra="forbid", json_schema_extra=_describe), frozen=True, kw_only=True
)

TrainingParams = Annotated[
    TrainConfig, GetPydanticSchema(lambda _, schema_of: schema_of(_Fields)), WrapValidator(_with_ranges)
]
