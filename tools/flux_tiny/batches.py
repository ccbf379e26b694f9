"""What the transformer trains on: posteriors of many scenes, encoded once, their captions, and batches of both.

Legend: N pictures, K wordings of a caption, B batch, C latent channels, H/W latent height and width, S tokens.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTokenizer, T5TokenizerFast

from tools.flux_tiny.flow import draw_sigma, interpolate, to_model_space
from tools.flux_tiny.scenes import Album
from tools.flux_tiny.text import Tokenizers

CLIP_TRAINED_TOKENS = 32  # CLIP is causal: pads after the end mark change nothing, the pipeline's 77 give the same
T5_TRAINED_TOKENS = 24
EMPTY_SHARE = 0.1
ALIKE = 8  # scenes of one set and style that are drawn at once


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A size in px, and how many different pictures of it there are."""

    height: int
    width: int
    pictures: int


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of step: a frame, T5's padded length, the batch and its `share` of the steps."""

    frame: Frame
    tokens: int
    batch: int
    share: float


SQUARE = Frame(height=64, width=64, pictures=40_000)
FRAMES = (
    SQUARE,
    Frame(height=96, width=96, pictures=2_000),
    Frame(height=128, width=128, pictures=3_000),
    Frame(height=64, width=96, pictures=1_500),
    Frame(height=96, width=64, pictures=1_500),
)
USUAL = Kind(frame=SQUARE, tokens=T5_TRAINED_TOKENS, batch=64, share=0.86)
KINDS = (
    USUAL,
    Kind(frame=SQUARE, tokens=64, batch=32, share=0.03),
    Kind(frame=SQUARE, tokens=128, batch=16, share=0.02),
    Kind(frame=SQUARE, tokens=512, batch=8, share=0.01),
    Kind(frame=FRAMES[1], tokens=T5_TRAINED_TOKENS, batch=32, share=0.02),
    Kind(frame=FRAMES[2], tokens=T5_TRAINED_TOKENS, batch=24, share=0.03),
    Kind(frame=FRAMES[3], tokens=T5_TRAINED_TOKENS, batch=32, share=0.015),
    Kind(frame=FRAMES[4], tokens=T5_TRAINED_TOKENS, batch=32, share=0.015),
)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Noisy latents and all that made them. `clip_BS` and `t5_BS` are token ids, int64."""

    clean_BCHW: Tensor
    noise_BCHW: Tensor
    sigma_B: Tensor
    clip_BS: Tensor
    t5_BS: Tensor

    @property
    def noisy_BCHW(self) -> Tensor:
        return interpolate(self.clean_BCHW, self.noise_BCHW, self.sigma_B)

    @property
    def velocity_BCHW(self) -> Tensor:
        return self.noise_BCHW - self.clean_BCHW


def token_ids(tokenizer: CLIPTokenizer | T5TokenizerFast, captions: list[str], length: int) -> Tensor:
    """(N, S) int64, padded and cut to `length` as FluxPipeline does."""
    encoded = tokenizer(captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    ids_NS: Tensor = encoded.input_ids
    return ids_NS


class Latents:
    """Posteriors of one frame in model space, (N, C, H, W) float16, with the token ids of their captions."""

    def __init__(self, parts: dict[str, Tensor]) -> None:
        self.mean_NCHW, self.std_NCHW = parts["mean"], parts["std"]
        self.clip_NKS, self.t5_NKS = parts["clip"], parts["t5"]

    def draw(self, kind: Kind, empty: Tensor) -> Batch:
        """A random batch with fresh posterior samples, noise, sigmas and wordings; some captions are left empty.

        `empty` is the empty caption as `empty_ids` gives it.
        """
        picture_B = torch.randint(len(self.mean_NCHW), (kind.batch,))
        wording_B = torch.randint(self.t5_NKS.shape[1], (kind.batch,))
        mean_BCHW = self.mean_NCHW[picture_B].float()
        clip_BS, t5_BS = self.clip_NKS[picture_B, wording_B].long(), self.t5_NKS[picture_B, wording_B].long()
        left_out_B1 = torch.rand(kind.batch, 1) < EMPTY_SHARE
        clip_BS = torch.where(left_out_B1, empty[:CLIP_TRAINED_TOKENS], clip_BS)
        t5_BS = torch.where(left_out_B1, empty[CLIP_TRAINED_TOKENS:], t5_BS)
        return Batch(
            clean_BCHW=mean_BCHW + self.std_NCHW[picture_B].float() * torch.randn_like(mean_BCHW),
            noise_BCHW=torch.randn_like(mean_BCHW),
            sigma_B=draw_sigma(kind.batch),
            clip_BS=clip_BS,
            t5_BS=F.pad(t5_BS, (0, kind.tokens - t5_BS.shape[1])),  # T5 pads with id 0
        )


def empty_ids(tokenizers: Tokenizers) -> Tensor:
    """CLIP's and T5's ids of the empty caption, one after the other."""
    clip_S = token_ids(tokenizers.clip, [""], CLIP_TRAINED_TOKENS)[0]
    return torch.cat([clip_S, token_ids(tokenizers.t5, [""], T5_TRAINED_TOKENS)[0]])


def encode_frame(album: Album, vae: AutoencoderKL, tokenizers: Tokenizers, frame: Frame, path: Path) -> Latents:
    """Draw and encode a frame's scenes, or read them from `path` where that was done before."""
    if not path.exists():
        random.seed(path.stem)
        torch.manual_seed(random.getrandbits(31))
        means: list[Tensor] = []
        deviations: list[Tensor] = []
        wordings: list[str] = []
        for _ in range(frame.pictures // ALIKE):
            scenes = album.scenes(ALIKE, frame.height, frame.width)
            picture_BCHW = torch.stack([scene.picture for scene in scenes]) * 2 - 1
            with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
                posterior = vae.encode(picture_BCHW).latent_dist
            means.append(to_model_space(posterior.mean.float(), vae).half())
            deviations.append((posterior.std.float() * vae.config.scaling_factor).half())
            wordings += [caption for scene in scenes for caption in scene.captions]
        count = len(means) * ALIKE
        parts = {"mean": torch.cat(means), "std": torch.cat(deviations)}
        parts["clip"] = token_ids(tokenizers.clip, wordings, CLIP_TRAINED_TOKENS).view(count, -1, CLIP_TRAINED_TOKENS)
        parts["t5"] = token_ids(tokenizers.t5, wordings, T5_TRAINED_TOKENS).view(count, -1, T5_TRAINED_TOKENS)
        unfinished = path.with_suffix(".part")
        torch.save(
            {name: part.short() if part.dtype == torch.int64 else part for name, part in parts.items()}, unfinished
        )
        unfinished.replace(path)
    return Latents(torch.load(path, weights_only=True))


def draw_kind() -> Kind:
    return random.choices(KINDS, [kind.share for kind in KINDS])[0]
