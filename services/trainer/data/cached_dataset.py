"""From a dataset's manifest to the batches of a run: a pure function of (seed, step), whoever computes it and when.

Every draw has a generator of its own, seeded by what it is for: so an interrupted run goes on with the same noise, and
neither the number of workers nor the order of reading changes anything. An epoch is made of exposures: every view of
every sample, as often as its repeats say.

Legend: B batch, C latent channels (16), H/W latent height and width, S text tokens, D width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, count, islice

import safetensors.torch
import torch
from torch import Tensor

from services.common import cache
from services.common.cache import CachedCaption, CachedObject, CachedSample, CachedVariant, CachedView, EncodingHead
from services.common.object_store import ObjectStore
from services.trainer.config import TrainConfig
from services.trainer.config.choices import GuidanceMode
from services.trainer.data.read_ahead import ahead
from services.trainer.flow_matching import Batch
from services.trainer.seeds import seeded
from services.trainer.sigmas import Stratum, draw_even, sigma_at, strata

STEPS_AHEAD = 2
OBJECTS_IN_MEMORY = 256  # of at most 4 MiB each with FLUX.1-dev's text embeddings
HELD_OUT_SIGMAS = tuple((2 * i + 1) / 16 for i in range(8))


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """One showing of a sample in an epoch: number of the sample, number of its view, and the how manieth time."""

    sample: int
    view: int
    repeat: int


@dataclass(frozen=True, kw_only=True)
class Item:
    """One sample as one step sees it, without a batch axis."""

    clean_CHW: Tensor
    noise_CHW: Tensor
    sigma: float
    t5_SD: Tensor
    clip_D: Tensor
    mask_1HW: Tensor | None
    guidance: float | None


@dataclass(frozen=True, kw_only=True)
class Widths:
    """What a base model and a dataset for it agree on: widths of T5 and CLIP embeddings, channels of latents."""

    t5: int
    clip: int
    latents: int


class CachedDataset:
    """The cached tensors of one dataset, read from the store when they are needed and checked against their digests.

    `samples` may still be arriving (`arrival.py`).
    """

    def __init__(self, store: ObjectStore, head: EncodingHead, samples: Sequence[CachedSample]) -> None:
        self.head = head
        self.samples = samples
        self._load = lru_cache(OBJECTS_IN_MEMORY)(lambda cached: _load(store, cached))

    def widths(self) -> Widths:
        """Widths of the cached tensors, read off the first sample."""
        caption = self._load(self.head.empty_caption.embedding)
        latents_CHW = self._load(self.samples[0].views[0].variants[0].latents)[cache.LATENT_MEAN]
        t5_width, clip_width = caption[cache.T5_EMBEDDING].shape[-1], caption[cache.CLIP_POOLED].shape[-1]
        return Widths(t5=t5_width, clip=clip_width, latents=latents_CHW.shape[0])

    def text_tokens(self) -> int:
        """Length of the cached T5 embeddings, which all have the same."""
        return self._load(self.head.empty_caption.embedding)[cache.T5_EMBEDDING].shape[0]

    def batches_per_epoch(self, batch_size: int) -> int:
        """Batches that show every sample once."""
        return len(self._epoch(0, 0, batch_size))

    def batches(
        self,
        config: TrainConfig,
        total_steps: int,
        *,
        in_order_first: bool = False,
        most_batches: int | None = None,
        first_step: int = 0,
    ) -> Generator[tuple[Batch, ...], None, None]:
        """The run's steps in order, each with its `gradient_accumulation_steps` batches, read ahead by a thread.

        Samples of a batch share one bucket. A step may take its batches from two epochs; the last one has fewer where
        `most_batches` end with it. With `in_order_first` the first epoch takes the samples in their own order, so that
        it need not know them all. A run that goes on begins at `first_step`, counted from 0, with the batches that it
        would have had; nothing is read for the steps before. Close it when the run ends before it does.
        """
        skipped = first_step * config.gradient_accumulation_steps
        shown = self._shown(config, in_order_first=in_order_first, skipped=skipped)
        if most_batches is not None:
            shown = islice(shown, max(0, most_batches - skipped))
        steps = (
            self._step(config, step, list(islice(shown, config.gradient_accumulation_steps)))
            for step in range(first_step, total_steps)
        )
        return ahead(steps, STEPS_AHEAD)

    def held_out_batches(self, config: TrainConfig) -> Iterator[Batch]:
        """Every sample at every one of HELD_OUT_SIGMAS, with noise that is the same in every run."""
        for index, sample in enumerate(self.samples):
            for number, view in enumerate(sample.views):
                items = [self._held_out_item(config, sample, view, (index, number), sigma) for sigma in HELD_OUT_SIGMAS]
                for start in range(0, len(items), config.batch_size):
                    yield stacked(items[start : start + config.batch_size])

    def _shown(self, config: TrainConfig, *, in_order_first: bool, skipped: int) -> Iterator[list[Exposure]]:
        """What the batches from number `skipped` on show. All epochs have equally many, so whole ones are left out."""
        seed, size = config.seed, config.batch_size
        if in_order_first:  # while it lasts, nobody knows how many batches an epoch has
            for batch in self._in_order(seed, size):
                if skipped:
                    skipped -= 1
                else:
                    yield batch
        epochs, batches = divmod(skipped, self.batches_per_epoch(size)) if skipped else (0, 0)
        later = (self._epoch(seed, epoch, size) for epoch in count(epochs + in_order_first))
        yield from islice(chain.from_iterable(later), batches, None)

    def _epoch(self, seed: int, epoch: int, batch_size: int) -> list[list[Exposure]]:
        """One epoch's batches: exposures shuffled within each bucket, then the batches among each other."""
        exposures = [exposure for index, sample in enumerate(self.samples) for exposure in _exposures(index, sample)]
        return self._shuffled(exposures, seeded(seed, "order", epoch), batch_size)

    def _in_order(self, seed: int, batch_size: int) -> Iterator[list[Exposure]]:
        """One epoch that shows samples as they come, a batch as soon as a bucket fills it, repeats after all others."""
        filling: dict[tuple[int, int], list[Exposure]] = defaultdict(list)
        repeats: list[Exposure] = []
        for index, sample in enumerate(self.samples):
            for exposure in _exposures(index, sample):
                if exposure.repeat:
                    repeats.append(exposure)
                    continue
                batch = filling[self._bucket(exposure)]
                batch.append(exposure)
                if len(batch) == batch_size:
                    yield filling.pop(self._bucket(exposure))
        rest = [exposure for _, batch in sorted(filling.items()) for exposure in batch]
        yield from self._shuffled(rest + repeats, seeded(seed, "order", 0), batch_size)

    def _shuffled(self, exposures: list[Exposure], draw: torch.Generator, batch_size: int) -> list[list[Exposure]]:
        buckets: dict[tuple[int, int], list[Exposure]] = defaultdict(list)
        for place in torch.randperm(len(exposures), generator=draw).tolist():
            buckets[self._bucket(exposures[place])].append(exposures[place])
        batches = [
            members[start : start + batch_size]
            for _, members in sorted(buckets.items())
            for start in range(0, len(members), batch_size)
        ]
        return [batches[place] for place in torch.randperm(len(batches), generator=draw).tolist()]

    def _bucket(self, exposure: Exposure) -> tuple[int, int]:
        view = self.samples[exposure.sample].views[exposure.view]
        return view.height_px, view.width_px

    def _step(self, config: TrainConfig, step: int, batches: list[list[Exposure]]) -> tuple[Batch, ...]:
        samples = sum(len(exposures) for exposures in batches)
        shares = iter(strata(config, samples, seeded(config.seed, "strata", step)))
        return tuple(
            stacked([self._training_item(config, micro_step, exposure, next(shares)) for exposure in exposures])
            for micro_step, exposures in enumerate(batches, start=step * config.gradient_accumulation_steps)
        )

    def _training_item(self, config: TrainConfig, micro_step: int, exposure: Exposure, share: Stratum) -> Item:
        sample = self.samples[exposure.sample]
        variants = sample.views[exposure.view].variants
        draw = seeded(config.seed, "sample", micro_step, exposure.sample, exposure.view, exposure.repeat)
        variant = variants[int(torch.randint(len(variants), (), generator=draw))]
        caption = sample.captions[int(torch.randint(len(sample.captions), (), generator=draw))]
        if float(torch.rand((), generator=draw)) < config.caption_dropout:
            caption = self.head.empty_caption
        posterior = self._load(variant.latents)
        mean_CHW = drawn_CHW = posterior[cache.LATENT_MEAN].float()
        if cache.LATENT_LOGVAR in posterior:
            spread_CHW = torch.exp(0.5 * posterior[cache.LATENT_LOGVAR].float())
            drawn_CHW = mean_CHW + spread_CHW * torch.randn(mean_CHW.shape, generator=draw)
        tokens = mean_CHW.shape[1] * mean_CHW.shape[2] // 4
        sigma = sigma_at(config, share.at(draw_even(draw)), tokens)
        noise_CHW = torch.randn(mean_CHW.shape, generator=draw)
        guidance = guidance_at(config, float(torch.rand((), generator=draw)))
        return self._item(config, variant, caption, drawn_CHW, noise_CHW, sigma, guidance)

    def _held_out_item(
        self, config: TrainConfig, sample: CachedSample, view: CachedView, number: tuple[int, int], sigma: float
    ) -> Item:
        variant, caption = view.variants[0], sample.captions[0]
        mean_CHW = self._load(variant.latents)[cache.LATENT_MEAN].float()
        noise_CHW = torch.randn(mean_CHW.shape, generator=seeded("held-out", *number, sigma))
        return self._item(config, variant, caption, mean_CHW, noise_CHW, sigma, guidance_at(config, 0.5))

    def _item(
        self,
        config: TrainConfig,
        variant: CachedVariant,
        caption: CachedCaption,
        latents_CHW: Tensor,
        noise_CHW: Tensor,
        sigma: float,
        guidance: float | None,
    ) -> Item:
        embedding = self._load(caption.embedding)
        mask = variant.mask if config.masked_loss else None
        return Item(
            clean_CHW=(latents_CHW - self.head.latent_shift) * self.head.latent_scale,
            noise_CHW=noise_CHW,
            sigma=sigma,
            t5_SD=embedding[cache.T5_EMBEDDING],
            clip_D=embedding[cache.CLIP_POOLED],
            mask_1HW=self._load(mask)[cache.LOSS_MASK].float() if mask else None,
            guidance=guidance,
        )


def _exposures(index: int, sample: CachedSample) -> Iterator[Exposure]:
    for repeat in range(sample.repeats):
        for view in range(len(sample.views)):
            yield Exposure(sample=index, view=view, repeat=repeat)


def stacked(items: list[Item]) -> Batch:
    """Items of one shape as a batch. Among masked ones, an item without a mask counts everywhere."""
    return Batch(
        clean_BCHW=torch.stack([item.clean_CHW for item in items]),
        noise_BCHW=torch.stack([item.noise_CHW for item in items]),
        sigma_B=torch.tensor([item.sigma for item in items]),
        t5_BSD=torch.stack([item.t5_SD for item in items]),
        clip_BD=torch.stack([item.clip_D for item in items]),
        mask_B1HW=_stacked_masks(items),
        guidance_B=_stacked_guidance(items),
    )


def guidance_at(config: TrainConfig, u: float) -> float | None:
    """The guidance scale that the model is told, with SAMPLED at a share `u` of its range; None for nothing."""
    match config.guidance:
        case GuidanceMode.BYPASS:
            return None
        case GuidanceMode.FIXED:
            return config.guidance_scale
        case GuidanceMode.SAMPLED:
            return config.guidance_scale + u * (config.guidance_scale_max - config.guidance_scale)


def _stacked_masks(items: list[Item]) -> Tensor | None:
    if all(item.mask_1HW is None for item in items):
        return None
    everything_1HW = torch.ones_like(items[0].clean_CHW[:1])
    return torch.stack([everything_1HW if item.mask_1HW is None else item.mask_1HW for item in items])


def _stacked_guidance(items: list[Item]) -> Tensor | None:
    scales = [item.guidance for item in items if item.guidance is not None]
    return torch.tensor(scales) if scales else None


def _load(store: ObjectStore, cached: CachedObject) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = safetensors.torch.load(store.get(cached.key, digest=cached.digest))
    return tensors
