"""The LoRA adapter: attached to the resident base for one job, written as a file, and taken off without a trace."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import safetensors.torch
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from services.trainer.choices import TargetPreset
from services.trainer.config import TrainConfig

ADAPTER = "default"
_IMAGE_STREAM = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "ff.net.0.proj",
    "ff.net.2",
    "proj_mlp",
    "proj_out",
)
TARGETS = {
    # Anchored to the blocks and written out: by suffix alone `proj_out` would also hit the model's own last layer.
    TargetPreset.IMAGE_STREAM: r"(?:single_)?transformer_blocks\.\d+\.(?:"
    + "|".join(name.replace(".", r"\.") for name in _IMAGE_STREAM)
    + ")",
}
FILE_PREFIX = "transformer"


def lora_config(config: TrainConfig) -> LoraConfig:
    """Peft's description of the adapter that a job asks for."""
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=TARGETS[config.targets],
        init_lora_weights=True,  # A kaiming-uniform, B zero: starts as the identity
    )


@contextmanager
def attached(transformer: nn.Module, config: TrainConfig) -> Iterator[LoraModel]:
    """Attach a fresh float32 adapter, initialised from the job's seed; afterwards the base is what it was."""
    try:
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            tuner = LoraModel(transformer, lora_config(config), ADAPTER)
        for parameter in adapter_parameters(transformer).values():
            parameter.data = parameter.data.float()
        yield tuner
    finally:
        detach(transformer)


def detach(transformer: nn.Module) -> None:
    """Put the base's own layers back, also when an adapter was attached only in part."""
    for name, module in list(transformer.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent, _, own_name = name.rpartition(".")
            setattr(transformer.get_submodule(parent), own_name, module.get_base_layer())
    if hasattr(transformer, "peft_config"):
        del transformer.peft_config


def adapter_parameters(transformer: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters by peft's names without the adapter's: `<module>.lora_A.weight`."""
    return {
        name.replace(f".{ADAPTER}.", "."): parameter
        for name, parameter in transformer.named_parameters()
        if f".{ADAPTER}." in name
    }


def adapter_file(transformer: nn.Module, config: TrainConfig, provenance: Mapping[str, str]) -> bytes:
    """The adapter as safetensors bytes in the form of `FluxPipeline.load_lora_weights`, alpha in the header.

    Keys are `transformer.<module>.lora_A.weight`, tensors float32. Raises `NonFiniteAdapter` rather than writing a
    number that is not finite. `provenance` goes into the header beside what other programs read there.
    """
    tensors = {
        f"{FILE_PREFIX}.{name}": parameter.detach().cpu().contiguous()
        for name, parameter in adapter_parameters(transformer).items()
    }
    refuse_non_finite(tensors)
    description = lora_config(config).to_dict()
    modules = {name.rpartition(".lora_")[0].removeprefix(f"{FILE_PREFIX}.") for name in tensors}
    description["target_modules"] = sorted(modules)
    kept = ("r", "lora_alpha", "target_modules", "use_rslora", "use_dora", "lora_bias", "rank_pattern", "alpha_pattern")
    metadata = {
        "format": "pt",
        "lora_adapter_metadata": json.dumps({f"{FILE_PREFIX}.{key}": description[key] for key in kept}, sort_keys=True),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "flux-1-dev/lora",
        "ss_network_dim": str(config.rank),
        "ss_network_alpha": str(config.alpha),
        **provenance,
    }
    return with_sorted_header(safetensors.torch.save(tensors, metadata))


def with_sorted_header(data: bytes) -> bytes:
    """The same safetensors file with its metadata in order: the library writes it in another order each time."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants the tensors aligned
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


class NonFiniteAdapter(Exception):
    """The adapter holds a number that is not finite."""


def refuse_non_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise `NonFiniteAdapter` that names the first tensor with a number that is not finite."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise NonFiniteAdapter(f"{name} has a number that is not finite")
