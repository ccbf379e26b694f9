"""Curves stay true to their numbers and small, however many there are."""

from __future__ import annotations

import math

import numpy as np
import pytest

from services.trainer.results.curves import Axis, curve_of_measurements, curve_of_steps, round_step

NONE_SKIPPED = np.zeros(100, dtype=bool)
STEPS = np.arange(1, 101)


def points(path: str) -> list[tuple[float, float]]:
    """The corners of a path."""
    pairs = [corner.split() for corner in path.strip("MZ").split("L")]
    return [(float(x), float(y)) for x, y in pairs]


@pytest.mark.parametrize(
    ("at_least", "step"), [(0.7, 1), (1, 1), (1.2, 2), (21, 25), (26, 50), (51, 100), (3e-5, 5e-5)]
)
def test_ticks_are_at_round_values(at_least: float, step: float) -> None:
    assert round_step(at_least) == pytest.approx(step)


def test_an_axis_covers_its_range() -> None:
    axis = Axis.over(0.41, 0.78)
    assert axis.low <= 0.41
    assert axis.high >= 0.78
    assert [tick.text for tick in axis.ticks()] == ["0.4", "0.5", "0.6", "0.7", "0.8"]
    assert axis.places(np.array([0.4, 0.8, 9.0])).tolist() == pytest.approx([100, 0, 0])


@pytest.mark.parametrize("value", [0.0, 1e-4, -2.0, 7.0])
def test_a_single_value_lies_in_the_middle(value: float) -> None:
    assert Axis.over(value, value).places(np.array([value])).tolist() == pytest.approx([50], abs=10)


def test_the_mean_lies_in_the_middle_of_its_steps() -> None:
    losses = np.where(STEPS == 50, 6.0, 5.0)
    curve = curve_of_steps("loss", STEPS, losses, last_step=100, skipped=NONE_SKIPPED)
    assert curve
    lifted = [x for x, y in points(curve.line) if y < points(curve.line)[0][1]]
    assert lifted == [48, 49, 50, 51, 52]
    assert (points(curve.line)[0][0], points(curve.line)[-1][0]) == (3, 98)


def test_the_mean_of_a_falling_loss_lies_on_it() -> None:
    falling = np.linspace(3.0, 1.0, 100)
    noisy = curve_of_steps("loss", STEPS, falling, last_step=100, skipped=NONE_SKIPPED)
    exact = curve_of_steps("loss", STEPS, falling, last_step=100)
    assert noisy
    assert exact
    assert points(noisy.line) == points(exact.line)[2:-2]
    assert "centered mean of 5 steps, from 2.96 at step 3 to 1.04 at step 98" in noisy.summary


def test_a_line_goes_through_its_values() -> None:
    curve = curve_of_steps("rate", np.array([1, 2, 4]), np.array([0.0, 4.0, 2.0]), last_step=4)
    assert curve
    assert points(curve.line) == [(25, 100), (50, 0), (100, 50)]
    assert (curve.band, curve.marks) == ("", ())


def test_a_hundred_thousand_steps_become_a_few_hundred_points() -> None:
    steps, losses = np.arange(1, 100_001), np.random.default_rng(0).normal(2, 0.1, 100_000)
    curve = curve_of_steps("loss", steps, losses, last_step=100_000, skipped=np.zeros(100_000, dtype=bool))
    assert curve
    assert len(points(curve.line)) == 384
    assert len(curve.line) + len(curve.band) < 20_000
    assert curve.band.endswith("Z")


def test_the_caption_of_a_curve_says_what_is_drawn() -> None:
    notes = {}
    for count in (5, 100, 1000):
        steps = np.arange(1, count + 1)
        skipped = np.zeros(count, dtype=bool)
        curve = curve_of_steps("loss", steps, 1.0 / steps, last_step=count, skipped=skipped)
        assert curve
        assert bool(curve.band) is ("pale" in curve.note)
        notes[count] = curve.note
    assert notes[5] == "each step"
    assert notes[100].startswith("pale: each step; line: centered mean of 5 steps")
    assert notes[1000].startswith("pale: the range; line: centered mean of 41 steps")


def test_a_single_step_is_a_dot() -> None:
    curve = curve_of_steps("loss", np.array([1]), np.array([2.0]), last_step=1, skipped=np.zeros(1, dtype=bool))
    assert curve
    assert [(dot.x, dot.title) for dot in curve.dots] == [(100, "step 1: 2")]


def test_spikes_do_not_press_the_curve_flat() -> None:
    losses = np.linspace(2.0, 1.0, 100)
    losses[50] = 1e6
    curve = curve_of_steps("norm", STEPS, losses, last_step=100, skipped=NONE_SKIPPED)
    assert curve
    heights = [y for _, y in points(curve.line)]
    assert heights[-1] - heights[0] > 50
    assert "1 higher still" in curve.note


def test_skipped_steps_are_marked_and_not_drawn() -> None:
    losses, skipped = np.linspace(2, 1, 100), NONE_SKIPPED.copy()
    losses[49], skipped[49] = math.nan, True
    curve = curve_of_steps("loss", STEPS, losses, last_step=100, skipped=skipped)
    assert curve
    assert curve.marks == (50,)
    assert "red: 1 skipped" in curve.note
    assert 50 not in [x for x, _ in points(curve.line)]


def test_nothing_finite_is_no_curve() -> None:
    assert curve_of_steps("loss", STEPS, np.full(100, math.nan), last_step=100, skipped=~NONE_SKIPPED) is None
    assert curve_of_measurements("held out", {1: math.nan}, last_step=1, best=None) is None


def test_the_best_measurement_has_the_ring() -> None:
    curve = curve_of_measurements("held out", {0: 5.0, 10: 2.0, 20: 3.0}, last_step=20, best=10)
    assert curve
    assert [(dot.x, dot.title) for dot in curve.dots if dot.best] == [(50, "step 10: 2")]
    assert len(curve.dots) == 3
    assert "best 2 at step 10" in curve.summary
    assert [(label.x, label.text) for label in curve.labels] == [(0, "base: 5"), (50, "best, step 10: 2")]


def test_the_yardstick_is_a_level_line_at_its_value() -> None:
    curve = curve_of_measurements("held out", {0: 5.0, 10: 1.0}, last_step=10, best=10, zero=3.0)
    assert curve
    assert curve.level
    ticks = {tick.text: tick.at for tick in curve.y_ticks}
    assert curve.level.y == ticks["3"]
    assert curve.labels[-1].text == curve.level.title == "predicting nothing: 3"
    assert "predicting nothing: 3" in curve.summary


def test_a_yardstick_far_off_does_not_press_the_curve_flat() -> None:
    curve = curve_of_measurements("held out", {0: 0.9, 10: 0.8}, last_step=10, best=10, zero=2.5)
    assert curve
    assert curve.level
    assert (curve.level.y, curve.level.title) == (0, "predicting nothing: 2.5 (above the drawing)")
    heights = [y for _, y in points(curve.line)]
    assert heights[-1] - heights[0] > 50


def test_a_measurement_before_the_first_step_is_called_by_its_name() -> None:
    measured = {0: 5.0, 10: 2.0}
    base = curve_of_measurements("held out", measured, last_step=10, best=10)
    warm = curve_of_measurements("held out", measured, last_step=10, best=10, start="the file it began with")
    assert base
    assert warm
    assert [dot.title for dot in base.dots] == ["the base model: 5", "step 10: 2"]
    assert [dot.title for dot in warm.dots] == ["the file it began with: 5", "step 10: 2"]
    assert warm.note.endswith("step 0 is the file it began with")
    assert "from 5 at the file it began with to 2 at step 10" in warm.summary


def test_the_lowest_of_very_many_measurements_still_has_the_ring() -> None:
    losses = dict.fromkeys(range(10000), 2.0) | {4321: 1.0}
    curve = curve_of_measurements("held out", losses, last_step=10_000, best=4321)
    assert curve
    assert [dot.title for dot in curve.dots] == ["the base model: 2", "step 4321: 1"]
    assert len(points(curve.line)) <= 203
