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
) -> Iterator[AttachedAdapter]:
    """Attach a fresh float32 adapter, initialised from the job's seed; afterwards the base is what it was, to the bit.

    The model's output is at first that of the base; with PiSSA in bf16 but for rounding: what the base keeps is rounded
    and the file, made for the base as it is, differs from what was trained by that. A PiSSA job that goes on from a
    checkpoint hands back what `pissa_factors` said when it began: the base gives up exactly that again. Raises
    `InvalidInput` for targets that match nothing and for PiSSA with a rank above what a layer has.

    When the block ends while the adapter is taken off, nothing of the base is touched: it may be another job's turn.
    """
    ranks = target_ranks(linear_names(transformer), config)
    if config.init_weights is InitWeights.PISSA:
        _refuse_rank_above_layer(transformer, ranks)
    adapter = AttachedAdapter(transformer)
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
        yield adapter
    finally:
        adapter.end()


class AttachedAdapter:
    """The adapter of one job: on the base, or taken off it for a while and kept here, to be put back to the bit."""

    def __init__(self, transformer: nn.Module) -> None:
        self._transformer = transformer
        self._on = True
        self._layers: dict[str, Any] = {}  # while it is off
        self._peft_config: Any = None

    def take_off(self) -> None:
        """Leave the base to others; nothing happens if that was done already."""
        if not self._on:
            return
        self._layers = adapter_layers(self._transformer)
        self._peft_config = getattr(self._transformer, "peft_config", None)
        self._on = False
        detach(self._transformer)

    def put_on(self) -> None:
        """Undo `take_off` on a base that nobody else's adapter is on; when that fails the adapter is off as before."""
        self._on = True
        try:
            for name, layer in self._layers.items():
                _put(self._transformer, name, layer)
                if hasattr(layer, "pissa_start"):
                    _give_up_start(layer)
            self._transformer.peft_config = self._peft_config
        except BaseException:
            self._on = False
            detach(self._transformer)
            raise
        self._layers = {}

    def own_tensors(self) -> list[Tensor]:
        """Parameters and buffers of the adapter, trained or not, wherever it is; none of the base."""
        layers = adapter_layers(self._transformer) if self._on else self._layers
        own = [module for layer in layers.values() for module in _own_modules(layer)]
        return [tensor for each in own for tensor in (*each.parameters(recurse=False), *each.buffers(recurse=False))]

    def end(self) -> None:
        """Take it off for good."""
        self.take_off()
        self._layers, self._peft_config = {}, None


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
            _restore(base.weight, start.weight_OI)
        _put(transformer, name, base)
    if hasattr(transformer, "peft_config"):
        del transformer.peft_config


def _restore(weight: nn.Parameter, saved: Tensor) -> None:
    if weight.device == saved.device:
        weight.data = saved
    else:
        weight.data.copy_(saved)  # in place, so that it cannot run out of memory


def _own_modules(layer: Any) -> list[nn.Module]:
    """Those in a layer of peft that are not the base's."""
    own = [part for name, part in layer.named_children() if name != "base_layer"]
    return [module for part in own for module in part.modules()]


def _put(transformer: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own_name = name.rpartition(".")
    setattr(transformer.get_submodule(parent), own_name, module)


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


@contextmanager
def without_dropout(transformer: nn.Module) -> Iterator[None]:
    """The attached adapter without its dropout, the only thing in FLUX that differs between training and use.

    Touches the adapter's own modules alone, so that it may end while another job's adapter is on the base.
    """
    own = [module for layer in adapter_layers(transformer).values() for module in (layer, *_own_modules(layer))]
    before = [module.training for module in own]
    for module in own:
        module.training = False
    try:
        yield
    finally:
        for module, was_training in zip(own, before, strict=True):
            module.training = was_training


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
        weight = base.weight.data
        # On the CPU, where it costs no memory of the GPU; before anything changes, so that `detach` can always undo.
        weight_OI = weight.cpu()
        layer.pissa_start = PissaStart(weight_OI=weight_OI, a_RI=a.data, b_OR=b.data)
        if given:
            a.data = given[f"{name}.lora_A.weight"].to(weight.device, copy=True)
            b.data = given[f"{name}.lora_B.weight"].to(weight.device, copy=True)
        else:
            layer.pissa_init(ADAPTER, PISSA)
            base.weight.data = weight  # peft takes the part off as well, in an order of its own
        a_RI, b_OR = (factor.data.to("cpu", copy=True) for factor in (a, b))
        layer.pissa_start = PissaStart(weight_OI=weight_OI, a_RI=a_RI, b_OR=b_OR)
        _give_up_start(layer)


def _give_up_start(layer: Any) -> None:
    """Take what PiSSA began with from the base's whole weight: the same bits whenever it is done."""
    base, start = layer.get_base_layer(), layer.pissa_start
    weight_OI = base.weight.data
    a_RI, b_OR = start.a_RI.to(weight_OI.device), start.b_OR.to(weight_OI.device)
    main_OI = layer.scaling[ADAPTER] * b_OR @ a_RI
    base.weight.data = (weight_OI.float() - main_OI).to(weight_OI.dtype)


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
