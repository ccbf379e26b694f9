"""A job that begins with the adapter of a file: read from either form, checked, and put into the attached adapter."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from services.common.errors import FieldViolation, InvalidInput
from services.trainer.adapters.adapter import (
    ADAPTER,
    NonFiniteAdapter,
    adapter_layers,
    adapter_parameters,
    refuse_non_finite,
)
from services.trainer.adapters.files import FILE_PREFIX, SCALED
from services.trainer.adapters.kohya import PREFIX as KOHYA_PREFIX
from services.trainer.adapters.kohya import from_kohya
from services.trainer.config import TrainConfig
from services.trainer.config.choices import AdapterType
from services.trainer.config.expressions import matched_in_full

LARGEST_ALPHA = 1e6
LONGEST_PATTERNS = 200_000  # a name in full for every layer of FLUX.1-dev is 30,000
_KEY = re.compile(r"(.+)\.((?:lora|lokr|hada)_.+)")
_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class FileAdapter:
    """The adapter of a file: float32 tensors by the names of `adapter_parameters`, and each module's scale."""

    adapter_type: AdapterType
    tensors: Mapping[str, Tensor]
    scales: Mapping[str, float]

    @property
    def modules(self) -> set[str]:
        """Names of the modules it adapts."""
        return set(self.scales)


def read_adapter(data: bytes) -> FileAdapter:
    """Read a LoRA file in the form of diffusers and peft, or of kohya.

    Raises `InvalidInput` (WARM_START_UNREADABLE) for anything else and for numbers that are not finite.
    """
    try:
        tensors = safetensors.torch.load(data)
        adapter = (
            _of_kohya(tensors) if any(key.startswith(KOHYA_PREFIX) for key in tensors) else _of_peft(data, tensors)
        )
        refuse_non_finite(adapter.tensors)
    except (SafetensorError, ValueError, RecursionError, NonFiniteAdapter) as error:
        raise _refusal(
            f"names a file that is not a LoRA of a FLUX transformer: {error}",
            reason="WARM_START_UNREADABLE",
            remedy="Give a safetensors file as this trainer, diffusers' pipelines or kohya's scripts write it.",
        ) from None
    return adapter


def load_into(transformer: nn.Module, config: TrainConfig, data: bytes) -> None:
    """Give the attached adapter the effect of a file, whatever alpha the file and the job have.

    Raises `InvalidInput`: WARM_START_UNREADABLE, or WARM_START_MISMATCH when type, modules or ranks are not the job's.
    """
    file = read_adapter(data)
    parameters = adapter_parameters(transformer)
    scales = {name: float(layer.scaling[ADAPTER]) for name, layer in adapter_layers(transformer).items()}
    _refuse_mismatch(file, config, parameters, set(scales))
    suffix = SCALED.get(file.adapter_type, ".lora_B.weight")
    for name, parameter in parameters.items():
        module = name.removesuffix(suffix)
        ratio = file.scales[module] / scales[module] if name.endswith(suffix) else 1.0
        parameter.data.copy_(file.tensors[name] * ratio)


def _of_kohya(tensors: Mapping[str, Tensor]) -> FileAdapter:
    factors = from_kohya(tensors)
    sides = {f"{name}.lora_A.weight": factor.a_RI for name, factor in factors.items()}
    sides |= {f"{name}.lora_B.weight": factor.b_OR for name, factor in factors.items()}
    return FileAdapter(adapter_type=AdapterType.LORA, tensors=sides, scales=dict.fromkeys(factors, 1.0))


def _of_peft(data: bytes, tensors: Mapping[str, Tensor]) -> FileAdapter:
    found: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for key, tensor in tensors.items():
        split = _KEY.fullmatch(key.removeprefix(FILE_PREFIX))
        if not key.startswith(FILE_PREFIX) or not split or not tensor.is_floating_point() or not tensor.numel():
            raise ValueError(f"unexpected tensor {key!r}")
        module, part = split.groups()
        name = f"{module}.{part}" + (".weight" if part == "lora_magnitude_vector" else "")
        found[name] = tensor.float()
        if part in {"lora_A.weight", "lora_B.weight"} and tensor.ndim != 2:
            raise ValueError(f"{key!r} is not a matrix")
        if part == "lora_A.weight":
            ranks[module] = len(tensor)
    if not found:
        raise ValueError("it has no tensors")
    kind = _type_of(found)
    if kind not in SCALED and (lacking := {name.partition(".lora_")[0] for name in found} - set(ranks)):
        raise ValueError(f"{_some(lacking)} without lora_A")
    # What LoKr and LoHa add is whole in their tensors: see files.py.
    modules = {name.rpartition(".")[0] for name in found} if kind in SCALED else set(ranks)
    scales = dict.fromkeys(modules, 1.0) if kind in SCALED else _scales(_description(data), ranks)
    return FileAdapter(adapter_type=kind, tensors=found, scales=scales)


def _type_of(tensors: Mapping[str, Tensor]) -> AdapterType:
    if any(".lokr_" in name for name in tensors):
        return AdapterType.LOKR
    if any(".hada_" in name for name in tensors):
        return AdapterType.LOHA
    return AdapterType.DORA if any("lora_magnitude_vector" in name for name in tensors) else AdapterType.LORA


def _description(data: bytes) -> dict[str, Any]:
    """Peft's configuration in a file's header, without prefix; empty where there is none."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    text = header.get("__metadata__", {}).get("lora_adapter_metadata", "{}")
    description = json.loads(text)
    if not isinstance(description, dict):
        raise ValueError("lora_adapter_metadata is not an object")
    return {key.removeprefix(FILE_PREFIX): value for key, value in description.items()}


def _scales(description: Mapping[str, Any], ranks: Mapping[str, int]) -> dict[str, float]:
    """Each module's alpha / rank, or alpha / sqrt(rank) for rsLoRA; 1 where the header is silent, as in diffusers."""
    if "lora_alpha" not in description:
        return dict.fromkeys(ranks, 1.0)
    root = 0.5 if description.get("use_rslora") else 1.0
    try:
        alphas: dict[str, float] = {}
        patterns = description.get("alpha_pattern") or {}
        if sum(map(len, patterns)) > LONGEST_PATTERNS:
            raise ValueError(f"alpha_pattern of lora_adapter_metadata has over {LONGEST_PATTERNS:,} characters")
        for pattern, alpha in patterns.items():
            # A stranger's expressions, so RE2 matches them. Peft takes suffixes too.
            for name in matched_in_full(rf"(?:.*\.)?(?:{pattern})", sorted(ranks)):
                alphas.setdefault(name, float(alpha))  # the first that matches counts, as in peft
        alphas = dict.fromkeys(ranks, float(description["lora_alpha"])) | alphas
    except (TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"lora_adapter_metadata cannot be read: {error}") from None
    if wrong := [name for name, alpha in alphas.items() if not 0 < abs(alpha) <= LARGEST_ALPHA]:
        raise ValueError(f"lora_adapter_metadata has alpha {alphas[wrong[0]]:g} for {wrong[0]}")
    return {name: alpha / ranks[name] ** root for name, alpha in alphas.items()}


def _refuse_mismatch(
    file: FileAdapter, config: TrainConfig, parameters: Mapping[str, nn.Parameter], modules: set[str]
) -> None:
    if file.adapter_type is not config.adapter_type:
        raise _mismatch(
            f"of type {file.adapter_type}, not {config.adapter_type}", f"Set adapter_type to {file.adapter_type}."
        )
    if file.modules != modules:
        sides = (("lacks", modules - file.modules), ("has besides", file.modules - modules))
        told = [f"{verb} {_some(names)}" for verb, names in sides if names]
        raise _mismatch(
            f"for {len(file.modules)} modules, the job adapts {len(modules)}: the file {' and '.join(told)}",
            "Set targets, or target_regex, so that the job adapts the modules of the file.",
        )
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    found = {name: tuple(tensor.shape) for name, tensor in file.tensors.items()}
    wrong = sorted(name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name))
    if wrong:
        first = wrong[0]
        raise _mismatch(
            f"of other shapes in {len(wrong)} tensors: {first} is {found.get(first)}, the job's {shapes.get(first)}",
            _remedy_of_ranks(file),
        )


def _remedy_of_ranks(file: FileAdapter) -> str:
    ranks = {len(tensor) for name, tensor in file.tensors.items() if name.endswith((".lora_A.weight", ".hada_w1_b"))}
    if len(ranks) == 1:
        return f"The file has rank {ranks.pop()}: set rank to it, without rank_pattern."
    return "Set rank, rank_pattern and lokr_factor to what the file was trained with."


def _some(names: set[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(sorted(names)[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _mismatch(what: str, remedy: str) -> InvalidInput:
    return _refusal(f"names an adapter {what}", reason="WARM_START_MISMATCH", remedy=remedy)


def _refusal(description: str, *, reason: str, remedy: str) -> InvalidInput:
    return InvalidInput(
        f"config.warm_start_uri {description}",
        reason=reason,
        remedy=remedy,
        violations=(FieldViolation(field="config.warm_start_uri", description=description),),
    )
