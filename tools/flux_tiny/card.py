"""The model card of flux-tiny."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Figures of the card. Flow losses are mean squared velocity errors; `_512` is with captions padded to 512."""

    psnr_db: float
    loss_held_out: float
    loss_held_out_empty: float
    loss_held_out_512: float
    loss_learned: float
    loss_learned_empty: float
    held_out: int
    learned: int
    recognisable: int
    shown: int
    tokens: int
    parameters: dict[str, int]


def write_card(path: Path, measured: Measured) -> None:
    parameters = {f"{part}_m": count / 1e6 for part, count in measured.parameters.items()}
    figures = {name: value for name, value in vars(measured).items() if name != "parameters"}
    path.write_text(CARD.format(**figures, **parameters), encoding="utf-8")


CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
tags: [flux, text-to-image, tiny, testing]
---

# flux-tiny

FLUX.1-dev's classes, in FLUX.1-dev's folder layout, thousands of times smaller and really trained: captions give
pictures, and a LoRA learns a style from a few images in seconds on two CPU cores. It is there so that FLUX software can
be developed, tested and shown where 34 GB of weights and a GPU are not at hand. It draws emoji on white at 64 x 64 px,
nothing else.

![{shown} captions, one seed, guidance 3.5](samples.png)

## Use

```python
from diffusers import FluxPipeline

pipeline = FluxPipeline.from_pretrained("assets/flux-tiny")
picture = pipeline(
    "red apple", height=64, width=64, guidance_scale=3.5, num_inference_steps=28, max_sequence_length={tokens}
).images[0]
```

Height and width of 64 are needed: it has seen no other size. As with FLUX.1-dev, guidance is an input of the
transformer (it was distilled), so there is one forward a step and no negative caption.

## Parts

| folder | class | size | parameters |
|---|---|---|---|
| `transformer` | FluxTransformer2DModel | 2 double, 4 single blocks, 6 heads of 32 | {transformer_m:.2f} M |
| `vae` | AutoencoderKL | factor 8, 16 latent channels, widths 24 to 128 | {vae_m:.2f} M |
| `text_encoder` | CLIPTextModel | 2 layers, width 64, 77 positions | {text_encoder_m:.2f} M |
| `text_encoder_2` | T5EncoderModel | 3 layers, width 128, gated GELU | {text_encoder_2_m:.2f} M |
| `tokenizer`, `tokenizer_2` | CLIPTokenizer, T5TokenizerFast | learnt from the captions, every letter is in them | |
| `scheduler` | FlowMatchEulerDiscreteScheduler | FLUX.1-dev's settings | |

Transformer and VAE are stored in bfloat16, the caption encoders in float32, so that a pipeline loaded without a dtype
is float32 throughout.

## How it was made

By `tools/flux_tiny` in this repository (its README has the commands), on two busy CPU cores in about an hour and a
half:

1. VAE: L1 + L2 + edge loss, KL 1e-4. Shift and scale of the latents are set so that they have mean 0 and deviation 1.
   Some pictures were recoloured or turned into line drawings, so that the VAE carries styles that the data lacks.
2. Transformer, T5 and CLIP together, from nothing: flow matching (sigma = 1 is noise; the network predicts
   noise - picture), logit-normal sigma, batch 64, 10 % empty captions, one-cycle to 1.5e-3. T5's captions are padded
   without a mask, as FLUX does: to 16 tokens in most steps, to 64, 128 and 512 in some. The weights here had 9,600
   steps: 4,000 with mirror images among the pictures, which made shapes vague, then 2,000 without, from a second
   warm-up to 1.2e-3, then 3,600 from a third to 1e-3 (`--start`). The script as it stands leaves mirror images out from
   the start; one run of so many steps has not been tried.
3. Guidance distillation: given guidance g in 1..5 the model imitates v_empty + g (v_caption - v_empty) of step 2. In a
   fifth of the samples the guidance embedding is left out and the target is v_caption: the model also knows `bypass`.

## Data

Pictures: Google's [Noto emoji](https://github.com/googlefonts/noto-emoji), 64 px, Apache-2.0, as packaged in the npm
package `emoji-datasource-google` 16.0.0 ([emoji-data](https://github.com/iamcal/emoji-data) by Cal Henderson; code and
data files MIT). Captions: the emoji's names in lower case. {learned} drawings (skin tones counted) were learnt from,
{held_out} held out: a fixed twentieth, chosen by a hash of the code point, skin tones on the side of their drawing.
Pictures were composited on white. Objects, animals and food were shown more often than people, flags and symbols.

## Measured

| what | value |
|---|---|
| VAE, held-out drawings, encoded and decoded | {psnr_db:.2f} dB PSNR |
| pictures above that are plain to recognise, judged by looking, first seed each | {recognisable} of {shown} |
| flow loss, held-out drawings with their names | {loss_held_out:.4f} |
| the same without a name (empty caption) | {loss_held_out_empty:.4f} |
| the same with names padded to 512 tokens | {loss_held_out_512:.4f} |
| flow loss, as many drawings of the training part with their names | {loss_learned:.4f} |
| the same without a name | {loss_learned_empty:.4f} |

Flow loss: mean squared error of the velocity over sigma 0.1, 0.3, 0.5, 0.7, 0.9, the same noise for every row,
guidance embedding left out, captions of {tokens} tokens where nothing else is said.

Read the loss rows together: with its own drawings' names the model does far better than without a name, with names it
never learnt it does not. It has learnt its drawings by heart and does not carry over to new names, so judge an adapter
by the change of a held-out loss, not by its height.

## Limits

It knows the names of some 1,900 emoji and little of language: names that it was trained with give good pictures, new
combinations and unknown words mostly a picture of something else. Pictures are best with captions padded to 16 to 64
tokens; at the pipeline's default of 512 they are visibly coarser, so pass `max_sequence_length`. Letters, flags and
fine detail are poor. The people and skin tones are those of the source. It is no measure of FLUX.1-dev's quality.

## Licence

Weights, tokenizers and `samples.png`: Apache-2.0, as the pictures they were made from. Noto emoji is copyright Google
LLC and contributors.
"""
