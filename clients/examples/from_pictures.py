"""From pictures that your program holds: PIL images, the bytes of files, or those as base64, each with its caption."""

import os
from collections.abc import Iterator
from pathlib import Path

import fluxsmith
from PIL import Image

STEPS = int(os.environ.get("STEPS", "250"))
DRAWINGS = Path(__file__).resolve().parents[2] / "assets/demo/train"


def drawings_without_background() -> Iterator[tuple[Image.Image, str]]:
    """Yield each drawing on white, as a program of yours might make them."""
    for path in sorted(DRAWINGS.glob("*.png")):
        drawing = Image.open(path).convert("RGBA")
        white = Image.new("RGBA", drawing.size, "white")
        yield Image.alpha_composite(white, drawing).convert("RGB"), path.with_suffix(".txt").read_text()


with fluxsmith.Client() as client:
    dataset = client.datasets.create_from(drawings_without_background(), name="drawings on white")
    print(f"{dataset.name}: {dataset.sample_count} samples")
    job = client.train(dataset, learning_rate=1e-3, batch_size=8, steps=STEPS)
    print("LoRA at", job.result().lora_uri)
