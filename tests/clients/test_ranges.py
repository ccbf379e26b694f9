"""The ranges that the library knows are those that the contract and the library's own documentation name."""

import ast
import itertools
import re
from pathlib import Path

import pytest
from fluxsmith import training
from fluxsmith._ranges import RANGES, Range
from fluxsmith.v1 import trainer_pb2

PROTO = Path(__file__).parents[2] / "protos/fluxsmith/v1/trainer.proto"
# Their ends depend on each other's values, and are named by name.
RELATIVE = {"sigma_min", "sigma_max", "guidance_scale_max"}
NUMBERS = {
    field.name
    for field in trainer_pb2.TrainConfig.DESCRIPTOR.fields
    if not field.is_repeated and field.type in {field.TYPE_INT32, field.TYPE_INT64, field.TYPE_DOUBLE}
}


def plain(text: str) -> str:
    """The text in one line, with its numbers in digits and its beginning small."""
    return " ".join(text.split()).replace(",", "").replace("2^32 - 1", str(2**32 - 1)).lower()


def contract() -> dict[str, str]:
    """What the contract says about each field of the configuration."""
    message = PROTO.read_text().partition("message TrainConfig {")[2].partition("\n}")[0]
    found = re.findall(r"((?: *//.*\n)+) *(?:optional |repeated )?\S+(?: int32>)? (\w+) = \d+;", message)
    return {name: plain(comment.replace("//", "")) for comment, name in found}


def library() -> dict[str, str]:
    """What the library says about each field of the configuration."""
    tree = ast.parse(Path(training.__file__).read_text())
    [body] = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "TrainConfig"]
    return {
        field.target.id: plain(text.value.value)
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def test_every_number_has_a_range() -> None:
    assert set(RANGES) == NUMBERS


@pytest.mark.parametrize("source", [contract, library], ids=["contract", "library"])
def test_ranges_are_those_of_the_documentation(source: type) -> None:
    texts = source()
    assert set(texts) >= NUMBERS
    wrong = {
        name: (str(RANGES[name]), texts[name]) for name in NUMBERS - RELATIVE if not names(RANGES[name], texts[name])
    }
    assert not wrong


def names(wanted: Range, text: str) -> bool:
    """Whether the text names exactly this range, at the beginning of a sentence."""
    return re.search(rf"(^|\. ){re.escape(plain(str(wanted)))}([.;]|$)", text) is not None


@pytest.mark.parametrize(
    ("numbers", "number", "inside"),
    [
        (Range(low=1, high=2), 1, True),
        (Range(low=1, high=2), 2, True),
        (Range(low=1, high=2), 3, False),
        (Range(low=0, low_open=True), 0, False),
        (Range(low=0, low_open=True), 1e9, True),
        (Range(low=0, high=1, high_open=True), 1, False),
        (Range(low=32, high=64, step=16), 48, True),
        (Range(low=32, high=64, step=16), 40, False),
    ],
)
def test_range_holds_its_ends_and_multiples(numbers: Range, number: float, inside: bool) -> None:
    assert (number in numbers) == inside
