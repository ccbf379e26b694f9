"""What the encoder is measured against: the loop over FluxPipeline's own encoding that one writes without it.

Legend: B batch, C channels, h/w latent height and width, S tokens, D width.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator

import safetensors.torch
import torch
from diffusers import FluxPipeline
from PIL import Image, ImageOps
from torch import Tensor

from benchmarks.pictures import CaptionedFile
from services.common import cache
from services.common.object_store import ObjectStore
from services.encoder.images.buckets import RESIZE_KERNEL, choose_bucket
from services.encoder.inference import EncoderModels


def pipeline_of(models: EncoderModels) -> FluxPipeline:
    """FluxPipeline over the very models and tokenizers that the encoder runs."""
    return FluxPipeline(
        scheduler=None,
        vae=models.loaders.vae(),
        text_encoder=models.loaders.clip(),
        tokenizer=models.clip_tokenizer.tokenizer,
        text_encoder_2=models.loaders.t5(),
        tokenizer_2=models.t5_tokenizer.tokenizer,
        transformer=None,
    )


@torch.inference_mode()
def plain_loop(
    pipeline: FluxPipeline, files: Iterable[CaptionedFile], *, resolution_px: int, t5_tokens: int
) -> Iterator[dict[str, Tensor]]:
    """Every captioned file through the pipeline's VAE and `encode_prompt`, in turn, its tensors on the CPU."""
    for file in files:
        image = Image.open(file.path).convert("RGB")
        size = choose_bucket(image.width, image.height, resolution_px=resolution_px)
        cropped = ImageOps.fit(image, (size.width_px, size.height_px), RESIZE_KERNEL)
        pixels_BCHW = pipeline.image_processor.preprocess(cropped).to(pipeline.device, pipeline.vae.dtype)
        posterior = pipeline.vae.encode(pixels_BCHW).latent_dist
        latents = {cache.LATENT_MEAN: posterior.mean[0].cpu(), cache.LATENT_LOGVAR: posterior.logvar[0].cpu()}
        yield latents | embedded(pipeline, file.caption, t5_tokens=t5_tokens)


@torch.inference_mode()
def embedded(pipeline: FluxPipeline, caption: str, *, t5_tokens: int) -> dict[str, Tensor]:
    """A caption's embeddings by `encode_prompt`, on the CPU."""
    t5_BSD, clip_BD, _ = pipeline.encode_prompt(caption, None, max_sequence_length=t5_tokens)
    return {cache.T5_EMBEDDING: t5_BSD[0].cpu(), cache.CLIP_POOLED: clip_BD[0].cpu()}


def stored(samples: Iterable[dict[str, Tensor]], store: ObjectStore) -> Iterator[dict[str, Tensor]]:
    """Write each sample's tensors to the store in the same two files as the encoder's, one after the other."""
    prefix = f"plain-{uuid.uuid4().hex}/"
    for number, tensors in enumerate(samples):
        for name, parts in (
            ("latents", (cache.LATENT_MEAN, cache.LATENT_LOGVAR)),
            ("caption", (cache.T5_EMBEDDING, cache.CLIP_POOLED)),
        ):
            data = safetensors.torch.save({part: tensors[part].contiguous() for part in parts})
            store.put(f"{prefix}{number:06}.{name}.safetensors", data)
        yield tensors
