"""Runs of a few steps that are cut in the middle, for every optimizer, adapter and switch that keeps something."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from diffusers import FluxTransformer2DModel
from torch import Tensor

from services.trainer.adapters.adapter import attached, pissa_factors
from services.trainer.adapters.files import peft_file, snapshot
from services.trainer.checkpoints.fingerprints import Fingerprints
from services.trainer.checkpoints.state import RunState
from services.trainer.config import TrainConfig
from services.trainer.config.choices import Optimizer
from services.trainer.config.conflicts import conflicts
from services.trainer.config.fields import ConfigFields
from services.trainer.flow_matching import Batch
from services.trainer.jobs import DatasetReference, Job, JobState
from services.trainer.milestones import Best, MilestonesState
from services.trainer.train import Training
from tests.services.trainer.conftest import random_batch

STEPS, CUT = 4, 2
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"adapter_type": "DORA"},
    "lokr": {"adapter_type": "LOKR"},
    "loha": {"adapter_type": "LOHA"},
    "pissa": {"init_weights": "PISSA"},
}
SWITCHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "average": {"ema_decay": 0.9},
    "dropout": {"adapter_dropout": 0.3},
    "accumulation": {"gradient_accumulation_steps": 3},
    "LoRA+": {"lora_plus_ratio": 4.0},
}
FINGERPRINTS = Fingerprints(base="b" * 64, encoder="e" * 64, datasets=("d" * 64,), versions={"torch": "2.13.0"})
BATCHES = [[random_batch(1, height=4, width=4, name=f"{step} {at}") for at in range(3)] for step in range(STEPS)]


def fields_of(optimizer: Optimizer, kind: dict[str, Any], switch: dict[str, Any]) -> dict[str, Any]:
    """A small job whose rate follows a schedule; ranks at which 8-bit AdamW keeps 8 bits of some layers."""
    rate = 1.0 if optimizer is Optimizer.PRODIGY else 1e-2
    schedule = (
        {"warmup_steps": 1} if optimizer is Optimizer.ADAMW_SCHEDULE_FREE else {"learning_rate_schedule": "LINEAR"}
    )
    base = {"rank": 16, "alpha": 8.0, "seed": 3, "learning_rate": rate, "optimizer": optimizer, "steps": STEPS}
    return base | {"gradient_checkpointing": False} | schedule | kind | switch


def every_job() -> Iterator[tuple[str, TrainConfig]]:
    """Every optimizer with every adapter, plain and with all that fits together; with LoRA each switch alone too."""
    for optimizer, (kind_name, kind) in product(Optimizer, KINDS.items()):
        together: dict[str, Any] = {}
        for name, switch in SWITCHES.items():
            fields = fields_of(optimizer, kind, switch)
            if fits(fields) and (name == "plain" or kind_name == "lora"):
                yield f"{optimizer} {kind_name} {name}", TrainConfig(**fields)
            if fits(fields_of(optimizer, kind, together | switch)):
                together |= switch
        yield f"{optimizer} {kind_name} all", TrainConfig(**fields_of(optimizer, kind, together))


def fits(fields: dict[str, Any]) -> bool:
    """Whether a job may have these fields together."""
    return not list(conflicts(ConfigFields(**fields)))


def steps_of(config: TrainConfig, first: int = 0, end: int = STEPS) -> Sequence[Sequence[Batch]]:
    """The batches of the steps from `first` to before `end`."""
    return [batches[: config.gradient_accumulation_steps] for batches in BATCHES[first:end]]


def go(training: Training, config: TrainConfig, first: int, end: int) -> None:
    """Take the steps from `first` to before `end`."""
    for batches in steps_of(config, first, end):
        training.step(batches)


def outcome(
    training: Training, transformer: FluxTransformer2DModel, config: TrainConfig
) -> tuple[dict[str, Tensor], bytes]:
    """What became of the parameters, and the file that is published."""
    with training.evaluating():
        lora = peft_file(snapshot(transformer, config), config, {})
    return {name: parameter.detach().clone() for name, parameter in training.parameters.items()}, lora


def state_of(training: Training, transformer: FluxTransformer2DModel, config: TrainConfig) -> RunState:
    """Everything of a run; its measurements are made up."""
    best = Best(step=1, loss=0.1 + 0.2, snapshot=snapshot(transformer, config))
    return RunState(
        training=training.state(),
        milestones=MilestonesState(
            losses={0: 1 / 3, 1: 0.1 + 0.2},
            best=best,
            to_beat=math.inf,
            not_better=1,
            previewed=frozenset({0, 1}),
            missed_in_a_row=1,
        ),
        pissa_factors=pissa_factors(transformer),
        skipped_steps=1,
    )


def gone_on(
    transformer: FluxTransformer2DModel, config: TrainConfig, state: RunState
) -> tuple[dict[str, Tensor], bytes]:
    """Everything built anew, the state loaded, and the rest of the steps taken."""
    with attached(transformer, config, state.pissa_factors):
        training = Training(transformer, config, STEPS)
        training.load_state(state.training)
        go(training, config, state.training.steps_done, STEPS)
        return outcome(training, transformer, config)


def job_of(config: TrainConfig, tenant: str, *, epoch: int = 1) -> Job:
    """A running job."""
    return Job(
        dataset=DatasetReference(dataset_id="ds-1", manifest_digest="d" * 64),
        config=config,
        job_id="job-1",
        tenant=tenant,
        state=JobState.RUNNING,
        create_time_s=1.0,
        start_time_s=2.0,
        end_time_s=None,
        step=0,
        total_steps=STEPS,
        attempt=epoch,
        epoch=epoch,
        failure=None,
        result=None,
        last_sequence=0,
    )
