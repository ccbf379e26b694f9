"""A job that begins with the adapter of a file: read from any form, checked, and put into the attached adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torch import Tensor, nn

from services.common.safetensors_header import Header, Source, read_header
from services.common.tensor_file import read_tensor
from services.trainer.adapters.adapter import (
    ADAPTER,
    NonFiniteAdapter,
    adapter_layers,
    adapter_parameters,
    refuse_non_finite,
)
from services.trainer.adapters.file_tensors import layer_scale, modules_tensors
from services.trainer.adapters.files import SCALED
from services.trainer.adapters.fit import module_of, refuse_unlike
from services.trainer.adapters.outline import Outline, outline_of
from services.trainer.adapters.uploads import unreadable
from services.trainer.config import TrainConfig
from services.trainer.config.choices import AdapterType


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
    """Read the file of an adapter in any form of `docs/adapters.md`.

    Raises `InvalidInput` (WARM_START_UNREADABLE) for anything else and for numbers that are not finite.
    """
    source = Source.of(data)
    with _refused():
        header = read_header(source)
        return _tensors_of(source, header, outline_of(header))


def load_into(transformer: nn.Module, config: TrainConfig, data: bytes) -> Outline:
    """Give the attached adapter the effect of a file, whatever alpha the file and the job have; return its outline.

    Nothing is loaded of a file that does not fit. Raises `InvalidInput`: WARM_START_UNREADABLE, or WARM_START_MISMATCH
    when type, modules or ranks are not the job's.
    """
    parameters = adapter_parameters(transformer)
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    source = Source.of(data)
    with _refused():
        header = read_header(source)
        outline = outline_of(header)
    refuse_unlike(outline, config, shapes)
    with _refused():
        file = _tensors_of(source, header, outline)
    refuse_unlike(_known(outline, file), config, shapes)
    scales = {name: float(layer.scaling[ADAPTER]) for name, layer in adapter_layers(transformer).items()}
    suffix = SCALED.get(file.adapter_type, ".lora_B.weight")
    for name, parameter in parameters.items():
        ratio = file.scales[module_of(name)] / scales[module_of(name)] if name.endswith(suffix) else 1.0
        parameter.data.copy_(file.tensors[name] * ratio)
    return outline


def _tensors_of(source: Source, header: Header, outline: Outline) -> FileAdapter:
    """Read and convert layer by layer: beside the file there is never more in memory than the adapter in float32."""
    tensors: dict[str, Tensor] = {}
    scales: dict[str, float] = {}
    for layer, keys in outline.parts.items():
        parts = {part: read_tensor(source, header.tensors[key]) for part, key in keys.items()}
        refuse_non_finite({keys[part]: tensor for part, tensor in parts.items()})
        scale = layer_scale(layer, parts, outline.scales.get(layer))
        for module, own in modules_tensors(layer, parts).items():
            scales[module] = scale
            tensors |= {f"{module}.{name}": tensor for name, tensor in own.items()}
    refuse_non_finite(tensors)
    return FileAdapter(adapter_type=outline.adapter_type, tensors=tensors, scales=scales)


def _known(outline: Outline, file: FileAdapter) -> Outline:
    """The outline once the tensors of fused layers are read: which of their modules they adapt, with what ranks."""
    shapes = {name: tuple(tensor.shape) for name, tensor in file.tensors.items()}
    parts = {
        replace(layer, modules=tuple(module for module in layer.modules if module in file.modules)): keys
        for layer, keys in outline.parts.items()
    }
    return replace(outline, parts=parts, shapes=shapes, fused={})


@contextmanager
def _refused() -> Iterator[None]:
    try:
        yield
    except (ValueError, NonFiniteAdapter) as error:
        raise unreadable(error) from None
