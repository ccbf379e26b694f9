"""What a job publishes: the adapter at one moment, and its safetensors file in the form of diffusers and peft.

Keys are `transformer.<module>.lora_A.weight` and so on; rank and scale stand in the header where
`FluxPipeline.load_lora_weights` reads them. The form of ComfyUI and Forge is in `kohya.py`.

Legend: O outputs of a layer, I inputs, R rank.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from services.trainer.adapters.adapter import (
    ADAPTER,
    NonFiniteAdapter,
    adapter_layers,
    adapter_parameters,
    pissa_factors,
    refuse_non_finite,
)
from services.trainer.adapters.targets import exactly
from services.trainer.config import TrainConfig
from services.trainer.config.choices import AdapterType, FileDtype

FILE_PREFIX = "transformer."
DTYPES = {FileDtype.FP32: torch.float32, FileDtype.BF16: torch.bfloat16, FileDtype.FP16: torch.float16}
# The factor of a layer's change that takes up its scale. The readers of LoKr and LoHa disagree about alpha; without
# any, all of them use the tensors as they are.
SCALED = {AdapterType.LOKR: ".lokr_w1", AdapterType.LOHA: ".hada_w1_a"}


@dataclass(frozen=True, kw_only=True)
class AdapterSnapshot:
    """The adapter at one moment, on the CPU and apart from the one that trains on.

    `tensors` in float32 by the names of `adapter_parameters`; `ranks` and `scales` (what a layer's change is multiplied
    by: alpha / rank or alpha / sqrt(rank)) by module.
    """

    adapter_type: AdapterType
    tensors: Mapping[str, Tensor]
    ranks: Mapping[str, int]
    scales: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class AdapterForm:
    """What of an attached adapter stays as it is while it trains, so that a copy can be made of its tensors alone.

    `ranks` and `scales` by module; `pissa_factors` what PiSSA began with, else empty.
    """

    adapter_type: AdapterType
    ranks: Mapping[str, int]
    scales: Mapping[str, float]
    pissa_factors: Mapping[str, Tensor]

    def snapshot(self, tensors: Mapping[str, Tensor]) -> AdapterSnapshot:
        """The adapter with these tensors, on the CPU; PiSSA's as a plain LoRA for the untouched base.

        Raises `NonFiniteAdapter`.
        """
        refuse_non_finite(tensors)
        ranks = self.ranks
        if self.pissa_factors:
            tensors = _difference(tensors, self.pissa_factors)
            ranks = {name: 2 * rank for name, rank in ranks.items()}
        return AdapterSnapshot(adapter_type=self.adapter_type, tensors=tensors, ranks=ranks, scales=self.scales)


def adapter_form(transformer: nn.Module, config: TrainConfig) -> AdapterForm:
    """The form of the attached adapter."""
    layers = adapter_layers(transformer)
    return AdapterForm(
        adapter_type=config.adapter_type,
        ranks={name: int(layer.r[ADAPTER]) for name, layer in layers.items()},
        scales={name: float(layer.scaling[ADAPTER]) for name, layer in layers.items()},
        pissa_factors=pissa_factors(transformer),
    )


def snapshot(transformer: nn.Module, config: TrainConfig) -> AdapterSnapshot:
    """Copy the attached adapter; that of PiSSA as a plain LoRA for the untouched base. Raises `NonFiniteAdapter`."""
    tensors = {
        name: parameter.detach().to("cpu", copy=True) for name, parameter in adapter_parameters(transformer).items()
    }
    return adapter_form(transformer, config).snapshot(tensors)


def _difference(tensors: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """B A - B0 A0 as one product of twice the rank.

    Written as (B - B0) A + B0 (A - A0): with B A and B0 A0 side by side, a file of 16 bits would round off two large
    products whose small difference is what was learnt.
    """
    factors: dict[str, Tensor] = {}
    for name_a in (name for name in tensors if name.endswith(".lora_A.weight")):
        name_b = name_a.replace(".lora_A.", ".lora_B.")
        a_RI, b_OR, start_RI, start_OR = tensors[name_a], tensors[name_b], start[name_a], start[name_b]
        factors[name_a] = torch.cat([a_RI, a_RI - start_RI])
        factors[name_b] = torch.cat([b_OR - start_OR, start_OR], dim=1)
    return factors


def peft_file(adapter: AdapterSnapshot, config: TrainConfig, provenance: Mapping[str, str]) -> bytes:
    """The file in the form of diffusers and peft, the same bytes for the same adapter.

    Loads with `FluxPipeline.load_lora_weights` (LoRA, DoRA), `transformer.load_lora_adapter` (LoKr) and peft (all).
    `provenance` goes into the header, over what is there by default. Raises `NonFiniteAdapter` for a number that the
    file's precision cannot hold.
    """
    baked = adapter.adapter_type in SCALED
    tensors = {
        # Peft's own files name DoRA's lengths without `.weight`.
        FILE_PREFIX + name.replace("lora_magnitude_vector.weight", "lora_magnitude_vector"): tensor
        for name, tensor in (_with_scale(adapter) if baked else adapter.tensors).items()
    }
    description = _description(adapter, config, baked=baked)
    prefixed = {FILE_PREFIX + key: value for key, value in description.items()}
    metadata = {"lora_adapter_metadata": json.dumps(prefixed, sort_keys=True)}
    return file_bytes(tensors, config, metadata | header(adapter, config) | dict(provenance))


def _with_scale(adapter: AdapterSnapshot) -> dict[str, Tensor]:
    suffix = SCALED[adapter.adapter_type]
    return {
        name: tensor * adapter.scales[name.removesuffix(suffix)] if name.endswith(suffix) else tensor
        for name, tensor in adapter.tensors.items()
    }


def _description(adapter: AdapterSnapshot, config: TrainConfig, *, baked: bool) -> dict[str, Any]:
    """Fields of peft's configuration from which a reader builds the same layers with the same scales.

    alpha is chosen so that alpha / rank is the scale, also for rsLoRA: a reader need not know of it.
    """
    ranks = adapter.ranks
    alphas = {name: float(rank) if baked else adapter.scales[name] * rank for name, rank in ranks.items()}
    rank, alpha = _most_common(ranks.values()), _most_common(alphas.values())
    common = {
        "r": rank,
        "rank_pattern": {_anchored(name): other for name, other in ranks.items() if other != rank},
        "alpha_pattern": {_anchored(name): other for name, other in alphas.items() if other != alpha},
        # By suffix, as peft takes a list, the model's own `proj_out` would hit those of the blocks.
        "target_modules": sorted(ranks) if all("." in name for name in ranks) else exactly(ranks),
    }
    match adapter.adapter_type:
        case AdapterType.LORA | AdapterType.DORA:
            dora = adapter.adapter_type is AdapterType.DORA
            return common | {"lora_alpha": alpha, "use_rslora": False, "use_dora": dora, "lora_bias": False}
        case AdapterType.LOKR:
            return common | {"alpha": alpha, "decompose_factor": config.lokr_factor or -1}
        case AdapterType.LOHA:
            return common | {"alpha": alpha}


def _anchored(name: str) -> str:
    return f"^{re.escape(name)}$"  # peft matches patterns by suffix


def _most_common(numbers: Any) -> Any:
    return Counter(numbers).most_common(1)[0][0]


def header(adapter: AdapterSnapshot, config: TrainConfig) -> dict[str, str]:
    """What programs look for in the header of any LoRA file: kohya's `ss_*` and ModelSpec 1.0.0.

    No date, so that the same adapter gives the same file; provenance may carry one.
    """
    lycoris = adapter.adapter_type in SCALED
    arguments = {"algo": adapter.adapter_type.lower()} if lycoris else {}
    ranks = set(adapter.ranks.values())
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "flux-1-dev/lora",
        "modelspec.implementation": "https://github.com/black-forest-labs/flux",
        "modelspec.title": "fluxsmith LoRA",
        "ss_base_model_version": "flux1",
        "ss_network_module": "lycoris.kohya" if lycoris else "networks.lora_flux",
        "ss_network_dim": str(ranks.pop()) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": str(config.alpha),
        "ss_network_args": json.dumps(arguments),
        "ss_network_dropout": str(config.adapter_dropout),
        "ss_learning_rate": str(config.learning_rate),
        "ss_optimizer": str(config.optimizer),
        "ss_lr_scheduler": str(config.learning_rate_schedule),
        "ss_seed": str(config.seed),
    }


class DtypeTooSmall(NonFiniteAdapter):
    """A number of the adapter is too large for the precision of its file."""


def file_bytes(tensors: Mapping[str, Tensor], config: TrainConfig, metadata: Mapping[str, str]) -> bytes:
    """Tensors in the precision that the job asks for, as a safetensors file with a header in order.

    Tensors with alphas keep theirs: they are small, and bf16 has no 260. Raises `DtypeTooSmall`.
    """
    dtype = DTYPES[config.file_dtype]
    cast = {
        name: (tensor if name.endswith(".alpha") else tensor.to(dtype)).contiguous() for name, tensor in tensors.items()
    }
    for name, tensor in cast.items():
        if not torch.isfinite(tensor).all():
            raise DtypeTooSmall(
                f"{name} has {float(tensors[name].abs().max()):.3g}, and {config.file_dtype} ends at "
                f"{torch.finfo(dtype).max:.3g}"
            )
    data = safetensors.torch.save(cast, dict(metadata))
    digest = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    return with_sorted_header(data, {"modelspec.hash_sha256": f"0x{digest}", "sshs_model_hash": digest})


def with_sorted_header(data: bytes, more: Mapping[str, str] | None = None) -> bytes:
    """The same safetensors file with its metadata in order: the library writes it in another order each time."""
    size = int.from_bytes(data[:8], "little")
    fields = json.loads(data[8 : 8 + size])
    fields["__metadata__"] = dict(sorted({**fields["__metadata__"], **(more or {})}.items()))
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants the tensors aligned
    return len(text).to_bytes(8, "little") + text + data[8 + size :]
