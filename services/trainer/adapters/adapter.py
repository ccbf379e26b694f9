"""The adapter: attached to the resident base for one job, and taken off without a trace.

LoRA and its kin through peft's layers. Their files are written in `files.py` and `kohya.py`.

Legend: O outputs of a layer, I inputs, R rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from services.common.errors import FieldViolation, InvalidInput
from services.trainer.adapters.targets import exactly, linear_names, target_ranks
from services.trainer.config import TrainConfig
from services.trainer.config.choices import AdapterType, InitWeights

ADAPTER = "default"
PISSA = "pissa_niter_4"
"""Randomised SVD with four power iterations: a few per cent of the time of the whole one."""


@contextmanager
def attached(
    transformer: nn.Module, config: TrainConfig, pissa_start: Mapping[str, Tensor] | None = None
) -> Iterator[None]:
    """Attach a fresh float32 adapter, initialised from the job's seed; afterwards the base is what it was, to the bit.

    The model's output is at first that of the base; with PiSSA in bf16 but for rounding: what the base keeps is rounded
    and the file, made for the base as it is, differs from what was trained by that. A PiSSA job that goes on from a
    checkpoint hands back what `pissa_factors` said when it began: the base gives up exactly that again. Raises
    `InvalidInput` for targets that match nothing and for PiSSA with a rank above what a layer has.
    """
    ranks = target_ranks(linear_names(transformer), config)
    if config.init_weights is InitWeights.PISSA:
        _refuse_rank_above_layer(transformer, ranks)
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(config.seed)
            inject_adapter_in_model(peft_config(config, ranks), transformer, ADAPTER)
            for parameter in adapter_parameters(transformer).values():
                parameter.data = parameter.data.float()
            if config.init_weights is InitWeights.PISSA:
                _start_from_base(transformer, pissa_start or {})
        if config.adapter_type is AdapterType.DORA:
            _measure_lengths(transformer)
        else:
            for layer in adapter_layers(transformer).values():
                # Autocast casts back what peft would cast to float32: the same bits for memory that the backward needs.
                layer.cast_input_dtype_enabled = False
        yield
    finally:
        detach(transformer)


def peft_config(config: TrainConfig, ranks: Mapping[str, int]) -> LoraConfig | LoKrConfig | LoHaConfig:
    """Peft's description of the adapter that a job asks for, with the rank of each module."""
    others = sorted(set(ranks.values()) - {config.rank})
    common: dict[str, Any] = {
        "r": config.rank,
        "target_modules": exactly(ranks),
        # One expression a rank: peft tries them all on each module.
        "rank_pattern": {exactly(name for name in ranks if ranks[name] == rank): rank for rank in others},
    }
    match config.adapter_type:
        case AdapterType.LORA | AdapterType.DORA:
            return LoraConfig(
                **common,
                lora_alpha=config.alpha,
                use_rslora=config.use_rslora,
                use_dora=config.adapter_type is AdapterType.DORA,
                lora_dropout=config.adapter_dropout,
                # B is zero either way. PiSSA follows when the matrices are in float32.
                init_lora_weights="gaussian" if config.init_weights is InitWeights.GAUSSIAN else True,
            )
        case AdapterType.LOKR:
            return LoKrConfig(**common, alpha=config.alpha, decompose_factor=config.lokr_factor or -1)
        case AdapterType.LOHA:
            return LoHaConfig(**common, alpha=config.alpha)


def detach(transformer: nn.Module) -> None:
    """Put the base's own layers and weights back, also when an adapter was attached only in part."""
    for name, layer in adapter_layers(transformer).items():
        base = layer.get_base_layer()
        if start := getattr(layer, "pissa_start", None):
            base.weight.data = start.weight_OI.to(base.weight.device)
        parent, _, own_name = name.rpartition(".")
        setattr(transformer.get_submodule(parent), own_name, base)
    if hasattr(transformer, "peft_config"):
        del transformer.peft_config


def adapter_layers(transformer: nn.Module) -> dict[str, Any]:
    """Peft's layers, by the name of the module that each adapts."""
    return {name: module for name, module in transformer.named_modules() if isinstance(module, BaseTunerLayer)}


def adapter_parameters(transformer: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters by peft's names without the adapter's: `<module>.lora_A.weight`, `<module>.lokr_w1`."""
    return {
        ".".join(part for part in name.split(".") if part != ADAPTER): parameter
        for name, parameter in transformer.named_parameters()
        if ADAPTER in name.split(".")
    }


@dataclass(frozen=True, kw_only=True)
class PissaStart:
    """What PiSSA began with: the base's weight, which comes back when the job ends, and the factors taken from it."""

    weight_OI: Tensor
    a_RI: Tensor
    b_OR: Tensor


def pissa_factors(transformer: nn.Module) -> dict[str, Tensor]:
    """The factors that the base gave up, by parameter name, for a checkpoint; empty but with PiSSA."""
    starts = {name: getattr(layer, "pissa_start", None) for name, layer in adapter_layers(transformer).items()}
    return {
        f"{name}.lora_{side}.weight": factor
        for name, start in starts.items()
        if start
        for side, factor in (("A", start.a_RI), ("B", start.b_OR))
    }


def _start_from_base(transformer: nn.Module, given: Mapping[str, Tensor]) -> None:
    """PiSSA (arXiv 2404.02948): the adapter takes over the main singular part of each weight."""
    for name, layer in adapter_layers(transformer).items():
        base, a, b = layer.get_base_layer(), layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        device = base.weight.device
        # On the CPU, where it costs no memory of the GPU; before anything changes, so that `detach` can always undo.
        weight_OI = base.weight.data.cpu()
        layer.pissa_start = PissaStart(weight_OI=weight_OI, a_RI=a.data, b_OR=b.data)
        if given:
            a.data = given[f"{name}.lora_A.weight"].to(device)
            b.data = given[f"{name}.lora_B.weight"].to(device)
            main_OI = layer.scaling[ADAPTER] * b.data @ a.data
            base.weight.data = (base.weight.data.float() - main_OI).to(base.weight.dtype)
        else:
            layer.pissa_init(ADAPTER, PISSA)
        a_RI, b_OR = (factor.data.to("cpu", copy=True) for factor in (a, b))
        layer.pissa_start = PissaStart(weight_OI=weight_OI, a_RI=a_RI, b_OR=b_OR)


def _refuse_rank_above_layer(transformer: nn.Module, ranks: Mapping[str, int]) -> None:
    for name, rank in ranks.items():
        largest = min(transformer.get_parameter(f"{name}.weight").shape)
        if rank > largest:
            description = f"is {rank} for {name}, whose weight has {largest} singular vectors for PISSA to begin with"
            raise InvalidInput(
                f"config.rank {description}",
                reason="RANK_ABOVE_LAYER",
                remedy=f"Choose a rank of at most {largest}, leave that layer out, or begin with KAIMING.",
                violations=(FieldViolation(field="config.rank", description=description),),
            )


def _measure_lengths(transformer: nn.Module) -> None:
    """DoRA's lengths anew in float32: peft took them in the base's precision, and a bf16 one begins off the base."""
    for layer in adapter_layers(transformer).values():
        layer.lora_magnitude_vector[ADAPTER].update_layer(
            base_layer=layer.get_base_layer(),
            lora_A=layer.lora_A[ADAPTER].weight.data,
            lora_B=layer.lora_B[ADAPTER].weight.data,
            scaling=layer.scaling[ADAPTER],
        )


class NonFiniteAdapter(Exception):
    """The adapter holds a number that is not finite."""


def refuse_non_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise `NonFiniteAdapter` that names the first tensor with a number that is not finite."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise NonFiniteAdapter(f"{name} has a number that is not finite")
