"""What a job trains on and measures itself on, read from what the encoder has cached."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from diffusers import FluxTransformer2DModel
from fluxsmith_text import quoted

from services.common.cache import read_manifest
from services.common.captions import TRIGGER_PLACE, with_trigger
from services.common.errors import NotReady
from services.common.object_store import ObjectStore
from services.trainer.config import TrainConfig
from services.trainer.data.arrival import ArrivingSamples
from services.trainer.data.cached_dataset import CachedDataset, Widths
from services.trainer.data.held_out import split
from services.trainer.data.references import encoder_mismatch
from services.trainer.jobs import DatasetReference, Job, JobWarning
from services.trainer.previews import Size


@dataclass(frozen=True, kw_only=True)
class Data:
    """The two datasets of a job. `manifest_digest` is empty while samples are arriving."""

    training: CachedDataset
    held_out: CachedDataset | None
    manifest_digest: str

    def usual_size(self) -> Size:
        """The size that most views have, of equally common ones the largest; of arriving samples the first one's."""
        samples = self.training.samples if self.manifest_digest else [self.training.samples[0]]
        sizes = Counter((view.height_px, view.width_px) for sample in samples for view in sample.views)
        height_px, width_px = max(sizes, key=lambda size: (sizes[size], size))
        return Size(height_px=height_px, width_px=width_px)

    def arithmetic(self, config: TrainConfig, total_steps: int) -> str:
        """How the number of steps comes about, for people."""
        if not self.manifest_digest:  # nobody knows yet how many samples there are
            return f"{_counted(total_steps, 'step')} in all"
        samples = self.training.samples
        shown = sum(sample.repeats * len(sample.views) for sample in samples)
        images = _counted(len(samples), "image")
        if shown != len(samples):
            images += f", shown {shown} times an epoch with repeats and resolutions,"
        batches = self.training.batches_per_epoch(config.batch_size)
        give = "gives" if len(samples) == 1 and shown == 1 else "give"
        counted = "1 batch" if batches == 1 else f"{batches} batches"
        text = f"{images} in batches of {config.batch_size} {give} {counted} an epoch"
        accumulated = config.gradient_accumulation_steps
        a_step = f" at {accumulated} batches a step" if accumulated > 1 else ""
        if config.steps is not None:
            return f"{text}, the run has {_counted(total_steps, 'step')}{a_step}"
        epochs = config.epochs or 1
        return f"{text}, {_counted(epochs, 'epoch')} of them{a_step} make {_counted(total_steps, 'step')}"

    def with_trigger(self, config: TrainConfig) -> TrainConfig:
        """The configuration with the trigger word in the prompts of its previews: they show what was trained."""
        word = self.training.head.trigger_word
        prompts = tuple(with_trigger(prompt, word) for prompt in config.preview_prompts)
        return config.model_copy(update={"preview_prompts": prompts})

    def trigger_warnings(self, config: TrainConfig) -> Iterator[JobWarning]:
        """What of trigger words the job's owner may not have meant; of arriving samples the captions are not known."""
        word = self.training.head.trigger_word
        samples = self.training.samples if self.manifest_digest else ()
        captions = sum(any(TRIGGER_PLACE in each.caption for each in sample.captions) for sample in samples)
        prompts = sum(TRIGGER_PLACE in prompt for prompt in config.preview_prompts)
        if not word and (captions or prompts):
            places = [_counted(prompts, "preview prompt")] * bool(prompts)
            places += [f"the captions of {_counted(captions, 'sample')}"] * bool(captions)
            message = (
                f"{TRIGGER_PLACE} stays as it stands in {' and '.join(places)}, since the dataset has no trigger word: "
                "encode it with one (trigger_word), and create the job again"
            )
            yield JobWarning(reason="TRIGGER_MISSING", message=message)
        if self.held_out and self.held_out.head.trigger_word != word:
            measured = self.held_out.head.trigger_word
            message = (
                f"captions to train on have {_named(word)}, those to measure on have {_named(measured)}: encode both "
                "datasets with the same one, or the held-out loss is that of captions as nobody trained on"
            )
            yield JobWarning(reason="TRIGGER_DIFFERS", message=message)

    def provenance(self) -> dict[str, str]:
        """What a file says of the data, once all of it is known."""
        samples = self.training.samples
        digest = samples.manifest_digest() if isinstance(samples, ArrivingSamples) else self.manifest_digest
        return {"fluxsmith.dataset_digest": digest, "ss_num_train_images": str(len(samples))}


def read_data(
    job: Job, transformer: FluxTransformer2DModel, store: ObjectStore, while_waiting: Callable[[], None]
) -> Data:
    """The datasets that a job names; raises `NotReady` for what does not fit together, and what the store raises.

    `while_waiting` is called while samples arrive, and may raise.
    """
    training = _dataset(store, job.tenant, job.dataset, while_waiting)
    refuse_other_base(transformer, training)
    held_out = None
    if job.held_out:
        held_out = _dataset(store, job.tenant, job.held_out, while_waiting)
        if held_out.head.encoder_fingerprint != training.head.encoder_fingerprint:
            raise encoder_mismatch()
    elif job.config.held_out_share:
        rest, share = split(training.samples, job.config.held_out_share, job.config.seed)
        held_out = CachedDataset(store, training.head, share)
        training = CachedDataset(store, training.head, rest)
    return Data(training=training, held_out=held_out, manifest_digest=job.dataset.manifest_digest)


def refuse_other_base(transformer: FluxTransformer2DModel, dataset: CachedDataset) -> None:
    """Raise `NotReady` when a dataset was encoded for a base model of other widths than this one."""
    found = dataset.widths()
    config = transformer.config
    wanted = Widths(t5=config.joint_attention_dim, clip=config.pooled_projection_dim, latents=config.in_channels // 4)
    if found != wanted:
        raise NotReady(
            f"the dataset was encoded with {found}, the trainer's base model has {wanted}",
            reason="BASE_MODEL_MISMATCH",
            remedy="Give encoder and trainer the same FLUXSMITH_BASE_MODEL, and encode the dataset again.",
        )


def _dataset(
    store: ObjectStore, tenant: str, reference: DatasetReference, while_waiting: Callable[[], None]
) -> CachedDataset:
    if reference.encoding_id:
        samples = ArrivingSamples(store, tenant, reference.encoding_id, while_waiting=while_waiting)
        return CachedDataset(store, samples.head(), samples)
    manifest = read_manifest(store, tenant, reference.manifest_digest)
    return CachedDataset(store, manifest, manifest.samples)


def _named(trigger_word: str) -> str:
    return f"the trigger word {quoted(trigger_word)}" if trigger_word else "no trigger word"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"
