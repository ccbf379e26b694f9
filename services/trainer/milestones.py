"""What happens between the steps of a run: the held-out loss is measured, the best adapter kept, previews made.

Also decides when a run ends before its length, because the held-out loss no longer falls.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from services.common.object_store import ObjectDamaged, ObjectMissing
from services.trainer.adapters.files import AdapterSnapshot
from services.trainer.best import is_better
from services.trainer.config import TrainConfig
from services.trainer.encoder_link import EncoderAway
from services.trainer.jobs import Event, JobWarning, ValidationCompleted
from services.trainer.previews import Previews
from services.trainer.reporter import Reporter
from services.trainer.results.history import Activity, History
from services.trainer.train import NonFiniteLoss, Step, Training

log = logging.getLogger(__name__)

MOST_MISSED = 2


class StopEarly(Exception):
    """The held-out loss no longer falls."""


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best adapter so far by what `best.py` looks at, the held-out loss, and the step after which it was."""

    step: int
    loss: float
    snapshot: AdapterSnapshot


@dataclass(frozen=True, kw_only=True)
class MilestonesState:
    """What was measured and shown so far: losses by step, and the steps whose pictures were made or given up.

    `to_beat` is the last loss that was better by enough, `not_better` counts the measurements since. `loss_zero` is the
    loss of predicting no velocity; None without held-out data, and in checkpoints of earlier versions.
    """

    losses: Mapping[int, float]
    loss_zero: float | None = None
    best: Best | None
    to_beat: float
    not_better: int
    previewed: frozenset[int]
    missed_in_a_row: int


class Milestones:
    """Follows one run. `measure` gives the held-out loss of the weights as they are, `snapshot` a copy of the adapter.

    `measure` and `loss_zero`, the loss of predicting no velocity, are None without held-out data, `previews` without
    prompts. What they and the reporter raise comes out, and leaves a state from which `catch_up` does again what was
    interrupted.
    """

    def __init__(
        self,
        training: Training,
        config: TrainConfig,
        reporter: Reporter,
        history: History,
        *,
        measure: Callable[[], float] | None,
        loss_zero: float | None = None,
        snapshot: Callable[[], AdapterSnapshot],
        previews: Previews | None,
    ) -> None:
        self._training = training
        self._config = config
        self._reporter = reporter
        self._history = history
        self._measure = measure
        self._snapshot = snapshot
        self._previews = previews
        self._previewed: set[int] = set()
        self._missed_in_a_row = 0
        self._to_beat = math.inf  # the last loss that was better by enough: slow improvements add up
        self._not_better = 0
        self.losses: dict[int, float] = {}
        self.loss_zero = loss_zero
        self.best: Best | None = None

    def state(self) -> MilestonesState:
        """What it goes on from. Whatever was interrupted has not happened."""
        return MilestonesState(
            losses=dict(self.losses),
            loss_zero=self.loss_zero,
            best=self.best,
            to_beat=self._to_beat,
            not_better=self._not_better,
            previewed=frozenset(self._previewed),
            missed_in_a_row=self._missed_in_a_row,
        )

    def load_state(self, state: MilestonesState) -> None:
        """Go on from a state."""
        self.losses, self.best = dict(state.losses), state.best
        if state.loss_zero is not None:
            self.loss_zero = state.loss_zero
        self._to_beat, self._not_better = state.to_beat, state.not_better
        self._previewed, self._missed_in_a_row = set(state.previewed), state.missed_in_a_row

    def catch_up(self) -> None:
        """Do what is due after the steps done and has not been done; raises `StopEarly`.

        Before the first step that is a look at the adapter: unless it was started warm, that is the base.
        """
        self._do_what_is_due(self._training.steps_done)
        self._reporter.restart_clock()  # what went before is no part of the next step

    def on_step(self, step: Step) -> None:
        """Note a step, and do what is due after it; raises `StopEarly`."""
        self._reporter.on_step(step)
        self._do_what_is_due(step.number)

    def _do_what_is_due(self, step: int) -> None:
        total = self._reporter.total_steps
        at_an_end = step in {0, total}
        measure = at_an_end or step % self._config.validation_interval(total) == 0
        given_up = self._missed_in_a_row >= MOST_MISSED  # each costs seconds of waiting for who is not there
        preview = at_an_end or (step % self._config.preview_interval(total) == 0 and not given_up)
        self._look(step, measure=measure, preview=preview)
        if (
            self._config.early_stopping_patience
            and step < total
            and self._not_better >= self._config.early_stopping_patience
        ):
            self._look(step, measure=False, preview=True)  # the end is shown, wherever it is
            raise StopEarly

    def _look(self, step: int, *, measure: bool, preview: bool) -> None:
        measure = measure and self._measure is not None and step not in self.losses
        preview = preview and self._previews is not None and step not in self._previewed
        if not (measure or preview):
            return
        self._reporter.flush()
        with self._training.evaluating():
            if measure:
                self._validate(step)
            if preview:
                self._preview(step)
        self._reporter.restart_clock()

    def _validate(self, step: int) -> None:
        """Measure and tell, then note: interrupted before its end, it is done again."""
        assert self._measure  # noqa: S101 - for the type checker: `_look` has seen to it
        with self._history.timed(Activity.VALIDATING):
            loss = self._measure()
            if not math.isfinite(loss):
                raise NonFiniteLoss(f"held-out loss {loss} after step {step}")
            best = self.best
            if best is None or is_better(loss, best.loss):
                best = Best(step=step, loss=loss, snapshot=self._snapshot())
        self._reporter.write([ValidationCompleted(step=step, loss=loss, held_out_loss_zero=self.loss_zero)])
        self.losses[step], self.best = loss, best
        if loss < self._to_beat - self._config.early_stopping_min_delta:
            self._to_beat, self._not_better = loss, 0
        else:
            self._not_better += 1

    def _preview(self, step: int) -> None:
        """Make and tell, then note, as above."""
        assert self._previews  # noqa: S101 - as above
        missed = 0
        try:
            with self._history.timed(Activity.PREVIEWING):
                events: list[Event] = [*self._previews.render(step, self._reporter.check)]
        except (EncoderAway, ObjectMissing, ObjectDamaged) as error:  # a store that is away ends this attempt instead
            log.warning("no preview after step %d: %s", step, error.log_line)
            message = f"no preview after step {step}: {error.line}"
            missed = self._missed_in_a_row + 1
            if missed == MOST_MISSED:
                message += " The next ones are left out, but for the last."
            events = [JobWarning(reason="PREVIEW_SKIPPED", message=message)]
        unread, self._previews.unread = self._previews.unread, []  # told once
        events = [*(JobWarning(reason="PROMPT_NOT_READ", message=f"preview prompt {text}") for text in unread), *events]
        self._reporter.write(events)
        self._previewed.add(step)
        self._missed_in_a_row = missed
