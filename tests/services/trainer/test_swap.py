"""Swapping: jobs that take turns on one base, step by step, each end to the bit as if they had been alone."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from services.trainer.adapters.adapter import AttachedAdapter, adapter_layers, adapter_parameters, attached
from services.trainer.config import TrainConfig
from services.trainer.swap import Swap
from services.trainer.train import Training
from services.trainer.transformer import prepared
from tests.services.trainer.adapters.test_adapter import digest
from tests.services.trainer.conftest import random_batch

STEPS = 3
ELSEWHERE = torch.device("cpu", 0)  # torch copies a tensor that is moved there from "cpu"
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"adapter_dropout": 0.5, "ema_decay": 0.9},
    "dora": {"adapter_type": "DORA", "optimizer": "ADAMW_8BIT"},
    "lokr": {"adapter_type": "LOKR", "optimizer": "PRODIGY", "learning_rate": 1.0},
    "loha": {"adapter_type": "LOHA", "optimizer": "ADAMW_SCHEDULE_FREE"},
    "pissa": {"init_weights": "PISSA", "optimizer": "LION"},
    "adafactor": {"optimizer": "ADAFACTOR", "gradient_checkpointing": False, "lora_plus_ratio": 4.0},
}
COMPANY = [("lora", "dora"), ("lokr", "pissa", "adafactor"), ("loha", "lora"), ("pissa", "dora"), ("pissa", "pissa")]


def config_of(kind: str, number: int = 0) -> TrainConfig:
    return TrainConfig(**{"rank": 4, "seed": 7 + number, "learning_rate": 1e-3} | KINDS[kind])


@pytest.fixture(scope="module")
def tiny(transformer: FluxTransformer2DModel) -> FluxTransformer2DModel:
    """A base of random weights with a block of each kind."""
    torch.manual_seed(3)
    small = {**transformer.config, "num_layers": 1, "num_single_layers": 1}
    return prepared(FluxTransformer2DModel.from_config(small))


@dataclass(frozen=True)
class Swapping:
    """A job on the base: its run and its swap."""

    name: str
    adapter: AttachedAdapter
    training: Training
    swap: Swap

    def step(self) -> None:
        number = self.training.steps_done
        self.training.step([random_batch(2, name=f"{self.name} {number}")])

    def result(self) -> dict[str, Tensor]:
        """Everything that the run has come to."""
        with self.training.evaluating():
            published = copies(self.training.parameters)
        return copies(self.training.parameters) | {f"published {name}": each for name, each in published.items()}


def copies(tensors: dict[str, Any]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def begun(stack: ExitStack, base: FluxTransformer2DModel, config: TrainConfig, name: str) -> Swapping:
    """Attach as a job does, which stays on the base."""
    if config.gradient_checkpointing:
        base.enable_gradient_checkpointing()
    else:
        base.disable_gradient_checkpointing()
    adapter = stack.enter_context(attached(base, config))
    training = Training(base, config, STEPS)
    swap = Swap(base, resting=ELSEWHERE)
    swap.carry(adapter, training)
    return Swapping(name, adapter, training, swap)


def alone(base: FluxTransformer2DModel, config: TrainConfig, name: str) -> dict[str, Tensor]:
    with ExitStack() as stack:
        job = begun(stack, base, config, name)
        for _ in range(STEPS):
            job.step()
        return job.result()


def in_turns(base: FluxTransformer2DModel, configs: list[TrainConfig]) -> list[dict[str, Tensor]]:
    """All jobs, a step each in turn."""
    with ExitStack() as stack:
        jobs = []
        for number, config in enumerate(configs):
            jobs.append(begun(stack, base, config, str(number)))
            jobs[-1].swap.out()
        for _ in range(STEPS):
            for job in jobs:
                job.swap.back()
                job.step()
                job.swap.out()
        results = []
        for job in jobs:
            job.swap.back()
            results.append(job.result())
            job.swap.out()
        return results


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("kinds", COMPANY, ids=" ".join)
def test_jobs_in_turns_end_as_each_alone(tiny: FluxTransformer2DModel, kinds: tuple[str, ...]) -> None:
    before, configs = digest(tiny), [config_of(kind, number) for number, kind in enumerate(kinds)]
    for number, (config, result) in enumerate(zip(configs, in_turns(tiny, configs), strict=True)):
        assert_same(result, alone(tiny, config, str(number)))
    assert digest(tiny) == before


def test_jobs_in_turns_end_as_each_alone_on_the_real_base(transformer: FluxTransformer2DModel) -> None:
    before, configs = digest(transformer), [config_of("pissa"), config_of("lora", 1)]
    for number, (config, result) in enumerate(zip(configs, in_turns(transformer, configs), strict=True)):
        assert_same(result, alone(transformer, config, str(number)))
    assert digest(transformer) == before


@pytest.mark.parametrize("kind", ["pissa", "dora"])
def test_jobs_in_turns_end_as_each_alone_in_bf16(transformer: FluxTransformer2DModel, kind: str) -> None:
    torch.manual_seed(3)
    small = {**transformer.config, "num_layers": 1, "num_single_layers": 1}
    base = prepared(FluxTransformer2DModel.from_config(small).bfloat16())
    before, configs = digest(base), [config_of(kind), config_of("lora", 1)]
    for number, (config, result) in enumerate(zip(configs, in_turns(base, configs), strict=True)):
        assert_same(result, alone(base, config, str(number)))
    assert digest(base) == before


@pytest.fixture(params=KINDS)
def job(tiny: FluxTransformer2DModel, request: pytest.FixtureRequest) -> Iterator[Swapping]:
    """A job of each kind that has taken a step."""
    with ExitStack() as stack:
        begun_job = begun(stack, tiny, config_of(request.param), "0")
        begun_job.step()
        yield begun_job


def test_base_is_whole_while_a_job_is_out(tiny: FluxTransformer2DModel) -> None:
    before, attributes = digest(tiny), set(vars(tiny))
    for kind in KINDS:
        with ExitStack() as stack:
            job = begun(stack, tiny, config_of(kind), "0")
            job.step()
            job.swap.out()
            assert (digest(tiny), set(vars(tiny))) == (before, attributes)


def test_everything_of_a_job_is_moved_out_and_comes_back(job: Swapping) -> None:
    tensors: list[Tensor] = list(job.training.parameters.values())
    tensors += [each for state in job.training.optimizer.state.values() for each in state.values() if of_size(each)]
    if job.training.average:
        tensors += job.training.average.state_dict()["weights"].values()
    before = [each.data for each in tensors]  # keeps the memory, so that nothing else comes to lie there
    values = [each.clone() for each in before]
    job.swap.out()
    assert [each for each, old in zip(tensors, before, strict=True) if each.data_ptr() == old.data_ptr()] == []
    job.swap.back()
    assert all(torch.equal(tensor, value) for tensor, value in zip(tensors, values, strict=True))


def of_size(value: object) -> bool:
    return isinstance(value, Tensor) and value.numel() > 0


def test_job_that_is_out_hands_out_its_state(job: Swapping) -> None:
    there = job.training.state()
    job.swap.out()
    out = job.training.state()
    assert_same(dict(there.parameters), dict(out.parameters))
    assert out.steps_done == 1


def test_job_that_ends_while_it_is_out_leaves_the_other_alone(tiny: FluxTransformer2DModel) -> None:
    before = digest(tiny)
    first, second = ExitStack(), ExitStack()
    leaving = begun(first, tiny, config_of("pissa"), "0")
    leaving.swap.out()
    staying = begun(second, tiny, config_of("lora", 1), "1")
    staying.step()
    first.close()
    assert adapter_layers(tiny)
    for _ in range(STEPS - 1):
        staying.step()
    result = staying.result()
    second.close()
    assert digest(tiny) == before
    assert_same(result, alone(tiny, config_of("lora", 1), "1"))


def test_swapping_while_evaluating_keeps_average_and_weights(tiny: FluxTransformer2DModel) -> None:
    with ExitStack() as stack:
        job = begun(stack, tiny, config_of("lora"), "0")
        job.step()
        trained = copies(job.training.parameters)
        with job.training.evaluating():
            average = copies(job.training.parameters)
            job.swap.out()
            assert tiny.training
            job.swap.back()
            assert not any(module.training for module in adapter_layers(tiny).values())
            assert_same(copies(job.training.parameters), average)
        assert_same(copies(job.training.parameters), trained)


def test_gradient_checkpointing_comes_back_with_the_job(tiny: FluxTransformer2DModel) -> None:
    with ExitStack() as stack:
        job = begun(stack, tiny, config_of("adafactor"), "0")
        job.swap.out()
        tiny.enable_gradient_checkpointing()
        job.swap.back()
        assert not tiny.is_gradient_checkpointing
        tiny.enable_gradient_checkpointing()
        job.swap.out()
        tiny.disable_gradient_checkpointing()
        job.swap.back()
        assert tiny.is_gradient_checkpointing


def test_gradients_between_batches_are_swapped_too(job: Swapping) -> None:
    parameter = next(iter(job.training.parameters.values()))
    parameter.grad = torch.ones_like(parameter)
    place = parameter.grad.data_ptr()
    job.swap.out()
    assert parameter.grad.data_ptr() != place
    job.swap.back()
    assert torch.equal(parameter.grad, torch.ones_like(parameter))


@pytest.mark.parametrize("end", [lambda job: job.swap.out(), lambda job: job.adapter.end()], ids=["out", "end"])
def test_base_refers_to_nothing_of_a_job_that_is_gone(
    tiny: FluxTransformer2DModel, end: Callable[[Swapping], None]
) -> None:
    with ExitStack() as stack:
        job = begun(stack, tiny, config_of("lora"), "0")
        job.step()
        tensors = [weakref.ref(each) for each in adapter_parameters(tiny).values()]
        end(job)
        reachable = {id(each) for each in (*tiny.parameters(), *tiny.buffers())}
        assert not any(id(tensor()) in reachable for tensor in tensors)
    del job, stack
    gc.collect()
    assert [tensor for tensor in tensors if tensor() is not None] == []


@pytest.mark.parametrize("kind", ["lora", "pissa"])
def test_way_out_that_fails_leaves_the_base_to_others(
    tiny: FluxTransformer2DModel, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    before = digest(tiny)
    with ExitStack() as stack:
        job = begun(stack, tiny, config_of(kind), "0")
        job.step()
        with monkeypatch.context() as patched:
            patched.setattr(AttachedAdapter, "own_tensors", no_room)
            with pytest.raises(MemoryError):
                job.swap.out()
        assert digest(tiny) == before


def test_way_back_that_fails_leaves_the_base_to_others(
    tiny: FluxTransformer2DModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digest(tiny)
    with ExitStack() as stack:
        job = begun(stack, tiny, config_of("pissa"), "0")
        job.swap.out()
        with monkeypatch.context() as patched:
            calls = iter(range(100))
            real = Tensor.float
            patched.setattr(Tensor, "float", lambda self: no_room() if next(calls) == 3 else real(self))
            with pytest.raises(MemoryError):
                job.swap.back()
        assert digest(tiny) == before
        job.swap.back()
        for _ in range(STEPS):
            job.step()
        assert_same(job.result(), alone_result(tiny, job))


def no_room(*_: object) -> Any:
    raise MemoryError("no room")


def alone_result(base: FluxTransformer2DModel, job: Swapping) -> dict[str, Tensor]:
    """What a job comes to alone; it is out meanwhile."""
    job.swap.out()
    return alone(base, config_of("pissa"), job.name)
