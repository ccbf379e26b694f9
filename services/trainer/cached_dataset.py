"""From a dataset's manifest to the batches of a run: a pure function of (seed, step), whoever computes it and when.

Every draw has a generator of its own, seeded by what it is for: so an interrupted run goes on with the same noise, and
neither the number of workers nor the order of reading changes anything.

Legend: B batch, C latent channels (16), H/W latent height and width, S text tokens, D width.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import safetensors.torch
import torch
from torch import Tensor

from services.common import cache
from services.common.cache import CachedObject, CachedSample, DatasetManifest
from services.common.object_store import ObjectStore
from services.trainer.config import TrainConfig
from services.trainer.flow_matching import Batch, draw_sigma

OBJECTS_IN_MEMORY = 256  # of at most 4 MiB each with FLUX.1-dev's text embeddings
HELD_OUT_SIGMAS = tuple((2 * i + 1) / 16 for i in range(8))


@dataclass(frozen=True, kw_only=True)
class Item:
    """One sample as one step sees it, without a batch axis."""

    clean_CHW: Tensor
    noise_CHW: Tensor
    sigma: float
    t5_SD: Tensor
    clip_D: Tensor


@dataclass(frozen=True, kw_only=True)
class Widths:
    """What a base model and a dataset for it agree on: widths of T5 and CLIP embeddings, channels of latents."""

    t5: int
    clip: int
    latents: int


class CachedDataset:
    """The cached tensors of one dataset, read from the store when they are needed and checked against their digests."""

    def __init__(self, store: ObjectStore, manifest: DatasetManifest) -> None:
        self.manifest = manifest
        self._load = lru_cache(OBJECTS_IN_MEMORY)(lambda cached: _load(store, cached))

    def widths(self) -> Widths:
        """Widths of the cached tensors, read off the first sample."""
        caption = self._load(self.manifest.empty_caption.embedding)
        latents_CHW = self._load(self.manifest.samples[0].latents[0])[cache.LATENT_MEAN]
        t5_width, clip_width = caption[cache.T5_EMBEDDING].shape[-1], caption[cache.CLIP_POOLED].shape[-1]
        return Widths(t5=t5_width, clip=clip_width, latents=latents_CHW.shape[0])

    def steps_per_epoch(self, batch_size: int) -> int:
        """Batches that show every sample once."""
        return len(self._epoch(0, 0, batch_size))

    def batches(self, config: TrainConfig, total_steps: int) -> Iterator[Batch]:
        """The run's batches in order, one a step. Samples of a batch share one bucket."""
        per_epoch = self.steps_per_epoch(config.batch_size)
        for step in range(total_steps):
            if step % per_epoch == 0:
                epoch = self._epoch(config.seed, step // per_epoch, config.batch_size)
            yield stacked([self._training_item(config, step, index) for index in epoch[step % per_epoch]])

    def held_out_batches(self, batch_size: int) -> Iterator[Batch]:
        """Every sample at every one of HELD_OUT_SIGMAS, with noise that is the same in every run."""
        for index, sample in enumerate(self.manifest.samples):
            items = [self._held_out_item(sample, index, sigma) for sigma in HELD_OUT_SIGMAS]
            for start in range(0, len(items), batch_size):
                yield stacked(items[start : start + batch_size])

    def _epoch(self, seed: int, epoch: int, batch_size: int) -> list[list[int]]:
        """One epoch's batches of sample numbers: shuffled within each bucket, then the batches among each other."""
        draw = seeded(seed, "order", epoch)
        buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index in torch.randperm(len(self.manifest.samples), generator=draw).tolist():
            sample = self.manifest.samples[index]
            buckets[sample.height_px, sample.width_px].append(index)
        batches = [
            members[start : start + batch_size]
            for _, members in sorted(buckets.items())
            for start in range(0, len(members), batch_size)
        ]
        return [batches[place] for place in torch.randperm(len(batches), generator=draw).tolist()]

    def _training_item(self, config: TrainConfig, step: int, index: int) -> Item:
        sample = self.manifest.samples[index]
        draw = seeded(config.seed, "sample", step, index)
        variant = sample.latents[int(torch.randint(len(sample.latents), (), generator=draw))]
        caption = sample.captions[int(torch.randint(len(sample.captions), (), generator=draw))]
        if float(torch.rand((), generator=draw)) < config.caption_dropout:
            caption = self.manifest.empty_caption
        posterior = self._load(variant)
        mean_CHW = posterior[cache.LATENT_MEAN].float()
        spread_CHW = torch.exp(0.5 * posterior[cache.LATENT_LOGVAR].float())
        drawn_CHW = mean_CHW + spread_CHW * torch.randn(mean_CHW.shape, generator=draw)
        tokens = mean_CHW.shape[1] * mean_CHW.shape[2] // 4
        sigma = draw_sigma(config.sigma_sampling, tokens, draw)
        noise_CHW = torch.randn(mean_CHW.shape, generator=draw)
        return self._item(drawn_CHW, noise_CHW, sigma, caption.embedding)

    def _held_out_item(self, sample: CachedSample, index: int, sigma: float) -> Item:
        mean_CHW = self._load(sample.latents[0])[cache.LATENT_MEAN].float()
        noise_CHW = torch.randn(mean_CHW.shape, generator=seeded("held-out", index, sigma))
        return self._item(mean_CHW, noise_CHW, sigma, sample.captions[0].embedding)

    def _item(self, latents_CHW: Tensor, noise_CHW: Tensor, sigma: float, embedding: CachedObject) -> Item:
        caption = self._load(embedding)
        return Item(
            clean_CHW=(latents_CHW - self.manifest.latent_shift) * self.manifest.latent_scale,
            noise_CHW=noise_CHW,
            sigma=sigma,
            t5_SD=caption[cache.T5_EMBEDDING],
            clip_D=caption[cache.CLIP_POOLED],
        )


def stacked(items: list[Item]) -> Batch:
    """Items of one shape as a batch."""
    return Batch(
        clean_BCHW=torch.stack([item.clean_CHW for item in items]),
        noise_BCHW=torch.stack([item.noise_CHW for item in items]),
        sigma_B=torch.tensor([item.sigma for item in items]),
        t5_BSD=torch.stack([item.t5_SD for item in items]),
        clip_BD=torch.stack([item.clip_D for item in items]),
    )


def seeded(*purpose: object) -> torch.Generator:
    """A generator on the CPU whose seed is a hash of what it is for."""
    digest = hashlib.blake2b(repr(purpose).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def _load(store: ObjectStore, cached: CachedObject) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = safetensors.torch.load(store.get(cached.key, digest=cached.digest))
    return tensors
