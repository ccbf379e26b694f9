"""What a job publishes: the adapter at one moment, and its safetensors file in the form of diffusers and peft.

Keys are `transformer.<module>.lora_A.weight` and so on. The scale is in the matrices, so that alpha is the rank: most
programs never read the header in which peft tells alpha. Forms for other programs are in `kohya.py` and `comfyui.py`.

Legend: O outputs of a layer, I inputs, R rank.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
from services.trainer.adapters.fit import module_of
from services.trainer.adapters.targets import exactly
from services.trainer.config import TrainConfig
from services.trainer.config.choices import AdapterType, FileDtype

FILE_PREFIX = "transformer."
ROWS = 1024  # of a weight that are measured at a time: 63 MB in float32 of FLUX.1-dev's widest
DTYPES = {FileDtype.FP32: torch.float32, FileDtype.BF16: torch.bfloat16, FileDtype.FP16: torch.float16}
EXACT = (".alpha", ".dora_scale", ".lora_magnitude_vector")  # tensors that keep float32 in any file
# The factor of a LoKr's or LoHa's change that takes up its scale; of the others it is B.
SCALED = {AdapterType.LOKR: ".lokr_w1", AdapterType.LOHA: ".hada_w1_a"}

# Factors whose product is a layer's change. LoKr may have a side in two factors.
FACTORS = (
    (".lora_B.weight", ".lora_A.weight"),
    (".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b"),
    (".lokr_w1", ".lokr_w2", ".lokr_w2_a", ".lokr_w2_b"),
)


@dataclass(frozen=True, kw_only=True)
class AdapterSnapshot:
    """The adapter at one moment, on the CPU and apart from the one that trains on.

    `tensors` in float32 by the names of `adapter_parameters`; `ranks` and `scales` (what a layer's change is multiplied
    by: alpha / rank or alpha / sqrt(rank)) by module. `length_ratios` are what `with_length_ratios` measures.
    """

    adapter_type: AdapterType
    tensors: Mapping[str, Tensor]
    ranks: Mapping[str, int]
    scales: Mapping[str, float]
    length_ratios: Mapping[str, Tensor] = field(default_factory=dict)


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
    return with_length_ratios(adapter_form(transformer, config).snapshot(tensors), transformer, config)


def with_length_ratios(adapter: AdapterSnapshot, transformer: nn.Module, config: TrainConfig) -> AdapterSnapshot:
    """The same adapter with |W| / |W + scale B A| of each row (O,) by module, which ComfyUI's form of DoRA needs.

    Measured in float32 on the base's own weights W, so its adapter must be attached: while it is not, another job may
    have the base. Takes about the time of merging the adapter; nothing for other types or without `kohya_file`.
    """
    if adapter.adapter_type is not AdapterType.DORA or not config.kohya_file:
        return adapter
    ratios = {
        name: _length_ratio(
            layer.get_base_layer().weight.detach(),
            adapter.tensors[f"{name}.lora_A.weight"],
            adapter.tensors[f"{name}.lora_B.weight"] * adapter.scales[name],
        )
        for name, layer in adapter_layers(transformer).items()
    }
    return replace(adapter, length_ratios=ratios)


def _length_ratio(weight_OI: Tensor, a_RI: Tensor, b_OR: Tensor) -> Tensor:
    a_RI, b_OR = a_RI.to(weight_OI.device), b_OR.to(weight_OI.device)
    ratios = []
    for stored_OI, b_rows_OR in zip(weight_OI.split(ROWS), b_OR.split(ROWS), strict=True):
        rows_OI = stored_OI.float()
        changed_O = torch.linalg.vector_norm(rows_OI + b_rows_OR @ a_RI, dim=1)
        ratios.append(torch.linalg.vector_norm(rows_OI, dim=1) / changed_O.clamp_min(torch.finfo().tiny))
    return torch.cat(ratios).cpu()


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
    tensors = {
        # Peft's own files name DoRA's lengths without `.weight`.
        FILE_PREFIX + name.replace("lora_magnitude_vector.weight", "lora_magnitude_vector"): tensor
        for name, tensor in with_scale(adapter, config).items()
    }
    description = _description(adapter, config)
    prefixed = {FILE_PREFIX + key: value for key, value in description.items()}
    metadata = {"lora_adapter_metadata": json.dumps(prefixed, sort_keys=True)}
    return file_bytes(tensors, config, metadata | header(adapter, config) | dict(provenance))


def with_scale(adapter: AdapterSnapshot, config: TrainConfig) -> dict[str, Tensor]:
    """The tensors of the same adapter with scale 1.

    DoRA's lengths stay: they are those of the rows of W + scale B A, and that sum is the same. FP16 has few bits below
    6e-5 and none above 65504, so that there the factors of a change are made alike in size, by powers of two.
    """
    suffix = SCALED.get(adapter.adapter_type, ".lora_B.weight")
    scaled = {
        name: tensor * adapter.scales[module_of(name)] if name.endswith(suffix) else tensor
        for name, tensor in adapter.tensors.items()
    }
    return _balanced(scaled) if config.file_dtype is FileDtype.FP16 else scaled


def _balanced(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same changes, each from factors whose largest numbers are within a factor of four of each other."""
    balanced = dict(tensors)
    for factors in FACTORS:
        for first in (name for name in tensors if name.endswith(factors[0])):
            names = [first.removesuffix(factors[0]) + factor for factor in factors]
            names = [name for name in names if name in tensors]
            sizes = [float(tensors[name].abs().max()) for name in names]
            if not all(sizes):
                continue
            logs = [math.log2(size) for size in sizes]
            moves = [round(sum(logs) / len(logs) - log) for log in logs]
            # What rounding left over goes to the first, so that the product stays as it is.
            moves[0] -= sum(moves)
            balanced |= {name: tensors[name] * 2.0**move for name, move in zip(names, moves, strict=True)}
    return balanced


def _description(adapter: AdapterSnapshot, config: TrainConfig) -> dict[str, Any]:
    """Fields of peft's configuration from which a reader builds the same layers: alpha is each one's rank."""
    ranks = adapter.ranks
    rank = Counter(ranks.values()).most_common(1)[0][0]
    others = {_anchored(name): other for name, other in ranks.items() if other != rank}
    alpha = float(rank)
    common = {
        "r": rank,
        "rank_pattern": others,
        "alpha_pattern": {pattern: float(other) for pattern, other in others.items()},
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


def header(adapter: AdapterSnapshot, config: TrainConfig) -> dict[str, str]:
    """What programs look for in the header of any LoRA file: kohya's `ss_*` and ModelSpec 1.0.0.

    The scale is in the matrices, so alpha is the rank. Which FLUX.1 it is for is known to provenance, which wins.
    """
    lycoris = adapter.adapter_type in SCALED
    arguments = {"algo": adapter.adapter_type.lower()} if lycoris else {}
    ranks = set(adapter.ranks.values())
    rank = str(ranks.pop()) if len(ranks) == 1 else "Dynamic"
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "flux-1/lora",
        "modelspec.implementation": "https://github.com/black-forest-labs/flux",
        "modelspec.title": "fluxsmith LoRA",
        "ss_base_model_version": "flux1",
        "ss_network_module": "lycoris.kohya" if lycoris else "networks.lora_flux",
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
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

    Alphas and DoRA's lengths stay in float32: they are small, bf16 has no 260, and would round a length by up to 0.4 %.
    Raises `DtypeTooSmall`.
    """
    dtype = DTYPES[config.file_dtype]
    cast = {
        name: (tensor if name.endswith(EXACT) else tensor.to(dtype)).contiguous() for name, tensor in tensors.items()
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
