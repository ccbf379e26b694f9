"""What the encoder's models compute, and which of them are in memory: VAE, CLIP and T5, each loaded when it is needed.

They compute what diffusers' FluxPipeline computes: `encode_prompt`, and the VAE's encode and decode.

Legend: B batch, C channels, H/W picture height and width in px, h/w latent height and width, S tokens, D width.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, T5EncoderModel

IMAGE_PARTS = ("vae",)
TEXT_PARTS = ("text_encoder", "text_encoder_2")


@dataclass(frozen=True, kw_only=True)
class Loaders:
    """How each part comes into memory."""

    vae: Callable[[], AutoencoderKL]
    clip: Callable[[], CLIPTextModel]
    t5: Callable[[], T5EncoderModel]


class CaptionTokenizer:
    """One text encoder's tokenizer and how many tokens that encoder reads. Any thread may use it."""

    def __init__(self, tokenizer: Any, tokens: int) -> None:
        self.tokenizer = tokenizer
        self.tokens = tokens
        self._lock = threading.Lock()  # truncation and padding are state of the tokenizer: one call at a time

    def ids(self, caption: str) -> Tensor:
        """Token ids (1, S), padded or cut to the length the encoder reads."""
        with self._lock:
            encoded = self.tokenizer(
                caption, padding="max_length", max_length=self.tokens, truncation=True, return_tensors="pt"
            )
        ids_BS: Tensor = encoded.input_ids
        return ids_BS

    def lost_words(self, caption: str) -> str:
        """The end of the caption past what the encoder reads; empty when it reads everything."""
        with self._lock:
            encoded = self.tokenizer(caption, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            read = self.tokens - self.tokenizer.num_special_tokens_to_add(pair=False)
        starts = [start for start, _ in encoded.offset_mapping[read:]]
        return caption[starts[0] :].strip() if starts else ""

    def unknown_words(self, caption: str) -> tuple[str, ...]:
        """Parts of what the encoder reads of the caption that it has no token for, and so reads as one and the same."""
        with self._lock:
            encoded = self.tokenizer(caption, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            read = self.tokens - self.tokenizer.num_special_tokens_to_add(pair=False)
            unknown = self.tokenizer.unk_token_id
        tokens = zip(encoded.input_ids[:read], encoded.offset_mapping[:read], strict=True)
        spans = [span for token, span in tokens if token == unknown]
        return tuple(dict.fromkeys(word for start, end in spans if (word := caption[start:end].strip())))


@dataclass(kw_only=True)
class EncoderModels:
    """The models and what the rest of the service must know of them, loaded or not.

    `encode_...`, `decode_latents`, `load` and `free` are for one thread only (`ModelThread`); the rest is for any.
    """

    loaders: Loaders
    clip_tokenizer: CaptionTokenizer
    t5_tokenizer: CaptionTokenizer
    device: torch.device
    dtype: torch.dtype
    latent_shift: float
    latent_scale: float
    default_resolution_px: int
    image_fingerprint: str
    """Of all that decides the VAE's output."""
    text_fingerprint: str
    """Of all that decides CLIP's and T5's output."""
    fingerprint: str
    """Of both."""
    one_at_a_time: bool = False
    """Free the VAE before CLIP and T5 are loaded, and the other way round."""
    _parts: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    @torch.inference_mode()
    def encode_image(self, pixels_CHW: np.ndarray[Any, np.dtype[np.float32]]) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the VAE's posterior, each (16, h, w) on the CPU; shift and scale not applied."""
        self._make_room_for(IMAGE_PARTS)
        pixels_BCHW = torch.from_numpy(np.ascontiguousarray(pixels_CHW))[None].to(self.device, self.dtype)
        # The order in memory that the pipeline's own pictures have; another one changes the last bits.
        pixels_BCHW = pixels_BCHW.contiguous(memory_format=torch.channels_last)
        posterior = self._part("vae").encode(pixels_BCHW).latent_dist
        return posterior.mean[0].cpu(), posterior.logvar[0].cpu()

    @torch.inference_mode()
    def encode_caption(self, caption: str) -> tuple[Tensor, Tensor]:
        """T5's output (S, D), padded and unmasked, and CLIP's pooled output (D,), both on the CPU.

        One caption at a time: LLM.int8 looks for outlier columns over its whole input, so in a batch the other
        captions would have a say in this one's embedding, and in what is cached for it.
        """
        self._make_room_for(TEXT_PARTS)
        t5_BSD = self._part("text_encoder_2")(self.t5_tokenizer.ids(caption).to(self.device))[0]
        clip_BD = self._part("text_encoder")(self.clip_tokenizer.ids(caption).to(self.device)).pooler_output
        return t5_BSD[0].to(self.dtype).cpu(), clip_BD[0].to(self.dtype).cpu()

    @torch.inference_mode()
    def decode_latents(self, latents_Chw: Tensor) -> Image.Image:
        """The picture of latents (16, h, w) in model space, (VAE output - shift) * scale."""
        self._make_room_for(IMAGE_PARTS)
        latents_Bchw = latents_Chw[None].to(self.device, self.dtype) / self.latent_scale + self.latent_shift
        picture_BCHW = self._part("vae").decode(latents_Bchw).sample
        picture: Image.Image = VaeImageProcessor().postprocess(picture_BCHW, output_type="pil")[0]
        return picture

    def lost_words(self, caption: str) -> dict[str, str]:
        """By text encoder, the end of the caption that it does not read; those that read everything are left out."""
        lost = {"CLIP": self.clip_tokenizer.lost_words(caption), "T5": self.t5_tokenizer.lost_words(caption)}
        return {encoder: words for encoder, words in lost.items() if words}

    def unknown_words(self, caption: str) -> dict[str, tuple[str, ...]]:
        """By text encoder, the parts of the caption that it has no token for; those that know all are left out."""
        unknown = {"CLIP": self.clip_tokenizer.unknown_words(caption), "T5": self.t5_tokenizer.unknown_words(caption)}
        return {encoder: words for encoder, words in unknown.items() if words}

    @property
    def t5_tokens(self) -> int:
        """Length of T5's output, padding included."""
        return self.t5_tokenizer.tokens

    def loaded(self) -> tuple[str, ...]:
        """Parts that are in memory now, by their folder's name."""
        return tuple(part for part in (*IMAGE_PARTS, *TEXT_PARTS) if part in self._parts)

    def memory_peak_bytes(self) -> int:
        """Most that tensors held on the GPU at once; on a CPU, most memory that this process held."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        status = Path("/proc/self/status").read_text()  # getrusage's ru_maxrss would count the parent's before exec
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])

    def load(self, *parts: str) -> None:
        """Bring parts into memory, such as `vae`, `text_encoder` or `text_encoder_2`."""
        for part in parts:
            self._part(part)

    def free(self, *parts: str) -> None:
        """Drop parts, and give their memory back to the device and to the system."""
        for part in parts:
            self._parts.pop(part, None)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        give_back_free_memory()

    def _make_room_for(self, parts: tuple[str, ...]) -> None:
        if self.one_at_a_time and (others := [part for part in self.loaded() if part not in parts]):
            self.free(*others)

    def _part(self, part: str) -> Any:
        if part not in self._parts:
            load = {"vae": self.loaders.vae, "text_encoder": self.loaders.clip, "text_encoder_2": self.loaders.t5}[part]
            self._parts[part] = load()
        return self._parts[part]


def give_back_free_memory() -> None:
    """Return to the system what malloc holds and does not use, of all threads; without glibc, do nothing."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
