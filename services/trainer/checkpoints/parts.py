"""A run's state as safetensors parts and one record for JSON, and back, to the bit. No pickle: reading runs no code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import safetensors.torch
from pydantic import BaseModel, ConfigDict, JsonValue
from torch import Tensor

from services.trainer.adapters.files import AdapterSnapshot
from services.trainer.averaging import AverageState
from services.trainer.checkpoints.state import RunState
from services.trainer.checkpoints.trees import packed, unpacked
from services.trainer.config.choices import AdapterType
from services.trainer.milestones import Best, MilestonesState
from services.trainer.train import TrainingState

ADAPTER, OPTIMIZER, AVERAGE, BEST, PISSA = "adapter", "optimizer", "average", "best", "pissa"
Tensors = Mapping[str, Tensor]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class BestRecord(_Record):
    """The best adapter so far, but for its tensors."""

    step: int
    loss: float
    adapter_type: AdapterType
    ranks: dict[str, int]
    scales: dict[str, float]


class RunRecord(_Record):
    """A run's state but for its tensors. `parameters` has their names in the optimizer's order."""

    steps_done: int
    skipped_in_a_row: int
    skipped_steps: int
    warm_start_digest: str = ""
    parameters: tuple[str, ...]
    optimizer: JsonValue
    average_updates: int | None
    losses: dict[int, float]
    loss_zero: float | None = None
    best: BestRecord | None
    to_beat: float
    not_better: int
    previewed: tuple[int, ...]
    missed_in_a_row: int


def split(state: RunState) -> tuple[RunRecord, dict[str, Tensors]]:
    """The record, and the tensors of each part that there is, sharing memory with the state."""
    training, milestones = state.training, state.milestones
    of_optimizer: dict[str, Tensor] = {}
    record = RunRecord(
        steps_done=training.steps_done,
        skipped_in_a_row=training.skipped_in_a_row,
        skipped_steps=state.skipped_steps,
        warm_start_digest=state.warm_start_digest,
        parameters=tuple(training.parameters),
        optimizer=packed(training.optimizer, of_optimizer),
        average_updates=training.average["updates"] if training.average else None,
        losses=dict(milestones.losses),
        loss_zero=milestones.loss_zero,
        best=_best_record(milestones.best),
        to_beat=milestones.to_beat,
        not_better=milestones.not_better,
        previewed=tuple(sorted(milestones.previewed)),
        missed_in_a_row=milestones.missed_in_a_row,
    )
    parts: dict[str, Tensors] = {
        ADAPTER: training.parameters,
        OPTIMIZER: of_optimizer,
        AVERAGE: training.average["weights"] if training.average else {},
        BEST: milestones.best.snapshot.tensors if milestones.best else {},
        PISSA: state.pissa_factors,
    }
    return record, {name: tensors for name, tensors in parts.items() if tensors}


def joined(record: RunRecord, parts: Mapping[str, Tensors]) -> RunState:
    """The state that was split. Raises `KeyError` or `ValueError` for parts that are not the record's."""
    optimizer: dict[str, Any] = unpacked(record.optimizer, parts.get(OPTIMIZER, {}))
    average = None
    if record.average_updates is not None:
        average = AverageState(updates=record.average_updates, weights=dict(parts[AVERAGE]))
    return RunState(
        training=TrainingState(
            parameters={name: parts[ADAPTER][name] for name in record.parameters},
            optimizer=optimizer,
            average=average,
            steps_done=record.steps_done,
            skipped_in_a_row=record.skipped_in_a_row,
        ),
        milestones=MilestonesState(
            losses=record.losses,
            loss_zero=record.loss_zero,
            best=_best(record.best, parts),
            to_beat=record.to_beat,
            not_better=record.not_better,
            previewed=frozenset(record.previewed),
            missed_in_a_row=record.missed_in_a_row,
        ),
        pissa_factors=parts.get(PISSA, {}),
        skipped_steps=record.skipped_steps,
        warm_start_digest=record.warm_start_digest,
    )


def part_file(tensors: Tensors) -> bytes:
    """A part as a safetensors file: the same bytes for the same tensors."""
    data: bytes = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
    return data


def part_tensors(data: bytes) -> dict[str, Tensor]:
    """The tensors of a part, on the CPU; raises `SafetensorError`."""
    tensors: dict[str, Tensor] = safetensors.torch.load(data)
    return tensors


def _best_record(best: Best | None) -> BestRecord | None:
    if best is None:
        return None
    return BestRecord(
        step=best.step,
        loss=best.loss,
        adapter_type=best.snapshot.adapter_type,
        ranks=dict(best.snapshot.ranks),
        scales=dict(best.snapshot.scales),
    )


def _best(record: BestRecord | None, parts: Mapping[str, Tensors]) -> Best | None:
    if record is None:
        return None
    return Best(
        step=record.step,
        loss=record.loss,
        snapshot=AdapterSnapshot(
            adapter_type=record.adapter_type, tensors=parts[BEST], ranks=record.ranks, scales=record.scales
        ),
    )
