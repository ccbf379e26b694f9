"""Between latents as the VAE has them and tokens as the transformer reads them: 2 x 2 latent pixels make a token.

Legend: B batch, C latent channels (16), H/W latent height and width, L image tokens = H/2 * W/2, P = 4 C channels of a
token, S text tokens.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor


def pack(latents_BCHW: Tensor) -> Tensor:
    """(B, C, H, W) to (B, L, P)."""
    return rearrange(latents_BCHW, "b c (h i) (w j) -> b (h w) (c i j)", i=2, j=2)


def unpack(tokens_BLP: Tensor, height: int, width: int) -> Tensor:
    """(B, L, P) to (B, C, H, W), given the latent height and width."""
    return rearrange(tokens_BLP, "b (h w) (c i j) -> b c (h i) (w j)", h=height // 2, w=width // 2, i=2, j=2)


def image_ids(height: int, width: int, device: torch.device) -> Tensor:
    """Positions of the image tokens (L, 3): channel 0 is zero, 1 the row and 2 the column of the packed grid."""
    grid = (torch.arange(side // 2, device=device, dtype=torch.float32) for side in (height, width))
    rows, columns = torch.meshgrid(*grid, indexing="ij")
    ids_HW3 = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1)
    return rearrange(ids_HW3, "h w three -> (h w) three")


def text_ids(tokens: int, device: torch.device) -> Tensor:
    """Positions of the text tokens (S, 3): all zero, text has no place in the picture."""
    return torch.zeros(tokens, 3, device=device)
