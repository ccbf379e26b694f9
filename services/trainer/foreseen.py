"""What is worth knowing of a job as soon as it is created, long before a worker has it: none of it stops the job."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from services.trainer.adapters.targets import target_names
from services.trainer.config import TrainConfig
from services.trainer.config.choices import AdapterType, TargetPreset
from services.trainer.jobs import JobWarning

FEW_READERS = "FEW_READERS"
_BLOCKS = ("transformer_blocks.", "single_transformer_blocks.")
# Without these two InvokeAI does not take a file of diffusers' form for one of FLUX.
_INVOKEAI = {"transformer_blocks.0.attn.add_q_proj", "single_transformer_blocks.0.attn.to_q"}
# By type: who reads lora.safetensors, who reads the form besides, who reads neither (docs/adapters.md).
_READERS = {
    AdapterType.DORA: (
        "diffusers from 0.32 on",
        "ComfyUI and Forge",
        "InvokeAI, mflux and SD.Next read neither; stable-diffusion.cpp, nunchaku, Draw Things and sd-scripts leave "
        "the lengths out",
    ),
    AdapterType.LOKR: (
        "ComfyUI, Forge, stable-diffusion.cpp and diffusers' load_lora_adapter, not by its load_lora_weights",
        "ComfyUI, mflux and SD.Next",
        "InvokeAI, nunchaku, Draw Things and sd-scripts read neither",
    ),
    AdapterType.LOHA: (
        "ComfyUI, Forge, stable-diffusion.cpp and peft",
        "ComfyUI and SD.Next",
        "diffusers, InvokeAI, mflux, nunchaku, Draw Things and sd-scripts read neither",
    ),
}


def foreseen(config: TrainConfig, linear_names: Sequence[str]) -> list[JobWarning]:
    """The warnings of a job with this configuration.

    `linear_names` of its base are looked at for a `target_regex` only, and may be empty where they are not known.
    """
    names = target_names(linear_names, config) if linear_names and config.target_regex else ()
    return [*_few_readers(config, names)]


def _few_readers(config: TrainConfig, names: Sequence[str]) -> Iterator[JobWarning]:
    """Say which programs will not read the job's files, or not whole."""
    if config.adapter_type in _READERS:
        first, besides, nobody = _READERS[config.adapter_type]
        other = f"lora.comfyui.safetensors by {besides}" if config.kohya_file else "a second form is off (kohya_file)"
        message = f"few programs read {config.adapter_type}: lora.safetensors is read by {first}; {other}; {nobody}"
        yield JobWarning(reason=FEW_READERS, message=message)
        return
    outside = [name for name in names if not name.startswith(_BLOCKS)]
    if outside:
        message = (
            f"{outside[0]} is outside of the blocks: InvokeAI and SD.Next do not take lora.kohya.safetensors with such "
            "layers, diffusers leaves some of them out of it, and mflux leaves them out of either file; "
            "lora.safetensors has them all for diffusers and ComfyUI"
        )
        yield JobWarning(reason=FEW_READERS, message=message)
    recognized = set(names) >= _INVOKEAI if names else config.targets is not TargetPreset.IMAGE_STREAM
    if not config.kohya_file and not recognized and bool(names) == bool(config.target_regex):
        message = (
            "InvokeAI does not take lora.safetensors for a LoRA of FLUX unless "
            f"{' and '.join(sorted(_INVOKEAI))} are adapted; it reads the file that kohya_file makes"
        )
        yield JobWarning(reason=FEW_READERS, message=message)
