"""Which kernels torch is kept to wherever something is trained."""

from __future__ import annotations

import torch
from diffusers import FluxTransformer2DModel

from services.trainer.transformer import prepared


def test_whatever_trains_sums_in_a_fixed_order_without_cudnns_attention(transformer: FluxTransformer2DModel) -> None:
    torch.use_deterministic_algorithms(False)
    torch.backends.cuda.enable_cudnn_sdp(True)
    prepared(transformer)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.backends.cuda.cudnn_sdp_enabled()
