"""The models of the encoder: VAE, CLIP and T5, loaded from a FLUX.1 folder and run on one thread of their own.

What they compute is what diffusers' FluxPipeline computes: `encode_prompt`, and the VAE's encode and decode.

Legend: B batch, C channels, H/W picture height and width in px, h/w latent height and width, S tokens, D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import bitsandbytes
import diffusers
import numpy as np
import tokenizers
import torch
import transformers
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, BitsAndBytesConfig, CLIPTextModel, CLIPTokenizer, T5EncoderModel

from services.common.base_model import base_folder, pick_device, pick_dtype
from services.common.cache import FORMAT_VERSION
from services.common.settings import ServiceSettings
from services.encoder.settings import EncoderSettings

T = TypeVar("T")
CLIP_TOKENS = 77
PARTS = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")


@dataclass(frozen=True, kw_only=True)
class EncoderModels:
    """The loaded models and what the rest of the service must know of them. Use them from one thread only."""

    vae: AutoencoderKL
    clip: CLIPTextModel
    clip_tokenizer: CLIPTokenizer
    t5: T5EncoderModel
    t5_tokenizer: Any
    t5_tokens: int
    default_resolution_px: int
    device: torch.device
    dtype: torch.dtype
    fingerprint: str

    @torch.inference_mode()
    def encode_image(self, pixels_CHW: np.ndarray[Any, np.dtype[np.float32]]) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the VAE's posterior, each (16, h, w) on the CPU; shift and scale not applied."""
        pixels_BCHW = torch.from_numpy(pixels_CHW)[None].to(self.device, self.dtype)
        posterior = self.vae.encode(pixels_BCHW).latent_dist
        return posterior.mean[0].cpu(), posterior.logvar[0].cpu()

    @torch.inference_mode()
    def encode_caption(self, caption: str) -> tuple[Tensor, Tensor]:
        """T5's output (S, D), padded and unmasked, and CLIP's pooled output (D,), both on the CPU."""
        return self._t5_output(caption).cpu(), self._clip_pooled(caption).cpu()

    @torch.inference_mode()
    def decode_latents(self, latents_Chw: Tensor) -> Image.Image:
        """The picture of latents (16, h, w) in model space, (VAE output - shift) * scale."""
        config = self.vae.config
        latents_Bchw = latents_Chw[None].to(self.device, self.dtype) / config.scaling_factor + config.shift_factor
        picture_BCHW = self.vae.decode(latents_Bchw).sample
        picture: Image.Image = VaeImageProcessor().postprocess(picture_BCHW, output_type="pil")[0]
        return picture

    def tokens_cut_off(self, caption: str) -> dict[str, int]:
        """Tokens past the end of what each text encoder reads, by its name; empty when all fit."""
        counts = {
            "CLIP": (len(self.clip_tokenizer(caption).input_ids), CLIP_TOKENS),
            "T5": (len(self.t5_tokenizer(caption).input_ids), self.t5_tokens),
        }
        return {name: count - limit for name, (count, limit) in counts.items() if count > limit}

    def _t5_output(self, caption: str) -> Tensor:
        ids_BS = self._ids(self.t5_tokenizer, caption, self.t5_tokens)
        output_SD: Tensor = self.t5(ids_BS, output_hidden_states=False)[0][0]
        return output_SD.to(self.dtype)

    def _clip_pooled(self, caption: str) -> Tensor:
        ids_BS = self._ids(self.clip_tokenizer, caption, CLIP_TOKENS)
        pooled_D: Tensor = self.clip(ids_BS, output_hidden_states=False).pooler_output[0]
        return pooled_D.to(self.dtype)

    def _ids(self, tokenizer: Any, caption: str, tokens: int) -> Tensor:
        encoded = tokenizer(caption, padding="max_length", max_length=tokens, truncation=True, return_tensors="pt")
        ids_BS: Tensor = encoded.input_ids
        return ids_BS.to(self.device)


class ModelThread:
    """The one thread that runs models, so that the event loop and the uploads never wait for one."""

    def __init__(self, models: EncoderModels) -> None:
        self.models = models
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="models")

    def submit(self, work: Callable[[EncoderModels], T]) -> Future[T]:
        """Queue `work(models)`; callers take turns in the order they ask."""
        return self._executor.submit(work, self.models)

    def run(self, work: Callable[[EncoderModels], T]) -> T:
        """Wait for `work(models)`. For threads, not for the event loop."""
        return self.submit(work).result()

    def close(self) -> None:
        """Finish what runs, drop what waits."""
        self._executor.shutdown(cancel_futures=True)


def load_models(service: ServiceSettings, encoder: EncoderSettings) -> EncoderModels:
    """Load VAE, CLIP and T5, and nothing of the transformer. Raises `BaseModelError` when a part is missing."""
    folder = base_folder(service, PARTS)
    device = pick_device(service.device)
    dtype = pick_dtype(service.dtype, device)
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", dtype=dtype).to(device).eval()
    clip = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=dtype).to(device).eval()
    t5 = _load_t5(folder, encoder.t5_precision, device, dtype)
    t5_tokenizer = AutoTokenizer.from_pretrained(folder, subfolder="tokenizer_2")
    return EncoderModels(
        vae=vae,
        clip=clip,
        clip_tokenizer=CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"),
        t5=t5,
        t5_tokenizer=t5_tokenizer,
        t5_tokens=min(t5_tokenizer.model_max_length, 512),
        default_resolution_px=vae.config.sample_size,
        device=device,
        dtype=dtype,
        fingerprint=_fingerprint(folder, encoder.t5_precision, dtype),
    )


def _load_t5(folder: Path, precision: str, device: torch.device, dtype: torch.dtype) -> T5EncoderModel:
    if precision == "int8":
        quantization = BitsAndBytesConfig(load_in_8bit=True)
        return T5EncoderModel.from_pretrained(
            folder,
            subfolder="text_encoder_2",
            quantization_config=quantization,
            device_map={"": device},
            dtype=torch.float16 if device.type == "cuda" else dtype,
        ).eval()
    t5_dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    return T5EncoderModel.from_pretrained(folder, subfolder="text_encoder_2", dtype=t5_dtype).to(device).eval()


def _fingerprint(folder: Path, t5_precision: str, dtype: torch.dtype) -> str:
    """sha256 over every file of the encoders and whatever else decides their output, in hexadecimal."""
    libraries = (torch, diffusers, transformers, tokenizers, bitsandbytes)
    versions = " ".join(f"{library.__name__} {library.__version__}" for library in libraries)
    digest = hashlib.sha256(f"format {FORMAT_VERSION} t5 {t5_precision} dtype {dtype} {versions}".encode())
    for part in PARTS:
        for path in sorted((folder / part).iterdir()):
            if path.is_file():
                with path.open("rb") as file:
                    digest.update(f"{part}/{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
