"""A run that is cut and goes on ends with the very bits of one that was not."""

from __future__ import annotations

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from services.common.object_store import ObjectStore
from services.trainer.adapters.adapter import attached
from services.trainer.checkpoints.parts import RunRecord, joined, part_file, part_tensors, split
from services.trainer.checkpoints.sets import read_set, write_set
from services.trainer.checkpoints.state import RunState
from services.trainer.config import TrainConfig
from services.trainer.config.choices import Optimizer
from services.trainer.train import Training
from services.trainer.transformer import prepared
from tests.services.trainer.checkpoints.runs import (
    CUT,
    FINGERPRINTS,
    KINDS,
    STEPS,
    every_job,
    fields_of,
    go,
    gone_on,
    job_of,
    outcome,
    state_of,
)

JOBS = dict(every_job())
Outcome = tuple[dict[str, Tensor], bytes]


def same(first: Outcome, second: Outcome) -> bool:
    """Whether parameters and files are equal to the bit."""
    (parameters, file), (others, other_file) = first, second
    return (
        parameters.keys() == others.keys()
        and all(torch.equal(parameters[name], others[name]) for name in parameters)
        and file == other_file
    )


def cut_and_whole(transformer: FluxTransformer2DModel, config: TrainConfig) -> tuple[RunState, Outcome]:
    """The state in the middle of a run, and how the run ended."""
    with attached(transformer, config):
        training = Training(transformer, config, STEPS)
        go(training, config, 0, CUT)
        state = state_of(training, transformer, config)
        go(training, config, CUT, STEPS)
        return state, outcome(training, transformer, config)


def through_bytes(state: RunState) -> RunState:
    """The state as it comes out of the files."""
    record, parts = split(state)
    files = {name: part_file(tensors) for name, tensors in parts.items()}
    read = RunRecord.model_validate_json(record.model_dump_json())
    return joined(read, {name: part_tensors(data) for name, data in files.items()})


@pytest.mark.parametrize("config", JOBS.values(), ids=JOBS)
def test_run_goes_on_from_its_files_to_the_bit(two_blocks: FluxTransformer2DModel, config: TrainConfig) -> None:
    state, whole = cut_and_whole(two_blocks, config)
    assert same(gone_on(two_blocks, config, through_bytes(state)), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_run_goes_on_from_the_store_to_the_bit(
    two_blocks: FluxTransformer2DModel, store: ObjectStore, tenant: str, kind: str
) -> None:
    optimizer = dict(zip(KINDS, Optimizer, strict=False))[kind]
    config = TrainConfig(**fields_of(optimizer, KINDS[kind], {"gradient_accumulation_steps": 3}))
    job = job_of(config, tenant)
    state, whole = cut_and_whole(two_blocks, config)
    checkpoint = write_set(store, job, state, b"lora", FINGERPRINTS)
    restored = read_set(store, checkpoint, job, FINGERPRINTS)
    assert restored.warnings == ()
    assert same(gone_on(two_blocks, config, restored.state), whole)
    assert restored.state.milestones.losses == state.milestones.losses
    assert restored.state.milestones.previewed == state.milestones.previewed
    assert restored.state.skipped_steps == state.skipped_steps


def test_pissa_goes_on_to_the_bit_on_a_base_of_16_bits(two_blocks: FluxTransformer2DModel) -> None:
    config = TrainConfig(**fields_of(Optimizer.ADAMW, KINDS["pissa"], {}))
    base = FluxTransformer2DModel.from_config(two_blocks.config)
    base = prepared(base)
    base.load_state_dict(two_blocks.state_dict())
    base.to(torch.bfloat16)
    state, whole = cut_and_whole(base, config)
    assert same(gone_on(base, config, through_bytes(state)), whole)
