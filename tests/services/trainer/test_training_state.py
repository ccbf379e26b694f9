"""Weights that are evaluated or published in place of those trained, and the state that a run goes on from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from services.trainer.adapters.adapter import attached
from services.trainer.averaging import AverageState
from services.trainer.config import TrainConfig
from services.trainer.config.choices import Optimizer
from services.trainer.flow_matching import loss_per_sample
from services.trainer.train import NonFiniteLoss, StateOfOtherRun, Training, TrainingState, train
from tests.services.trainer.conftest import random_batch
from tests.services.trainer.test_train import (
    BAD,
    CONFIG,
    Stop,
    copies,
    different,
    like,
    parameters_after,
    same,
    split,
)


@pytest.mark.parametrize("fields", [{}, {"ema_decay": 0.9}, {"optimizer": "ADAMW_SCHEDULE_FREE"}])
def test_evaluating_leaves_no_trace(transformer: FluxTransformer2DModel, fields: dict[str, object]) -> None:
    def run(*, evaluate: bool) -> dict[str, Tensor]:
        config = like(CONFIG, adapter_dropout=0.5, **fields)
        with attached(transformer, config):
            training = Training(transformer, config, 4)
            for batches in different(4):
                if evaluate:
                    before = copies(training)
                    with pytest.raises(Stop), training.evaluating():
                        raise Stop
                    assert same(before, copies(training))
                training.step(batches)
            return copies(training)

    assert same(run(evaluate=True), run(evaluate=False))


def test_evaluating_turns_dropout_off_and_on_again(transformer: FluxTransformer2DModel) -> None:
    config = like(CONFIG, adapter_dropout=0.5)
    with attached(transformer, config):
        training = Training(transformer, config, 4)
        training.step([random_batch()])
        modes = {module.training for module in transformer.modules()}
        with training.evaluating(), torch.no_grad():
            first, again = (loss_per_sample(transformer, random_batch(), config) for _ in range(2))
        assert torch.equal(first, again)
        assert {module.training for module in transformer.modules()} == modes == {True}


def test_average_over_the_steps_is_what_is_evaluated(transformer: FluxTransformer2DModel) -> None:
    config = like(CONFIG, ema_decay=0.5)
    with attached(transformer, config):
        training = Training(transformer, config, 2)
        seen = [copies(training) for batches in different(2) if training.step(batches)]
        with training.evaluating():
            averaged = copies(training)
    for name, tensor in averaged.items():
        torch.testing.assert_close(tensor, (seen[0][name] + 2 * seen[1][name]) / 3)


def test_schedule_free_weights_are_evaluated_in_place_of_those_trained(transformer: FluxTransformer2DModel) -> None:
    config = like(CONFIG, optimizer=Optimizer.ADAMW_SCHEDULE_FREE, beta1=0.5)
    with attached(transformer, config):
        training = Training(transformer, config, 3)
        train(training, different(3), lambda _: None)
        trained = copies(training)
        with training.evaluating():
            evaluated = copies(training)
        for name, parameter in training.parameters.items():
            fast = training.optimizer.state[parameter]["z"]
            torch.testing.assert_close(trained[name], (evaluated[name] + fast) / 2)
        assert not same(evaluated, trained)


@pytest.mark.parametrize("fields", [{}, {"ema_decay": 0.5}, {"optimizer": "ADAMW_SCHEDULE_FREE"}])
def test_what_is_published_is_what_is_evaluated_and_leaves_no_trace(
    transformer: FluxTransformer2DModel, fields: dict[str, object]
) -> None:
    config = like(CONFIG, **fields)
    with attached(transformer, config):
        training = Training(transformer, config, 2)
        train(training, different(2), lambda _: None)
        before = copies(training)
        published = training.published()
        assert same(before, copies(training))
        with training.evaluating():
            assert same(published, copies(training))


def state_after(transformer: FluxTransformer2DModel, config: TrainConfig) -> TrainingState:
    """The state after two steps."""
    with attached(transformer, config):
        training = Training(transformer, config, 10)
        train(training, different(2), lambda _: None)
        return training.state()


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"rank": 8}, r"has shape \(8, \d+\) here and \(4, \d+\) in the state"),
        ({"targets": "ATTENTION"}, "the state has other parameters"),
        ({"adapter_type": "LOHA"}, "the state has other parameters"),
        ({"ema_decay": 0.9}, "keeps an average"),
        ({"lora_plus_ratio": 2.0}, "the optimizer's state does not fit"),
    ],
)
def test_state_of_another_run_is_refused_and_changes_nothing(
    transformer: FluxTransformer2DModel, fields: dict[str, object], what: str
) -> None:
    state = state_after(transformer, CONFIG)
    config = like(CONFIG, **fields)
    with attached(transformer, config):
        training = Training(transformer, config, 10)
        before = copies(training)
        with pytest.raises(StateOfOtherRun, match=what):
            training.load_state(state)
        assert same(before, copies(training))
        assert training.steps_done == 0


def test_average_of_other_weights_is_refused(transformer: FluxTransformer2DModel) -> None:
    config = like(CONFIG, ema_decay=0.9)
    state = state_after(transformer, config)
    assert state.average
    name, *_ = state.average["weights"]
    for weights in ({}, state.average["weights"] | {name: torch.zeros(1)}):
        other = replace(state, average=AverageState(updates=2, weights=weights))
        with attached(transformer, config), pytest.raises(StateOfOtherRun, match="average"):
            Training(transformer, config, 10).load_state(other)


def test_skipped_steps_in_a_row_are_counted_on_after_a_resume(transformer: FluxTransformer2DModel) -> None:
    config = like(CONFIG, max_skipped_steps=2)
    with attached(transformer, config):
        first = Training(transformer, config, 10)
        train(first, [[BAD], [BAD]], lambda _: None)
        second = Training(transformer, config, 10)
        second.load_state(first.state())
        with pytest.raises(NonFiniteLoss, match="at step 3, skipped steps in a row: 3"):
            second.step([BAD])


def test_step_that_was_interrupted_between_its_batches_has_not_happened(transformer: FluxTransformer2DModel) -> None:
    calls: list[None] = []

    def before_batch() -> None:
        calls.append(None)
        if len(calls) == 4:
            raise Stop

    steps = [split(random_batch(4, name=str(number)), 2) for number in range(2)]
    whole = parameters_after(transformer, CONFIG, steps)
    with attached(transformer, CONFIG):
        first = Training(transformer, CONFIG, 2, before_batch)
        with pytest.raises(Stop):
            train(first, steps, lambda _: None)
        state = first.state()
    assert state.steps_done == 1
    with attached(transformer, CONFIG):
        second = Training(transformer, CONFIG, 2)
        second.load_state(state)
        second.step(steps[1])
        assert same(copies(second), whole)
