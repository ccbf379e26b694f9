"""The example of use in the report: Python that runs as it stands beside the job's files, with the job's own base.

It draws as the job's last previews were drawn: the same size, length of text, sampling and seed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from services.trainer.config import TrainConfig
from services.trainer.config.choices import AdapterType

if TYPE_CHECKING:  # the page itself needs no torch
    from services.trainer.base import Base
    from services.trainer.previews import Size

ON_THE_HUB = {name: f"black-forest-labs/{name}" for name in ("FLUX.1-dev", "FLUX.1-schnell", "FLUX.1-Krea-dev")}
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What the example draws with, besides the configuration of the job."""

    base: str = ON_THE_HUB["FLUX.1-dev"]
    """What diffusers loads: a folder or hub identifier."""
    revision: str = ""
    """Commit of a hub identifier; empty for the newest."""
    height_px: int = 1024
    width_px: int = 1024
    text_tokens: int = 512
    """Length of T5's output that the adapter was trained with."""

    @classmethod
    def from_base(cls, base: Base, *, address: str) -> Sampling:
        """With the base of a trainer that serves at `address`."""
        found, revision = base_of(base.name, base.scheduler_folder.parent, address=address)
        return cls(base=found, revision=revision)

    def at(self, size: Size, *, text_tokens: int) -> Sampling:
        """The same for pictures of another size and texts of another length."""
        return replace(self, height_px=size.height_px, width_px=size.width_px, text_tokens=text_tokens)


OF_DEV = Sampling()


def base_of(name: str, folder: Path, *, address: str) -> tuple[str, str]:
    """What a reader of the report loads, and of which revision, for a base that a trainer at `address` has in `folder`.

    Its hub identifier where it has one. Of others the folder itself, but to readers of the trainer's own machine alone:
    on another one the path means nothing, and is nobody's business.
    """
    if "/" in name:
        return name, folder.name if COMMIT.fullmatch(folder.name) else ""
    if name in ON_THE_HUB and not _is_loopback(address):
        return ON_THE_HUB[name], ""
    return (str(folder.resolve()) if _is_loopback(address) else name), ""


def example_of_use(config: TrainConfig, lora_file: str, sampling: Sampling, *, prompt: str = "") -> str:
    """The code, which loads `lora_file` from the current folder by the way that its adapter type needs.

    `prompt` is the one to draw, by default the first that the job was given.
    """
    revision = f", revision={sampling.revision!r}" if sampling.revision else ""
    prompt = prompt or next(iter(config.preview_prompts), "a prompt like your captions")
    imports = ["import torch", "from diffusers import FluxPipeline"]
    if config.adapter_type is AdapterType.LOHA:
        imports = ["import json", "", "import safetensors", *imports, _LOHA_IMPORT]
    lines = [
        *imports,
        "",
        f"base = {sampling.base!r}  # the base model: its folder or hub identifier",
        'device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)',
        f"pipe = FluxPipeline.from_pretrained(base{revision}, torch_dtype=dtype).to(device)",
        *_loading(config.adapter_type, lora_file),
        "image = pipe(",
        f"    {prompt!r},",
        f"    height={config.preview_height_px or sampling.height_px},",
        f"    width={config.preview_width_px or sampling.width_px},",
        f"    num_inference_steps={config.preview_sampling_steps},",
        f"    guidance_scale={config.preview_guidance_scale:g},",
        f"    max_sequence_length={sampling.text_tokens},",
        f'    generator=torch.Generator("cpu").manual_seed({config.preview_seed}),',
        ").images[0]",
        'image.save("picture.png")',
    ]
    return "\n".join(lines)


_LOHA_IMPORT = "from peft import LoHaConfig, inject_adapter_in_model, set_peft_model_state_dict"


def _loading(kind: AdapterType, lora_file: str) -> list[str]:
    if kind is AdapterType.LOKR:
        return [f'pipe.transformer.load_lora_adapter(".", weight_name={lora_file!r})']
    if kind is not AdapterType.LOHA:
        return [f'pipe.load_lora_weights(".", weight_name={lora_file!r})']
    return [
        f'with safetensors.safe_open({lora_file!r}, "pt") as file:',
        '    header = json.loads(file.metadata()["lora_adapter_metadata"])',
        '    tensors = {key.removeprefix("transformer."): file.get_tensor(key) for key in file.keys()}',
        'config = LoHaConfig(**{key.removeprefix("transformer."): value for key, value in header.items()})',
        'inject_adapter_in_model(config, pipe.transformer, "default")',
        'set_peft_model_state_dict(pipe.transformer, tensors, "default")',
    ]


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0]
    return host.startswith("127.") or host in {"localhost", "::1", "[::1]"}
