"""The judge: a CLIP model of `transformers`, small enough to be checked in, and its clean head.

Legend: B batch, C color channels, H/W px, P patches and the class token, D width, E embedding, S tokens, N subjects.
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from tools.flux_tiny.export import write_slow_clip_files
from tools.flux_tiny.judge_scenes import SIDE_PX, TOKENS

EMBEDDING = 128
WIDTH = 128
POSITIONS = 77  # callers that pad to CLIP's usual length work; what is trained on is shorter
CLEAN_GAIN = 8.0  # lets the clean head, which reads vectors of length 1, grow at the rate of the other weights
PROTOTYPE_GAIN = 16.0
PATCH_PX = 8
HEAD_FILE = "clean_head.safetensors"


def new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Vision: four layers of width 128 on 8 px patches. Text: two of as much."""
    vision = {
        "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 4, "num_attention_heads": 4,
        "image_size": SIDE_PX, "patch_size": PATCH_PX,
    }  # fmt: skip
    text = {
        "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4,
        "vocab_size": len(tokenizer), "max_position_embeddings": POSITIONS,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    return CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=EMBEDDING))


class Judge(nn.Module):
    """What is trained: the CLIP model, the clean head, and a prototype for each subject, which is not kept.

    Prototypes stand in for the captions of all subjects at once: a batch alone shows only a few wrong names.
    """

    def __init__(self, clip: CLIPModel, subjects: int) -> None:
        super().__init__()
        self.clip = clip
        self.clean = nn.Linear(EMBEDDING, 1)
        # Random prototypes would first of all teach the towers to say the same of everything.
        self.prototypes = nn.Parameter(torch.zeros(subjects, EMBEDDING))
        with torch.no_grad():
            clip.logit_scale.fill_(2.0)
            clip.vision_model.embeddings.position_embedding.weight[1:] += 0.2 * waves(SIDE_PX // PATCH_PX)

    def images(self, pixels_BCHW: Tensor, kept: float = 1.0) -> Tensor:
        """Embeddings (B, E) of length 1 of pictures in -1..1, from a random share `kept` of their patches."""
        tower = self.clip.vision_model
        x_BPD = tower.embeddings(pixels_BCHW)
        if kept < 1:
            count = round((x_BPD.shape[1] - 1) * kept)
            order = torch.rand(len(x_BPD), x_BPD.shape[1] - 1).argsort(1)[:, :count] + 1
            order = torch.cat([torch.zeros(len(order), 1, dtype=order.dtype), order], 1)
            x_BPD = x_BPD.gather(1, order.unsqueeze(-1).expand(-1, -1, x_BPD.shape[-1]))
        x_BPD = tower.encoder(inputs_embeds=tower.pre_layrnorm(x_BPD)).last_hidden_state
        return F.normalize(self.clip.visual_projection(tower.post_layernorm(x_BPD[:, 0])).float(), dim=-1)

    def texts(self, tokens_BS: Tensor) -> Tensor:
        """Embeddings (B, E) of length 1."""
        return F.normalize(self.clip.get_text_features(tokens_BS).pooler_output.float(), dim=-1)

    def clean_logits(self, embedding_BE: Tensor) -> Tensor:
        """(B,) above 0 for clean pictures."""
        logits_B: Tensor = self.clean(embedding_BE).squeeze(-1).float() * CLEAN_GAIN
        return logits_B

    def subject_logits(self, embedding_BE: Tensor) -> Tensor:
        """(B, N)."""
        logits_BN: Tensor = embedding_BE @ self.prototypes.T * PROTOTYPE_GAIN
        return logits_BN


def waves(side: int) -> Tensor:
    """Sines and cosines of row and column, (side * side, D), so that neighbors are alike from the start."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    rates = math.pi / (1.5 * side) * 2 ** torch.linspace(0, 2.4, WIDTH // 4)
    angles = [place.flatten()[:, None] * rates for place in (x, y)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], 1)


def save_judge(judge: Judge, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write what `CLIPModel`, `CLIPProcessor` and `CLIPTokenizer.from_pretrained` read, in float16, and the head."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = TOKENS
    copy.deepcopy(judge.clip).half().save_pretrained(folder)
    CLIPProcessor(image_processor=new_image_processor(), tokenizer=tokenizer).save_pretrained(folder)
    write_slow_clip_files(folder, tokenizer)
    save_file({name: part.detach() * CLEAN_GAIN for name, part in judge.clean.named_parameters()}, folder / HEAD_FILE)
    forget_origin(folder)


def new_image_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(
        size={"shortest_edge": SIDE_PX},
        crop_size={"height": SIDE_PX, "width": SIDE_PX},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def forget_origin(folder: Path) -> None:
    """Drop what names the folder that a part was read from."""
    for path in folder.glob("*.json"):
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored.pop("_name_or_path", None) is not None or stored.pop("name_or_path", None) is not None:
            path.write_text(json.dumps(stored, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
