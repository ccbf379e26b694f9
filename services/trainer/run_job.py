"""One job from its cached dataset to its published files, on a base transformer that is already there.

It goes on from its newest checkpoint, takes turns with other jobs, and can be left at any moment: what it has learnt is
then written as a checkpoint without the base.
"""

from __future__ import annotations

import hashlib
import logging
import statistics
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from services.common.errors import ServiceError, Unavailable
from services.common.object_store import ObjectStore
from services.trainer.adapters.adapter import NonFiniteAdapter, attached
from services.trainer.adapters.comfyui import comfyui_file
from services.trainer.adapters.files import AdapterSnapshot, adapter_form, peft_file, snapshot, with_length_ratios
from services.trainer.adapters.kohya import kohya_file
from services.trainer.adapters.outline import Outline
from services.trainer.adapters.uploads import read_warm_start
from services.trainer.adapters.warm_start import load_into
from services.trainer.base import Base
from services.trainer.cautions import cautions, overlap
from services.trainer.checkpoints.checkpoints import Checkpoints
from services.trainer.checkpoints.fingerprints import Fingerprints, versions
from services.trainer.checkpoints.savepoints import WARM_START, Savepoints
from services.trainer.checkpoints.sets import CheckpointOfOtherBase
from services.trainer.checkpoints.state import RunState
from services.trainer.data.cached_dataset import CachedDataset
from services.trainer.data.job_data import Data, read_data
from services.trainer.database.job_store import JobStore, LostJob
from services.trainer.encoder_link import EncoderLink
from services.trainer.failures import failure_of
from services.trainer.flow_matching import Batch
from services.trainer.jobs import Job, JobState, JobWarning, StateChanged, StoredCheckpoint, StoredEvent, TrainingResult
from services.trainer.memory import MemoryPeak
from services.trainer.milestones import Best, Milestones, MilestonesState, StopEarly
from services.trainer.previews import Previews
from services.trainer.provenance import provenance, tag_frequency, thumbnail
from services.trainer.reporter import CancelJob, PauseJob, Reporter, StopWorker
from services.trainer.results.example import Sampling
from services.trainer.results.history import Activity
from services.trainer.results.job_files import (
    BEST_COMFYUI_FILE,
    BEST_FILE,
    BEST_KOHYA_FILE,
    COMFYUI_FILE,
    KOHYA_FILE,
    LORA_FILE,
    best_artifact_name,
    epoch_prefix,
    put_file,
)
from services.trainer.results.records import Records
from services.trainer.settings import TrainerSettings
from services.trainer.swap import Swap
from services.trainer.train import NonFiniteLoss, Step, Training, train
from services.trainer.transformer import refuse_guidance, set_gradient_checkpointing
from services.trainer.turns import Turn
from services.trainer.validation import held_out_loss, zero_loss

log = logging.getLogger(__name__)

NOT_THE_JOBS_END = (LostJob, Unavailable, CheckpointOfOtherBase)


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """What a worker gives each of its jobs to work with."""

    base: Base
    store: ObjectStore
    jobs: JobStore
    settings: TrainerSettings


def run_job(job: Job, place: Workplace, link: EncoderLink, reporter: Reporter, turn: Turn) -> TrainingResult:
    """Train and publish. The base is afterwards what it was before, also when something is raised.

    Before `PauseJob` and `StopWorker` come out, a checkpoint is written.
    """
    run = Run(job, place, link, reporter, turn)
    try:
        return run.to_its_end()
    except (PauseJob, StopWorker) as error:
        run.write_last_checkpoint(patient=isinstance(error, PauseJob))
        raise
    except CancelJob:
        run.publish_what_there_is(state=JobState.CANCELLED)
        raise
    except NOT_THE_JOBS_END:
        raise
    except Exception as error:
        run.publish_what_there_is(state=JobState.FAILED, failure=failure_of(error))
        raise


class Run:
    """One job on its way; everything that lives as long as it does."""

    def __init__(self, job: Job, place: Workplace, link: EncoderLink, reporter: Reporter, turn: Turn) -> None:
        self._job = job
        self._config = job.config
        self._place = place
        self._base = place.base
        # A job that should not go on does not wait for a store that is away.
        self._store = place.store.with_patience(while_waiting=reporter.check)
        self._link = link
        self._reporter = reporter
        self._turn = turn
        self._swap = Swap(place.base.transformer)
        self._records = Records(
            job, self._store, reporter, link, Sampling.from_base(place.base, address=place.settings.address)
        )
        self._memory = MemoryPeak(next(place.base.transformer.parameters()).device)
        self._milestones: Milestones | None = None
        self._savepoints: Savepoints | None = None
        self._provenance: dict[str, str] = {}

    def to_its_end(self) -> TrainingResult:
        """Train, publish every file, and return what the job has made."""
        transformer, config = self._base.transformer, self._config
        refuse_guidance(transformer, config)
        with self._records.history.timed(Activity.READING):
            data = read_data(self._job, transformer, self._store, self._reporter.check)
        self._records.sampling = self._records.sampling.at(data.usual_size(), text_tokens=data.training.text_tokens())
        if config.held_out_share and data.held_out:
            self._records.held_out_names = tuple(sample.sample_name for sample in data.held_out.samples)
        total_steps = config.steps or config.total_steps(data.training.batches_per_epoch(config.batch_size))
        self._reporter.total_steps = total_steps
        self._provenance = provenance(self._job, self._base, data)
        checkpoints = Checkpoints(
            self._job, self._store, self._place.jobs.claims, self._reporter.write, self._fingerprints(data)
        )
        state = checkpoints.newest()
        loss_zero = self._loss_zero(data, state)
        warm_start = None if state else self._warm_start()
        if not state:
            self._warn(data)
        elif state.warm_start_digest:
            self._provenance[WARM_START] = state.warm_start_digest
        pissa_start = state.pissa_factors if state else None
        with self._turn.hold(self._swap), attached(transformer, config, pissa_start) as adapter:
            set_gradient_checkpointing(transformer, on=config.gradient_checkpointing)
            if warm_start is not None:
                self._tell_left_out(load_into(transformer, config, warm_start))
            training = Training(transformer, config, total_steps, self._reporter.check)
            self._swap.carry(adapter, training)
            self._milestones = milestones = self._follow(training, data, loss_zero)
            self._savepoints = savepoints = Savepoints(
                training,
                milestones,
                self._reporter,
                checkpoints,
                self._job,
                form=adapter_form(transformer, config),
                provenance=self._provenance,
                interval_s=self._place.settings.checkpoint_interval_s,
            )
            if state:
                self._go_on_from(state, training, milestones, savepoints)
            stopped_early = self._train(training, data.training, milestones, savepoints)
            refuse_untrained(self._reporter)
            self._reporter.finishing = True
            with training.evaluating():
                last = snapshot(transformer, config)
        # An encoding that stalls now, with all steps done, is waited for: what has been learnt is safe here.
        self._provenance |= self._reporter.patiently(data.provenance)
        if config.tag_frequency:
            self._provenance |= tag_frequency(data.training.samples)
        if not data.manifest_digest:  # all samples are known only now
            self._reporter.write(overlap(data))
        return self._publish(milestones, last, stopped_early=stopped_early)

    def write_last_checkpoint(self, *, patient: bool) -> None:
        """What has been learnt so far, before the job is left; with `patient` until the store takes it."""
        self._reporter.finishing = True
        if not self._savepoints:
            return
        try:
            self._savepoints.write(patient=patient)
        except Unavailable as error:
            log.warning("%s: no checkpoint, an older one stands: %s", self._job.job_id, error.log_line)

    def publish_what_there_is(self, **ending: Any) -> None:
        """After a failure or a cancellation: the best adapter so far, metrics and a report that says how it ended."""
        if ending["state"] is JobState.CANCELLED and not self._reporter.step:
            return
        self._reporter.flush()
        if self._milestones and self._milestones.best:
            self._publish_best(self._milestones.best)
        self._note_memory()
        self._records.close(checkpoints=self._staying(ending["state"]), **ending, **self._so_far())

    def _train(
        self, training: Training, dataset: CachedDataset, milestones: Milestones, savepoints: Savepoints
    ) -> bool:
        """Take all steps that are left; return whether the run was ended early."""

        def on_step(step: Step) -> None:
            milestones.on_step(step)
            self._note_memory()
            self._records.save_now_and_then()
            if savepoints.due():
                savepoints.write(self._turn.apart)
            self._reporter.give_way()

        in_order_first = self._job.start_while_encoding
        # Epochs end with the run, also when they do not fill the batches of its last step.
        epochs = None if self._config.steps else self._config.epochs or 1
        most_batches = epochs and epochs * dataset.batches_per_epoch(self._config.batch_size)
        try:
            milestones.catch_up()
            steps = dataset.batches(
                self._config,
                self._reporter.total_steps,
                in_order_first=in_order_first,
                most_batches=most_batches,
                first_step=training.steps_done,
            )
            with closing(steps):
                train(training, self._read(steps), on_step)
        except StopEarly:
            return True
        return False

    def _read(self, steps: Iterator[tuple[Batch, ...]]) -> Iterator[tuple[Batch, ...]]:
        """The steps; while samples are still arriving, others have the base until the next step is there."""
        while True:
            with self._turn.apart() if self._job.start_while_encoding else nullcontext():
                batches = next(steps, None)
            if batches is None:
                return
            self._reporter.check()
            yield batches

    def _go_on_from(self, state: RunState, training: Training, milestones: Milestones, savepoints: Savepoints) -> None:
        training.load_state(state.training)
        milestones.load_state(self._measured(state.milestones))
        step = training.steps_done
        self._records.replay(all_events(self._place.jobs, self._job), step)
        self._reporter.resume(step, state.skipped_steps, self._records.history.durations_s.tolist())
        self._reporter.write([StateChanged(state=JobState.RUNNING, message=f"goes on after step {step}")])
        savepoints.goes_on()

    def _measured(self, state: MilestonesState) -> MilestonesState:
        """The same state; of the best adapter what a checkpoint does not keep is measured again."""
        if not state.best:
            return state
        best = with_length_ratios(state.best.snapshot, self._base.transformer, self._config)
        return replace(state, best=replace(state.best, snapshot=best))

    def _warm_start(self) -> bytes | None:
        if not self._config.warm_start_uri:
            return None
        data = read_warm_start(self._store, self._job.tenant, self._config.warm_start_uri)
        self._provenance[WARM_START] = hashlib.sha256(data).hexdigest()
        return data

    def _tell_left_out(self, outline: Outline) -> None:
        if outline.left_out:
            what = outline.left_out_in_words()
            message = f"warm_start_uri: {what} of the file left out, which jobs do not train"
            self._reporter.write([JobWarning(reason="WARM_START_LEFT_OUT", message=message)])

    def _fingerprints(self, data: Data) -> Fingerprints:
        held_out = self._job.held_out
        return Fingerprints(
            base=self._base.fingerprint,
            encoder=data.training.head.encoder_fingerprint,
            datasets=(data.manifest_digest, held_out.manifest_digest if held_out else ""),
            versions=versions(self._config),
        )

    def _loss_zero(self, data: Data, state: RunState | None) -> float | None:
        """The loss of predicting no velocity on the held-out samples: one number for the whole job, to the bit."""
        if not data.held_out:
            return None
        if state and state.milestones.loss_zero is not None:
            return state.milestones.loss_zero
        with self._records.history.timed(Activity.VALIDATING):
            return zero_loss(data.held_out, self._config, self._reporter.check)

    def _follow(self, training: Training, data: Data, loss_zero: float | None) -> Milestones:
        transformer, config, held_out = self._base.transformer, self._config, data.held_out
        measure = partial(held_out_loss, transformer, held_out, config, self._reporter.give_way) if held_out else None
        previews = None
        if config.preview_prompts:
            previews = Previews(
                self._store,
                self._link,
                data.with_trigger(config),
                transformer,
                scheduler_folder=self._base.scheduler_folder,
                folder=epoch_prefix(self._job),
                size=data.usual_size(),
                apart=partial(self._turn.apart, goes_on_after=(ServiceError,)),  # it may go on without a preview
            )
        return Milestones(
            training,
            config,
            self._reporter,
            self._records.history,
            measure=measure,
            loss_zero=loss_zero,
            snapshot=partial(snapshot, transformer, config),
            previews=previews,
        )

    def _publish(self, milestones: Milestones, last: AdapterSnapshot, *, stopped_early: bool) -> TrainingResult:
        """Publish everything; the event of the LoRA itself comes with the job's end, in one transaction."""
        best = milestones.best
        told = self._told(self._reporter.step)
        lora = self._reporter.patiently(
            lambda: put_file(self._store, self._job, LORA_FILE, peft_file(last, self._config, told))
        )
        self._records.artifacts[LORA_FILE] = lora
        self._publish_other_forms(last, told, kohya=KOHYA_FILE, comfyui=COMFYUI_FILE)
        if best:
            self._publish_best(best)
        self._note_memory()
        names = self._records.artifacts
        result = TrainingResult(
            lora=lora,
            held_out_loss_base=milestones.losses.get(0),
            held_out_loss_lora=milestones.losses.get(self._reporter.step),
            best_step=best.step if best else None,
            held_out_loss_best=best.loss if best else None,
            held_out_loss_zero=milestones.loss_zero,
            best_artifact_name=best_artifact_name(best.step if best else None, self._reporter.step, names),
            stopped_early=stopped_early,
            skipped_steps=self._reporter.skipped_steps,
            step_time_s=statistics.median(self._reporter.durations_s),
            memory_peak_bytes=self._memory.look(),
        )
        self._records.close(
            checkpoints=self._staying(JobState.SUCCEEDED), state=JobState.SUCCEEDED, result=result, **self._so_far()
        )
        return result.model_copy(update={"artifacts": tuple(self._records.artifacts.values())})

    def _publish_best(self, best: Best) -> None:
        told = self._told(best.step)
        try:
            self._records.publish(BEST_FILE, peft_file(best.snapshot, self._config, told))
        except NonFiniteAdapter as error:
            self._reporter.write([JobWarning(reason="BEST_SKIPPED", message=f"no {BEST_FILE}: {error}")])
        else:
            self._publish_other_forms(best.snapshot, told, kohya=BEST_KOHYA_FILE, comfyui=BEST_COMFYUI_FILE)

    def _publish_other_forms(self, adapter: AdapterSnapshot, told: dict[str, str], *, kohya: str, comfyui: str) -> None:
        """The forms for other programs: what keeps one from being written does not keep back the adapter itself."""
        if not self._config.kohya_file:
            return
        for write, name, reason in ((kohya_file, kohya, "KOHYA_SKIPPED"), (comfyui_file, comfyui, "COMFYUI_SKIPPED")):
            try:
                data = write(adapter, self._config, told)
            except NonFiniteAdapter as error:
                self._reporter.write([JobWarning(reason=reason, message=f"no {name}: {error}")])
            else:
                if data:
                    self._records.publish(name, data)

    def _told(self, step: int) -> dict[str, str]:
        """What the files of the adapter after a step say of where they come from."""
        return self._provenance | thumbnail(self._records.history.previews, step)

    def _staying(self, state: JobState) -> list[StoredCheckpoint]:
        return self._reporter.patiently(lambda: self._place.jobs.claims.staying_checkpoints(self._job, state))

    def _so_far(self) -> dict[str, int]:
        return {"step": self._reporter.step, "total_steps": self._reporter.total_steps}

    def _note_memory(self) -> None:
        self._records.history.note_memory(self._memory.look())

    def _warn(self, data: Data) -> None:
        """Say what the job's owner may not have meant; the report has what was said at its creation too."""
        for stored in all_events(self._place.jobs, self._job):
            if isinstance(stored.event, JobWarning):
                self._records.history.add(stored.event)
        self._reporter.write(cautions(self._config, data, self._reporter.total_steps))


def all_events(jobs: JobStore, job: Job) -> Iterator[StoredEvent]:
    """Everything that has happened to a job, page by page."""
    sequence = job.first_sequence - 1
    while page := jobs.events_after(job.job_id, sequence):
        yield from page
        sequence = page[-1].sequence


def refuse_untrained(reporter: Reporter) -> None:
    """Raise `NonFiniteLoss` when no step changed anything, which a short run can end with."""
    if reporter.skipped_steps == reporter.step:
        raise NonFiniteLoss(f"all {reporter.step} steps had a loss or gradient that is not finite, and were skipped")
