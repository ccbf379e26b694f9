"""When a run writes a checkpoint, and what goes into it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from services.trainer.adapters.adapter import NonFiniteAdapter
from services.trainer.adapters.files import AdapterForm, DtypeTooSmall, peft_file
from services.trainer.checkpoints.checkpoints import Checkpoints
from services.trainer.checkpoints.state import RunState
from services.trainer.config.choices import FileDtype
from services.trainer.jobs import Job, JobWarning
from services.trainer.milestones import Milestones
from services.trainer.reporter import Reporter
from services.trainer.train import Training

PROOF_S = 10.0  # of training
WARM_START = "fluxsmith.warm_start_digest"
"""Where the header of a file has the digest of the one that its job began with."""


class Savepoints:
    """The checkpoints of one run, from its first step or from the checkpoint that it goes on from.

    `interval_s` is how much training may be lost by jobs that say nothing about it, in seconds that the job has the
    base. `provenance` goes into the header of each checkpoint's LoRA. The first checkpoint of a job over
    which a worker was lost comes soon: until then it has its worker for itself.
    """

    def __init__(
        self,
        training: Training,
        milestones: Milestones,
        reporter: Reporter,
        checkpoints: Checkpoints,
        job: Job,
        *,
        form: AdapterForm,
        provenance: Mapping[str, str],
        interval_s: float,
    ) -> None:
        self._training = training
        self._milestones = milestones
        self._reporter = reporter
        self._checkpoints = checkpoints
        self._config = job.config
        self._form = form
        self._provenance = provenance
        self._interval_s = interval_s
        self._written_s = reporter.served_s
        self._proof_s = PROOF_S if job.lost else None
        self._written_step: int | None = None

    def goes_on(self) -> None:
        """The run has been restored: what it is now is written already."""
        self._written_step = self._training.steps_done

    def due(self) -> bool:
        """Whether the step just done is one to write a checkpoint after."""
        step, config = self._training.steps_done, self._config
        if self._reporter.checkpoint_wanted:
            return True
        if self._proof_s is not None and self._reporter.served_s - self._written_s >= self._proof_s:
            return True
        if config.checkpoint_keep_interval_steps and step % config.checkpoint_keep_interval_steps == 0:
            return True
        if step >= self._reporter.total_steps:  # what has been learnt is published next
            return False
        if config.checkpoint_interval_steps:
            return step % config.checkpoint_interval_steps == 0
        return self._reporter.served_s - self._written_s >= self._interval_s

    def write(self, apart: Callable[[], AbstractContextManager[None]] = nullcontext, *, patient: bool = True) -> None:
        """Write one of the run as it is, between steps; the store is waited for within `apart()`, without the base.

        Needs nothing of the base itself, so it can be called after the job was taken off it. With `patient` until store
        and database take it, else once; raises `Unavailable` then.
        """
        step = self._training.steps_done
        if step != self._written_step:
            self._reporter.flush()  # the steps of a checkpoint are told before it is
            try:
                lora = self._lora(step)
            except NonFiniteAdapter as error:
                message = f"no checkpoint after step {step}: {error}"
                self._reporter.write([JobWarning(reason="CHECKPOINT_SKIPPED", message=message)])
            else:
                state = RunState(
                    training=self._training.state(),
                    milestones=self._milestones.state(),
                    pissa_factors=self._form.pissa_factors,
                    skipped_steps=self._reporter.skipped_steps,
                    warm_start_digest=self._provenance.get(WARM_START, ""),
                )
                put = partial(self._checkpoints.write, state, lora, self._milestones.losses.get(step))
                with apart():
                    self._reporter.patiently(put) if patient else put()
            self._written_step, self._written_s = step, self._reporter.served_s
            self._proof_s = None
        self._reporter.checkpoint_written()

    def _lora(self, step: int) -> bytes:
        """The file that the job would publish now."""
        adapter = self._form.snapshot(self._training.published())
        provenance = {**self._provenance, "fluxsmith.step": str(step)}
        try:
            return peft_file(adapter, self._config, provenance)
        except DtypeTooSmall:  # the job fails over this at its end, if it still holds then
            return peft_file(adapter, self._config.model_copy(update={"file_dtype": FileDtype.FP32}), provenance)
