"""Pictures of what an adapter has learnt so far: sampled on the resident transformer, decoded by the encoder.

Sampling is diffusers' own FluxPipeline without its VAE and text encoders, so that the published LoRA file gives the
same pictures there (docs/previews.md).

Legend: B batch (1), C latent channels (16), h/w latent height and width, S text tokens, D width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor

from services.common import cache
from services.common.errors import Unavailable
from services.common.object_store import ObjectStore
from services.trainer.config import TrainConfig
from services.trainer.encoder_link import EncoderAway, EncoderLink, ObjectReference
from services.trainer.jobs import Artifact, PreviewRendered
from services.trainer.packing import unpack

LATENT_SIDE_PX = 8


@dataclass(frozen=True, kw_only=True)
class Size:
    """Height and width of a picture in px, multiples of 16."""

    height_px: int
    width_px: int


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """A prompt's embeddings on the CPU, T5's padded and unmasked."""

    t5_BSD: Tensor
    clip_BD: Tensor


class Previews:
    """The previews of one job. Everything is written under `folder`, a key's beginning that ends in `/`.

    `scheduler_folder` holds the base model's scheduler_config.json. The size is the configuration's, else `size`. What
    waits for the encoder is done within `apart()`: the transformer is not needed meanwhile.
    """

    def __init__(
        self,
        store: ObjectStore,
        link: EncoderLink,
        config: TrainConfig,
        transformer: FluxTransformer2DModel,
        *,
        scheduler_folder: Path,
        folder: str,
        size: Size,
        apart: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self._store = store
        self._link = link
        self._config = config
        self._folder = f"{folder}previews/"
        self._apart = apart
        self._size = Size(
            height_px=config.preview_height_px or size.height_px, width_px=config.preview_width_px or size.width_px
        )
        self._pipeline = sampling_pipeline(transformer, scheduler_folder)
        self._embeddings: list[Embedding] = []
        self.unread: list[str] = []
        """What the text encoders do not read of the prompts, a sentence each, once these have been embedded."""

    def render(self, step: int, check: Callable[[], None]) -> list[PreviewRendered]:
        """One picture of every preview prompt, with the weights as they are now: dropout off is the caller's business.

        Raises `EncoderAway`, and whatever `check` raises, which is called before every step of sampling.
        """
        if not self._config.preview_prompts:
            return []
        with self._apart():
            self._link.require_up()  # before minutes are spent on what nobody could decode
            self._embeddings = self._embeddings or self._embed()
        names = [f"{step:06}-{number}" for number in range(len(self._config.preview_prompts))]
        with self._written(names, self._sample_all(check)) as uris, self._apart():
            images = self._link.decode(uris)
        return [
            PreviewRendered(
                step=step, prompt=prompt, seed=self._config.preview_seed, image=_artifact(f"previews/{name}.png", image)
            )
            for name, prompt, image in zip(names, self._config.preview_prompts, images, strict=True)
        ]

    def _embed(self) -> list[Embedding]:
        embeddings = []
        for reference in self._link.embed(self._config.preview_prompts, warn=self.unread.extend):
            key = self._store.key_of(reference.uri)
            if key is None:
                raise EncoderAway(
                    f"the encoder writes to another bucket ({reference.uri[:200]})",
                    "Give encoder and trainer the same FLUXSMITH_STORE_BUCKET.",
                )
            tensors = safetensors.torch.load(self._store.get(key, digest=reference.content_digest))
            embeddings.append(
                Embedding(t5_BSD=tensors[cache.T5_EMBEDDING][None], clip_BD=tensors[cache.CLIP_POOLED][None])
            )
        return embeddings

    def _sample_all(self, check: Callable[[], None]) -> Iterator[Tensor]:
        """Latents (16, h, w) of each prompt in turn, one at a time as the memory of training leaves room for one."""
        for embedding in self._embeddings:
            yield sample_latents(self._pipeline, embedding, self._config, self._size, check)

    @contextlib.contextmanager
    def _written(self, names: list[str], latents: Iterator[Tensor]) -> Iterator[list[str]]:
        """Addresses of latents in the store while they are decoded; pictures come to lie beside them with `.png`."""
        keys: list[str] = []
        try:
            for name, latents_Chw in zip(names, latents, strict=True):
                data = safetensors.torch.save({cache.LATENTS: latents_Chw})
                keys.append(self._store.put(f"{self._folder}{name}", data).key)
            yield [self._store.uri(key) for key in keys]
        finally:
            with contextlib.suppress(Unavailable):  # what is left goes with the job
                for key in keys:
                    self._store.delete(key)


def sampling_pipeline(transformer: FluxTransformer2DModel, scheduler_folder: Path) -> FluxPipeline:
    """FluxPipeline that samples latents from embeddings: it holds the transformer itself, neither copied nor moved."""
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(scheduler_folder),
        transformer=transformer,
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample_latents(
    pipeline: FluxPipeline, embedding: Embedding, config: TrainConfig, size: Size, check: Callable[[], None]
) -> Tensor:
    """Latents (16, h, w) in model space on the CPU, in the transformer's precision.

    The noise is drawn on the CPU in that precision, as FluxPipeline draws it from a CPU generator with this seed.
    """
    dtype, device = pipeline.transformer.dtype, pipeline.transformer.device

    def on_step_end(*_: Any) -> dict[str, Tensor]:
        check()
        return {}

    check()
    # The adapter is float32 on a base of bf16: multiplied in bf16, as in training.
    with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        tokens_BLP = pipeline(
            prompt_embeds=embedding.t5_BSD.to(device, dtype),
            pooled_prompt_embeds=embedding.clip_BD.to(device, dtype),
            height=size.height_px,
            width=size.width_px,
            num_inference_steps=config.preview_sampling_steps,
            guidance_scale=config.preview_guidance_scale,
            generator=torch.Generator("cpu").manual_seed(config.preview_seed),
            output_type="latent",
            callback_on_step_end=on_step_end,
        ).images
    return unpack(tokens_BLP, size.height_px // LATENT_SIDE_PX, size.width_px // LATENT_SIDE_PX)[0].cpu().contiguous()


def _artifact(name: str, image: ObjectReference) -> Artifact:
    return Artifact(artifact_name=name, uri=image.uri, size_bytes=image.size_bytes, content_digest=image.content_digest)
