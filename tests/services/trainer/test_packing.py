"""Packing is diffusers' packing, for pictures of any shape."""

from __future__ import annotations

import pytest
import torch
from diffusers import FluxPipeline

from services.trainer.packing import image_ids, pack, text_ids, unpack

SHAPES = [(8, 8), (4, 10), (12, 2)]
CPU = torch.device("cpu")


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_pack_is_that_of_diffusers(height: int, width: int) -> None:
    latents_BCHW = torch.randn(2, 16, height, width)
    theirs = FluxPipeline._pack_latents(latents_BCHW, 2, 16, height, width)
    assert torch.equal(pack(latents_BCHW), theirs)


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_unpack_is_that_of_diffusers(height: int, width: int) -> None:
    tokens_BLP = torch.randn(2, height * width // 4, 64)
    theirs = FluxPipeline._unpack_latents(tokens_BLP, height * 8, width * 8, vae_scale_factor=8)
    assert torch.equal(unpack(tokens_BLP, height, width), theirs)


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_unpack_undoes_pack(height: int, width: int) -> None:
    latents_BCHW = torch.randn(3, 16, height, width)
    assert torch.equal(unpack(pack(latents_BCHW), height, width), latents_BCHW)


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_image_ids_are_those_of_diffusers(height: int, width: int) -> None:
    theirs = FluxPipeline._prepare_latent_image_ids(1, height // 2, width // 2, CPU, torch.float32)
    assert torch.equal(image_ids(height, width, CPU), theirs)


def test_a_token_is_a_square_of_latent_pixels_and_its_id_says_which() -> None:
    latents_BCHW = torch.arange(4 * 6.0).reshape(1, 1, 4, 6)
    token, place = pack(latents_BCHW)[0, 4].tolist(), image_ids(4, 6, CPU)[4].tolist()
    assert place == [0, 1, 1]
    assert token == latents_BCHW[0, 0, 2:4, 2:4].flatten().tolist()


def test_text_has_no_place_in_the_picture() -> None:
    assert torch.equal(text_ids(5, CPU), torch.zeros(5, 3))
