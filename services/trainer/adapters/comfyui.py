"""Files that ComfyUI applies in full, for the types that have no form of kohya's scripts: DoRA, LoKr and LoHa.

ComfyUI divides DoRA's lengths by those of the rows of W, where peft and the paper divide by those of W + B A; the file
makes up for the difference. LoKr and LoHa come under the names of the LyCORIS library.

Source: `comfy/weight_adapter/base.py` and `comfy/lora.py` of ComfyUI 0.3.64; Forge has the same rules.

Legend: O outputs of a layer, I inputs, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from services.trainer.adapters.files import FILE_PREFIX, AdapterSnapshot, file_bytes, header, with_scale
from services.trainer.adapters.kohya import halves_swapped
from services.trainer.config import TrainConfig
from services.trainer.config.choices import AdapterType

LYCORIS_PREFIX = "lycoris_"
_LENGTHS = ".lora_magnitude_vector.weight"
# ComfyUI swaps the halves of what this layer's matrices add, as the reference model has them, but not of its lengths.
_SWAPPED = "norm_out.linear"


def comfyui_file(adapter: AdapterSnapshot, config: TrainConfig, provenance: Mapping[str, str]) -> bytes | None:
    """The file, the same bytes for the same adapter; None for a plain LoRA, which has kohya's form.

    A DoRA must have its `length_ratios`. Raises `NonFiniteAdapter` for a number that the file's precision cannot hold.
    """
    if adapter.adapter_type is AdapterType.LORA:
        return None
    tensors = _dora(adapter, config) if adapter.adapter_type is AdapterType.DORA else _lycoris(adapter, config)
    return file_bytes(tensors, config, header(adapter, config) | dict(provenance))


def _dora(adapter: AdapterSnapshot, config: TrainConfig) -> dict[str, Tensor]:
    """`transformer.<module>.lora_A.weight`, `.lora_B.weight`, and `.dora_scale` (O, 1): one length a row."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in with_scale(adapter, config).items():
        if name.endswith(_LENGTHS):
            module = name.removesuffix(_LENGTHS)
            lengths_O1 = (tensor * adapter.length_ratios[module])[:, None]
            lengths_O1 = halves_swapped(lengths_O1) if module == _SWAPPED else lengths_O1
            tensors[f"{FILE_PREFIX}{module}.dora_scale"] = lengths_O1
        else:
            tensors[FILE_PREFIX + name] = tensor
    return tensors


def _lycoris(adapter: AdapterSnapshot, config: TrainConfig) -> dict[str, Tensor]:
    """`lycoris_<module with underscores>.lokr_w1` and so on; `.alpha` is the rank, as the scale is in the matrices."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in with_scale(adapter, config).items():
        module, _, part = name.rpartition(".")
        layer = LYCORIS_PREFIX + module.replace(".", "_")
        tensors[f"{layer}.{part}"] = tensor
        tensors[f"{layer}.alpha"] = torch.tensor(float(adapter.ranks[module]))
    return tensors
