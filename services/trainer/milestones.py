"""What happens between the steps of a run: the held-out loss is measured, the best adapter kept, previews made.

Also decides when a run ends before its length, because the held-out loss no longer falls.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from services.common.object_store import ObjectDamaged, ObjectMissing
from services.trainer.adapters.files import AdapterSnapshot
from services.trainer.config import TrainConfig
from services.trainer.encoder_link import EncoderAway
from services.trainer.jobs import JobWarning, ValidationCompleted
from services.trainer.previews import Previews
from services.trainer.reporter import Reporter
from services.trainer.results.history import Activity, History
from services.trainer.train import NonFiniteLoss, Step, Training

MOST_MISSED = 2


class StopEarly(Exception):
    """The held-out loss no longer falls."""


@dataclass(frozen=True, kw_only=True)
class Best:
    """The adapter with the lowest held-out loss so far, and the step after which it was."""

    step: int
    loss: float
    snapshot: AdapterSnapshot


class Milestones:
    """Follows one run. `measure` gives the held-out loss of the weights as they are, `snapshot` a copy of the adapter.

    `measure` is None without held-out data, `previews` without prompts. What they and the reporter raise comes out.
    """

    def __init__(
        self,
        training: Training,
        config: TrainConfig,
        reporter: Reporter,
        history: History,
        *,
        measure: Callable[[], float] | None,
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
        self.best: Best | None = None

    def begin(self) -> None:
        """Look at the adapter before its first step: unless it was started warm, that is the base."""
        self._look(0, measure=True, preview=True)
        self._reporter.restart_clock()  # what went before is no part of the first step

    def on_step(self, step: Step) -> None:
        """Note a step, and do what is due after it; raises `StopEarly`."""
        self._reporter.on_step(step)
        total = self._reporter.total_steps
        last = step.number == total
        measure = last or step.number % self._config.validation_interval(total) == 0
        given_up = self._missed_in_a_row >= MOST_MISSED  # each costs seconds of waiting for who is not there
        preview = last or (step.number % self._config.preview_interval(total) == 0 and not given_up)
        self._look(step.number, measure=measure, preview=preview)
        if (
            self._config.early_stopping_patience
            and not last
            and self._not_better >= self._config.early_stopping_patience
        ):
            self._look(step.number, measure=False, preview=True)  # the end is shown, wherever it is
            raise StopEarly

    def _look(self, step: int, *, measure: bool, preview: bool) -> None:
        measure = measure and self._measure is not None
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
        assert self._measure  # noqa: S101 - for the type checker: `_look` has seen to it
        with self._history.timed(Activity.VALIDATING):
            loss = self._measure()
            if not math.isfinite(loss):
                raise NonFiniteLoss(f"held-out loss {loss} after step {step}")
            self.losses[step] = loss
            if loss < self._to_beat - self._config.early_stopping_min_delta:
                self._to_beat, self._not_better = loss, 0
            else:
                self._not_better += 1
            if self.best is None or loss < self.best.loss:
                self.best = Best(step=step, loss=loss, snapshot=self._snapshot())
        self._reporter.write([ValidationCompleted(step=step, loss=loss)])

    def _preview(self, step: int) -> None:
        assert self._previews  # noqa: S101 - as above
        self._previewed.add(step)
        try:
            with self._history.timed(Activity.PREVIEWING):
                pictures = self._previews.render(step, self._reporter.check)
            self._reporter.write(pictures)
            self._missed_in_a_row = 0
        except (EncoderAway, ObjectMissing, ObjectDamaged) as error:  # a store that is away ends this attempt instead
            message = f"no preview after step {step}: {error.line}"
            self._missed_in_a_row += 1
            if self._missed_in_a_row == MOST_MISSED:
                message += " The next ones are left out, but for the last."
            self._reporter.write([JobWarning(reason="PREVIEW_SKIPPED", message=message)])
