"""The training loop. What it minimises is in `flow_matching.py`; what it sees is in `cached_dataset.py`.

Around a step: the learning rate (`schedules.py`), what the gradient does to the weights (`optimizers.py`), and the
average that is measured and published in their place (`averaging.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from diffusers import FluxTransformer2DModel
from schedulefree import AdamWScheduleFree
from torch import Tensor, nn

from services.trainer.adapters.adapter import adapter_parameters
from services.trainer.averaging import Average, schedule_free_average
from services.trainer.config import TrainConfig
from services.trainer.flow_matching import Batch, loss_per_sample
from services.trainer.optimizers import build_optimizer, set_learning_rate
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


class Training:
    """One run: optimizer, schedule, average and step; everything that changes from step to step.

    A run goes on exactly where another stopped once its parameters, `optimizer`, `average`, `steps_done` and
    `skipped_in_a_row` are those of the other: every draw is a function of the seed and the step's number.
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

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Without the adapter's dropout, and with the weights that are published: the average, where there is one.

        Afterwards everything is what it was, to the bit.
        """
        was_training = self._transformer.training
        with self._published_weights():
            self._transformer.eval()
            try:
                yield
            finally:
                self._transformer.train(was_training)

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
