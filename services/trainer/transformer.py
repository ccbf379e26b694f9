"""The base transformer: loaded once, frozen, guidance at each caller's choice, resident for all jobs of a worker."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from diffusers import FluxTransformer2DModel
from diffusers.models.embeddings import CombinedTimestepGuidanceTextProjEmbeddings, CombinedTimestepTextProjEmbeddings
from safetensors import SafetensorError
from torch import Tensor, nn

from services.common.base_check import BaseModelError
from services.common.base_model import base_folder, pick_device, pick_dtype
from services.common.errors import FieldViolation, InvalidInput
from services.trainer.config import TrainConfig
from services.trainer.config.choices import GuidanceMode
from services.trainer.kernels import choose_kernels

if TYPE_CHECKING:  # see services/common/base_model.py
    from services.common.settings import ServiceSettings


# Of config.json and the weights' files. Other errors, such as too little memory, are no fault of the folder's.
WRONG_FILES = (ArithmeticError, AttributeError, LookupError, OSError, SafetensorError, TypeError, ValueError)
MISFITS = {
    "missing_keys": "its config.json asks for weights that are not there:",
    "unexpected_keys": "its config.json has no place for the weights",
}


def load_transformer(settings: ServiceSettings) -> FluxTransformer2DModel:
    """Load FLUX's transformer frozen, on its device and in its precision, ready for adapters.

    Raises `BaseModelError` where its weights are missing, cut short, or not those that its config.json describes.
    """
    device = pick_device(settings.device)
    dtype = pick_dtype(settings.dtype, device)
    folder = base_folder(settings, ("transformer",))
    try:
        transformer, loading = FluxTransformer2DModel.from_pretrained(
            folder,
            subfolder="transformer",
            dtype=dtype,
            device_map={"": device},  # straight to the device, shard by shard: never 24 GB of host memory
            use_safetensors=True,  # else a pickle is loaded where there is no file of this format
            output_loading_info=True,
        )
    except NotImplementedError as error:  # torch's, of a tensor that is to be moved and was in no file
        raise _unloadable(folder, "its weights lack some that its config.json asks for") from error
    except WRONG_FILES as error:
        raise _unloadable(folder, (str(error).strip() or type(error).__name__).splitlines()[0]) from error
    for kind, what in MISFITS.items():
        if names := sorted(loading[kind]):
            raise _unloadable(folder, f"{what} {names[0]}" + f" and {len(names) - 1} more" * (len(names) > 1))
    return prepared(transformer)


def _unloadable(folder: Path, what: str) -> BaseModelError:
    return BaseModelError(
        f"transformer of base model {folder} cannot be loaded: {what}",
        "Fetch or save that part anew, its config.json and its weights together.",
    )


def prepared(transformer: FluxTransformer2DModel) -> FluxTransformer2DModel:
    """Freeze a transformer, and bypass its guidance embedding wherever it is called without guidance."""
    choose_kernels()
    transformer.requires_grad_(False)
    transformer.train()
    if transformer.config.guidance_embeds:
        transformer.time_text_embed = GuidanceBypass(transformer.time_text_embed)
    return transformer


class GuidanceBypass(nn.Module):
    """The model's conditioning, in which guidance has a part only when it is given; it shares the original's weights.

    dev was distilled to imitate guided sampling, which is not what training data looks like; without the guidance term
    the adapter learns the data itself. Sampling gives guidance, and gets what the original gives. Swapped in once at
    load, since a patch around every forward is neither safe with threads nor friendly to torch.compile.
    """

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.time_proj = original.time_proj
        self.timestep_embedder = original.timestep_embedder
        self.guidance_embedder = original.guidance_embedder
        self.text_embedder = original.text_embedder

    def forward(self, timestep_B: Tensor, *guidance_and_pooled: Tensor) -> Tensor:
        """Conditioning (B, hidden) of timesteps in 0..1000 and pooled text embeddings (B, width of CLIP).

        Guidance scales times 1000, (B,), come between the two where diffusers is given any.
        """
        kind = CombinedTimestepGuidanceTextProjEmbeddings
        if len(guidance_and_pooled) == 1:
            kind = CombinedTimestepTextProjEmbeddings
        conditioning: Tensor = kind.forward(self, timestep_B, *guidance_and_pooled)
        return conditioning


def refuse_guidance(transformer: FluxTransformer2DModel, config: TrainConfig) -> None:
    """Raise `InvalidInput` when a job wants to tell guidance to a base model that has no embedding of it."""
    if config.guidance is GuidanceMode.BYPASS or transformer.config.guidance_embeds:
        return
    problem = f"is {config.guidance}, but the trainer's base model has no embedding of guidance"
    raise InvalidInput(
        f"guidance {problem}",
        reason="GUIDANCE_NOT_SUPPORTED",
        remedy="Set guidance to BYPASS, or use a trainer whose base model is FLUX.1-dev.",
        violations=(FieldViolation(field="config.guidance", description=problem),),
    )


def set_gradient_checkpointing(transformer: FluxTransformer2DModel, *, on: bool) -> None:
    """Recompute activations in the backward pass, or keep them."""
    if on:
        transformer.enable_gradient_checkpointing()
    else:
        transformer.disable_gradient_checkpointing()
