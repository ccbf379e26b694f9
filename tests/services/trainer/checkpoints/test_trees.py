"""What a checkpoint keeps as JSON comes back with its very values and types."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from services.trainer.adapters.files import AdapterSnapshot
from services.trainer.checkpoints.parts import RunRecord, joined, part_file, part_tensors, split
from services.trainer.checkpoints.state import RunState
from services.trainer.checkpoints.trees import packed, unpacked
from services.trainer.config.choices import AdapterType
from services.trainer.milestones import Best, MilestonesState
from services.trainer.train import TrainingState

floats = st.floats(width=64)
leaves = (
    st.none() | st.booleans() | st.integers() | floats | st.text(max_size=5) | st.floats(width=32).map(torch.tensor)
)
keys = st.integers() | st.text(max_size=5)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=12,
)
numbers = st.integers(0, 100_000)


def same(first: Any, second: Any) -> bool:
    """Whether two values are equal with their types, to the last bit of a float and of a tensor."""
    if type(first) is not type(second):
        return False
    match first:
        case float():
            return bool(first.hex() == second.hex())
        case Tensor():
            bits, others = (tensor.reshape(-1).view(torch.uint8) for tensor in (first, second))
            return first.dtype == second.dtype and first.shape == second.shape and torch.equal(bits, others)
        case dict():
            return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
        case list() | tuple():
            return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


@given(trees)
@settings(deadline=None)
def test_any_nested_value_comes_back(value: Any) -> None:
    tensors: dict[str, Tensor] = {}
    text = json.dumps(packed(value, tensors), allow_nan=False)
    assert same(unpacked(json.loads(text), part_tensors(part_file(tensors))), value)


def test_keys_that_look_alike_have_tensors_of_their_own() -> None:
    value: dict[int | str, Any] = {0: torch.tensor(1), "0": torch.tensor(2), "'0'": torch.tensor(3)}
    value |= {"a.b": torch.tensor(4), "a": {"b": torch.tensor(5)}}
    tensors: dict[str, Tensor] = {}
    assert same(unpacked(packed(value, tensors), tensors), value)
    assert len(tensors) == 5


@pytest.mark.parametrize("value", [{1.5: 0}, {True: 0}, {"set": {1}}, object()])
def test_what_json_cannot_tell_is_refused(value: Any) -> None:
    with pytest.raises(TypeError):
        packed(value, {})


@pytest.mark.parametrize("value", [{"tensor": "gone"}, {"pickle": "?"}, {"tuple": 1}])
def test_unknown_form_is_refused(value: Any) -> None:
    with pytest.raises((KeyError, ValueError)):
        unpacked(value, {})


@given(
    losses=st.dictionaries(numbers, floats, max_size=4),
    to_beat=floats,
    best_loss=floats,
    scale=floats,
    previewed=st.frozensets(numbers, max_size=4),
    counts=st.tuples(numbers, numbers, numbers, numbers, numbers, numbers),
)
@settings(deadline=None)
def test_whole_state_comes_back(
    losses: dict[int, float],
    to_beat: float,
    best_loss: float,
    scale: float,
    previewed: frozenset[int],
    counts: tuple[int, ...],
) -> None:
    adapter = AdapterSnapshot(
        adapter_type=AdapterType.LOKR, tensors={"w": torch.ones(2)}, ranks={"m": 4}, scales={"m": scale}
    )
    state = RunState(
        training=TrainingState(
            parameters={"z": torch.ones(2), "a": torch.zeros(3)},
            optimizer={"state": {}, "param_groups": [{"lr": math.inf, "betas": (0.9, 0.999)}]},
            average={"updates": counts[0], "weights": {"z": torch.ones(2)}},
            steps_done=counts[1],
            skipped_in_a_row=counts[2],
        ),
        milestones=MilestonesState(
            losses=losses,
            best=Best(step=counts[3], loss=best_loss, snapshot=adapter),
            to_beat=to_beat,
            not_better=counts[4],
            previewed=previewed,
            missed_in_a_row=1,
        ),
        pissa_factors={},
        skipped_steps=counts[5],
    )
    record, parts = split(state)
    assert set(parts) == {"adapter", "average", "best"}
    read = joined(RunRecord.model_validate_json(record.model_dump_json()), parts)
    assert same(plain(read), plain(state))


def plain(state: RunState) -> dict[str, Any]:
    """The state as nested values."""
    best = state.milestones.best
    assert best
    return {
        "training": dict(vars(state.training)),
        "milestones": {**vars(state.milestones), "best": None, "previewed": sorted(state.milestones.previewed)},
        "best": [
            best.step,
            best.loss,
            str(best.snapshot.adapter_type),
            dict(best.snapshot.scales),
            best.snapshot.ranks,
        ],
        "skipped": state.skipped_steps,
    }
