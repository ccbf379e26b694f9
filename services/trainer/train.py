"""The training loop. What it minimises is in `flow_matching.py`; what it sees is in `cached_dataset.py`.

Around a step: the learning rate (`schedules.py`), what the gradient does to the weights (`optimizers.py`), and the
average that is measured and published in their place (`averaging.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from schedulefree import AdamWScheduleFree
from torch import Tensor, nn

from services.trainer.adapters.adapter import adapter_parameters, without_dropout
from services.trainer.averaging import Average, AverageState, schedule_free_average
from services.trainer.config import TrainConfig
from services.trainer.flow_matching import Batch, loss_per_sample
from services.trainer.optimizers import build_optimizer, set_learning_rate, state_apart
from services.trainer.schedules import learning_rate_factor
from services.trainer.seeds import seeded


def train(training: Training, steps: Iterable[Sequence[Batch]], on_step: Callable[[Step], None]) -> None:
    """Take a step for each sequence of batches.

    Loading, saving, reporting and cancelling belong to the caller, through `on_step`; what it raises ends the loop.
    """
    for batches in steps:
        on_step(training.step(batches))


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one step measured. `loss` and `gradient_norm`, before clipping, are scalars on the device.

    A `skipped` step changed nothing, since one of the two was not finite. `learning_rate` is that of the step; with
    PRODIGY the effective one.
    """

    number: int
    loss: Tensor
    gradient_norm: Tensor
    learning_rate: float
    skipped: bool = False


class NonFiniteLoss(Exception):
    """A loss or gradient is not a finite number."""


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """All that a run goes on from, on the CPU and apart from what trains on.

    `parameters` by name in the optimizer's order; `optimizer` is its `state_dict`. Random numbers have no state: every
    draw is a function of the job's seed and of `steps_done`.
    """

    parameters: Mapping[str, Tensor]
    optimizer: dict[str, Any]
    average: AverageState | None
    steps_done: int
    skipped_in_a_row: int


class StateOfOtherRun(Exception):
    """A state does not fit the run that should go on from it."""


class Training:
    """One run: optimizer, schedule, average and step; everything that changes from step to step.

    A run goes on exactly where another stopped once it has loaded that one's `state`.
    """

    def __init__(
        self,
        transformer: FluxTransformer2DModel,
        config: TrainConfig,
        total_steps: int,
        before_batch: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin a run of `total_steps` steps with the adapter that is attached to `transformer`.

        `before_batch` may raise to end a step before its next batch.
        """
        self.parameters = {name: each for name, each in adapter_parameters(transformer).items() if each.requires_grad}
        self.optimizer = build_optimizer(self.parameters, config)
        self.average = Average(self.parameters, config.ema_decay) if config.ema_decay else None
        self.steps_done = 0
        """Skipped steps count: the schedule goes on over them."""
        self.skipped_in_a_row = 0
        self._transformer = transformer
        self._config = config
        self._total_steps = total_steps
        self._before_batch = before_batch
        self._device = next(iter(self.parameters.values())).device

    def step(self, batches: Sequence[Batch]) -> Step:
        """Take one optimizer step on the mean loss over all samples of `batches`.

        Raises `NonFiniteLoss` once more than `max_skipped_steps` steps in a row were skipped.
        """
        learning_rate = set_learning_rate(
            self.optimizer, learning_rate_factor(self._config, self.steps_done, self._total_steps)
        )
        loss = self._backward(batches)
        gradient_norm = nn.utils.clip_grad_norm_(self.parameters.values(), self._config.max_gradient_norm)
        # Waits for the device, once a step: whether to change the weights has to be known before they are changed.
        skipped = not bool(loss.isfinite() & gradient_norm.isfinite())
        if not skipped:
            self.optimizer.step()
            if self.average:
                self.average.update()
        self.optimizer.zero_grad()
        self.steps_done += 1
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        step = Step(
            number=self.steps_done,
            loss=loss,
            gradient_norm=gradient_norm,
            learning_rate=learning_rate,
            skipped=skipped,
        )
        self._refuse_too_many_skipped(step)
        return step

    def state(self) -> TrainingState:
        """A copy of everything that changes, between steps and outside `evaluating`."""
        return TrainingState(
            parameters={name: each.detach().to("cpu", copy=True) for name, each in self.parameters.items()},
            optimizer=state_apart(self.optimizer.state_dict()),
            average=state_apart(self.average.state_dict()) if self.average else None,
            steps_done=self.steps_done,
            skipped_in_a_row=self.skipped_in_a_row,
        )

    def published(self) -> dict[str, Tensor]:
        """A copy on the CPU of the weights that are published, by name. Needs nothing of the transformer itself."""
        with self._published_weights():
            return {name: each.detach().to("cpu", copy=True) for name, each in self.parameters.items()}

    def load_state(self, state: TrainingState) -> None:
        """Go on from a state of the same configuration; raises `StateOfOtherRun`, and then nothing has changed."""
        self._refuse_other_run(state)
        try:
            # A copy: most optimizers go on in the very tensors that they are given.
            self.optimizer.load_state_dict(state_apart(state.optimizer))
        except ValueError as error:
            raise StateOfOtherRun(f"the optimizer's state does not fit: {error}") from error
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state.parameters[name])
        if self.average and state.average:
            self.average.load_state_dict(state.average)
        self.steps_done, self.skipped_in_a_row = state.steps_done, state.skipped_in_a_row

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Without the adapter's dropout, and with the weights that are published: the average, where there is one.

        Afterwards everything is what it was, to the bit, also when it is another job's turn on the base by then.
        """
        with self._published_weights(), without_dropout(self._transformer):
            yield

    def _backward(self, batches: Sequence[Batch]) -> Tensor:
        """Add up the gradient of the mean loss over all samples; return that loss."""
        samples = sum(len(batch.sigma_B) for batch in batches)
        loss = torch.zeros((), device=self._device)
        with _drawing_for(self._config.seed, self.steps_done):
            for batch in batches:
                self._before_batch()
                share = loss_per_sample(self._transformer, batch.to(self._device), self._config).sum() / samples
                share.backward()
                loss += share.detach()
        return loss

    def _published_weights(self) -> AbstractContextManager[None]:
        if self.average:
            return self.average.swapped_in()
        if isinstance(self.optimizer, AdamWScheduleFree):
            return schedule_free_average(self.optimizer, self.parameters.values())
        return nullcontext()

    def _refuse_other_run(self, state: TrainingState) -> None:
        mine = {name: tuple(parameter.shape) for name, parameter in self.parameters.items()}
        theirs = {name: tuple(tensor.shape) for name, tensor in state.parameters.items()}
        if list(mine) != list(theirs):  # the optimizer knows its parameters by their order
            names = sorted(mine.keys() ^ theirs.keys())
            raise StateOfOtherRun(f"the state has other parameters: {names[:3] or 'in another order'}")
        for name, shape in mine.items():
            if theirs[name] != shape:
                raise StateOfOtherRun(f"{name} has shape {shape} here and {theirs[name]} in the state")
        if (self.average is None) != (state.average is None):
            raise StateOfOtherRun("one of run and state keeps an average of the weights, the other does not")
        if self.average and state.average and (other := self.average.misfit(state.average)):
            raise StateOfOtherRun(f"the average of the state does not fit: {other}")

    def _refuse_too_many_skipped(self, step: Step) -> None:
        if self.skipped_in_a_row > self._config.max_skipped_steps:
            raise NonFiniteLoss(
                f"loss {float(step.loss)} and gradient norm {float(step.gradient_norm)} at step {step.number}, "
                f"skipped steps in a row: {self.skipped_in_a_row}"
            )


@contextmanager
def _drawing_for(seed: int, step: int) -> Iterator[None]:
    """Make what torch draws meanwhile, the adapter's dropout, a function of seed and step; leave no trace of it."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seeded(seed, "dropout", step).initial_seed())
        yield
