"""Which checkpoints are kept, whatever the order in which they came."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.checkpoints.retention import dropped, dropped_at_success, thinned
from services.trainer.config import TrainConfig
from services.trainer.jobs import Artifact, Checkpoint

LORA = Artifact(artifact_name="lora.safetensors", uri="s3://b/k", size_bytes=1, content_digest="0")


def checkpoint(step: int, loss: float | None = None, *, requested: bool = False) -> Checkpoint:
    """A checkpoint after a step."""
    return Checkpoint(
        checkpoint_id=f"{step:06}-1",
        step=step,
        uri="s3://b/manifest.json",
        manifest_digest="0",
        size_bytes=1,
        lora=LORA,
        held_out_loss=loss,
        requested=requested,
    )


def kept_of(existing: list[Checkpoint], config: TrainConfig) -> list[int]:
    """Steps of those that stay, newest first."""
    gone = dropped(existing, config)
    return [each.step for each in existing if each.checkpoint_id not in gone]


losses = st.none() | st.floats(0, 10)
histories = st.dictionaries(st.integers(0, 60), losses, max_size=12).map(
    lambda found: [checkpoint(step, found[step]) for step in sorted(found, reverse=True)]
)


@given(existing=histories, newest=st.integers(1, 4), interval=st.integers(0, 10))
def test_what_is_kept_is_new_or_a_multiple_or_the_best(existing: list[Checkpoint], newest: int, interval: int) -> None:
    config = TrainConfig(checkpoints_kept=newest, checkpoint_keep_interval_steps=interval)
    kept = kept_of(existing, config)
    measured = [each.held_out_loss for each in existing if each.held_out_loss is not None]
    assert kept[:newest] == [each.step for each in existing[:newest]]
    multiples = {each.step for each in existing if interval and each.step and each.step % interval == 0}
    assert multiples <= set(kept)
    others = [each for each in existing if each.step in kept[newest:] and each.step not in multiples]
    assert len(others) <= 1
    assert all(each.held_out_loss == min(measured) for each in others)


@given(existing=histories)
def test_the_best_is_always_kept(existing: list[Checkpoint]) -> None:
    kept = kept_of(existing, TrainConfig(checkpoints_kept=1))
    measured = {each.step: each.held_out_loss for each in existing if each.held_out_loss is not None}
    assert not measured or min(measured.values()) in [measured.get(step) for step in kept]


def test_the_checkpoint_before_the_newest_is_kept_by_default() -> None:
    assert kept_of([checkpoint(step) for step in (40, 30, 20, 10)], TrainConfig()) == [40, 30]


def test_one_that_was_asked_for_outlasts_newer_ones_and_success() -> None:
    existing = [checkpoint(40), checkpoint(30), checkpoint(20), checkpoint(10, requested=True)]
    assert kept_of(existing, TrainConfig()) == [40, 30, 10]
    assert len(dropped_at_success(existing, TrainConfig())) == 3


def test_pauses_take_no_place_from_the_checkpoints_of_an_interval() -> None:
    existing = [checkpoint(step) for step in (35, 33, 30, 21, 20, 10)]
    config = TrainConfig(checkpoint_interval_steps=10)
    assert kept_of(existing, config) == [35, 33, 30, 20]
    assert dropped_at_success(existing, config) == ["000035-1", "000033-1", "000021-1", "000010-1"]


def test_number_that_is_to_be_kept_counts_for_those_of_every_few_minutes_too() -> None:
    existing = [checkpoint(step) for step in (35, 33, 30)]
    assert dropped_at_success(existing, TrainConfig(checkpoints_kept=2)) == ["000030-1"]
    assert len(dropped_at_success(existing, TrainConfig())) == 3


def test_of_equal_losses_the_newest_is_kept() -> None:
    existing = [checkpoint(4, 2.0), checkpoint(3, 1.0), checkpoint(2, 1.0)]
    assert kept_of(existing, TrainConfig(checkpoints_kept=1)) == [4, 3]


@pytest.mark.parametrize(
    ("steps", "kept", "said"),
    [
        (12, None, []),  # after 4 and 8: the end is no checkpoint of these
        (13, None, ["every 4 steps 3 checkpoints are written, of which the newest 2 stay"]),
        (40, None, ["every 4 steps 9 checkpoints are written, of which the newest 2 stay"]),
        (40, 3, []),
    ],
)
def test_checkpoints_that_will_not_stay_are_told_in_time(steps: int, kept: int | None, said: list[str]) -> None:
    config = TrainConfig(checkpoint_interval_steps=4, checkpoints_kept=kept)
    assert [warning.message.partition(":")[0] for warning in thinned(config, steps)] == said


def test_no_checkpoint_asked_for_is_none_to_warn_of() -> None:
    assert not list(thinned(TrainConfig(), 10_000))
