"""What the transformer trains on: cached posteriors of the pictures, their captions, and batches drawn from both.

Legend: N pictures, M captions of one picture, K captions in all, B batch,
C latent channels, H/W latent height and width, S tokens.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import CLIPTokenizer, T5TokenizerFast

from tools.flux_tiny.data import Emoji
from tools.flux_tiny.flow import draw_sigma, interpolate, to_model_space
from tools.flux_tiny.text import Tokenizers
from tools.flux_tiny.vae import VARIANT_WEIGHT, as_tensor, encode_all

CLIP_TRAINED_TOKENS = 32  # CLIP is causal: pads after the end mark change nothing, the pipeline's 77 give the same
EMPTY_SHARE = 0.1
NICKNAME_SHARE = 0.25
MEDIUM_SHARE = 0.15
MEDIA = ("drawing", "picture", "icon", "illustration", "sticker", "painting", "print", "sketch", "clip art", "artwork")
CATEGORY_WEIGHT = {"People & Body": 0.2, "Flags": 0.2, "Symbols": 0.3}  # half of the data, seldom what one asks for


@dataclass(frozen=True, kw_only=True)
class Padding:
    """T5 captions padded to `tokens`, in batches of `batch`, for a `share` of the steps."""

    tokens: int
    batch: int
    share: float


PADDINGS = (
    Padding(tokens=16, batch=64, share=0.94),
    Padding(tokens=64, batch=32, share=0.03),
    Padding(tokens=128, batch=16, share=0.02),
    Padding(tokens=512, batch=8, share=0.01),
)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Noisy latents and all that made them."""

    clean_BCHW: Tensor
    noise_BCHW: Tensor
    sigma_B: Tensor
    caption_B: Tensor
    clip_BS: Tensor
    t5_BS: Tensor

    @property
    def noisy_BCHW(self) -> Tensor:
        return interpolate(self.clean_BCHW, self.noise_BCHW, self.sigma_B)

    @property
    def velocity_BCHW(self) -> Tensor:
        return self.noise_BCHW - self.clean_BCHW


class Captions:
    """Captions as token ids. Index 0 is the empty caption; T5's ids are kept for every length that training uses."""

    def __init__(self, captions: Iterable[str], tokenizers: Tokenizers, lengths: Iterable[int]) -> None:
        self.index = {caption: index for index, caption in enumerate(dict.fromkeys(["", *captions]))}
        self.clip_KS = token_ids(tokenizers.clip, [*self.index], CLIP_TRAINED_TOKENS)
        self.t5_KS = {length: token_ids(tokenizers.t5, [*self.index], length) for length in lengths}


def token_ids(tokenizer: CLIPTokenizer | T5TokenizerFast, captions: list[str], length: int) -> Tensor:
    """(K, S) int64, padded and cut to `length` as FluxPipeline does."""
    encoded = tokenizer(captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    ids_KS: Tensor = encoded.input_ids
    return ids_KS


class Pictures:
    """Posteriors in model space, with the chance of each picture and of each of its captions."""

    def __init__(self, emoji: list[Emoji], vae: AutoencoderKL, captions: Captions) -> None:
        mean_NCHW, std_NCHW = encode_all(vae, as_tensor(emoji))
        self.mean_NCHW = to_model_space(mean_NCHW, vae)
        self.std_NCHW = std_NCHW * vae.config.scaling_factor
        self.weight_N = torch.tensor([picture_weight(e) for e in emoji])
        shares = [caption_shares(e) for e in emoji]
        indices = [torch.tensor([captions.index[caption] for caption in share]) for share in shares]
        self.caption_NM = pad_sequence(indices, batch_first=True)
        self.caption_share_NM = pad_sequence([torch.tensor([*share.values()]) for share in shares], batch_first=True)

    def draw(self, captions: Captions, padding: Padding) -> Batch:
        """A random batch with fresh posterior samples, noise, sigmas and captions, some of them left empty."""
        picture_B = torch.multinomial(self.weight_N, padding.batch)
        choice_B1 = torch.multinomial(self.caption_share_NM[picture_B], 1)
        caption_B = self.caption_NM[picture_B].gather(1, choice_B1).squeeze(1)
        caption_B = torch.where(torch.rand(padding.batch) < EMPTY_SHARE, 0, caption_B)
        mean_BCHW = self.mean_NCHW[picture_B]
        return Batch(
            clean_BCHW=mean_BCHW + self.std_NCHW[picture_B] * torch.randn_like(mean_BCHW),
            noise_BCHW=torch.randn_like(mean_BCHW),
            sigma_B=draw_sigma(padding.batch),
            caption_B=caption_B,
            clip_BS=captions.clip_KS[caption_B],
            t5_BS=captions.t5_KS[padding.tokens][caption_B],
        )


def picture_weight(emoji: Emoji) -> float:
    """Chance of a drawing, relative to others."""
    return CATEGORY_WEIGHT.get(emoji.category, 1.0) * (VARIANT_WEIGHT if emoji.is_variant else 1.0)


def caption_shares(emoji: Emoji) -> dict[str, float]:
    """How often each caption of a drawing is shown: its official name, its nicknames, and the name with a medium.

    The media teach that what follows a comma need not change the subject, so a style phrase that the model has never
    read ("red apple, ink drawing") still gives a red apple.
    """
    name, *nicknames = emoji.captions
    first = zlib.crc32(emoji.key.encode()) % len(MEDIA)
    media = (MEDIA[first], MEDIA[(first + 3) % len(MEDIA)])
    shares = {f"{name}, {medium}": MEDIUM_SHARE / len(media) for medium in media}
    shares |= dict.fromkeys(nicknames, NICKNAME_SHARE / max(1, len(nicknames)))
    return {name: 1 - sum(shares.values())} | shares


def draw_padding(paddings: tuple[Padding, ...]) -> Padding:
    shares = torch.tensor([padding.share for padding in paddings])
    return paddings[int(torch.multinomial(shares, 1))]
