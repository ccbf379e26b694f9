"""Put flux-tiny's parts together in the folder layout of FLUX.1-dev, for diffusers of today and of a few years ago."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline
from transformers import CLIPTokenizer

from tools.flux_tiny.model import TinyFlux
from tools.flux_tiny.text import T5_TOKENS, Tokenizers

LEFT_OVER = {"is_local", "local_files_only", "max_length", "pad_to_multiple_of", "pad_token_type_id", "padding_side"}
LEFT_OVER |= {"stride", "truncation_side", "truncation_strategy"}


def export(out: Path, *, model: TinyFlux, vae: AutoencoderKL, tokenizers: Tokenizers) -> None:
    """Write the folder that `FluxPipeline.from_pretrained` reads; `model` and `vae` stay as they are.

    Transformer and VAE are stored in bfloat16, as FLUX.1-dev's are. The caption encoders are small and stay in float32:
    loaded without a dtype, transformers keeps the stored one and diffusers takes float32, and the pipeline needs both
    the same.
    """
    model = copy.deepcopy(model)
    pipeline = FluxPipeline(
        scheduler=new_scheduler(),
        vae=copy.deepcopy(vae).to(torch.bfloat16),
        text_encoder=model.clip,
        tokenizer=tokenizers.clip,
        text_encoder_2=model.t5,
        tokenizer_2=tokenizers.t5,
        transformer=model.transformer.to(torch.bfloat16),
    )
    pipeline.save_pretrained(out, safe_serialization=True)
    write_slow_clip_files(out / "tokenizer", tokenizers.clip)
    name_fast_t5(out)
    forget_origin(out)


def new_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """FLUX.1-dev's own settings. For 16 image tokens its formula gives mu = 0.459, a mild shift towards noise."""
    return FlowMatchEulerDiscreteScheduler(
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )


def write_slow_clip_files(folder: Path, tokenizer: CLIPTokenizer) -> None:
    """`vocab.json` and `merges.txt`: CLIPTokenizer before transformers 5 reads nothing else."""
    bpe = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (folder / "vocab.json").write_text(json.dumps(tokenizer.get_vocab(), ensure_ascii=False), encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in bpe["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")


def name_fast_t5(out: Path) -> None:
    """Use the names that transformers 4 knows as well: in 5 T5TokenizerFast is an alias and is saved as T5Tokenizer."""
    index = out / "model_index.json"
    parts = json.loads(index.read_text(encoding="utf-8"))
    parts["tokenizer_2"] = ["transformers", "T5TokenizerFast"]
    index.write_text(json.dumps(parts, indent=2) + "\n", encoding="utf-8")
    config = out / "tokenizer_2" / "tokenizer_config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings["model_max_length"] = T5_TOKENS
    settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def forget_origin(out: Path) -> None:
    """Drop what the libraries note of where a part was loaded from, and of the last padding that training asked for."""
    for tokenizer in ("tokenizer", "tokenizer_2"):
        path = out / tokenizer / "tokenizer_config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        kept = {name: value for name, value in settings.items() if name not in LEFT_OVER}
        path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
        path = out / tokenizer / "tokenizer.json"
        parts = json.loads(path.read_text(encoding="utf-8")) | {"truncation": None, "padding": None}
        path.write_text(json.dumps(parts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for part in ("transformer", "vae"):
        path = out / part / "config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings.pop("_name_or_path", None)
        path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def load_parts(folder: Path) -> tuple[TinyFlux, AutoencoderKL, Tokenizers]:
    """Read a pipeline folder back, in float32."""
    pipeline = FluxPipeline.from_pretrained(folder, dtype=torch.float32)
    model = TinyFlux(clip=pipeline.text_encoder, t5=pipeline.text_encoder_2, transformer=pipeline.transformer)
    return model, pipeline.vae, Tokenizers(clip=pipeline.tokenizer, t5=pipeline.tokenizer_2)
