"""From a table of pictures and captions: CSV, or JSONL in the same way. Paths in it are relative to the table."""

import os
from pathlib import Path

import fluxsmith

STEPS = int(os.environ.get("STEPS", "250"))
TABLE = Path(__file__).with_name("drawings.csv")

with fluxsmith.Client() as client:
    dataset = client.datasets.create_from(TABLE)  # columns with other names: image_column=..., caption_column=...
    print(f"{dataset.name}: {dataset.sample_count} samples, {dataset.cached_count} known already")
    job = client.train(dataset, learning_rate=1e-3, batch_size=8, steps=STEPS)
    print("LoRA at", job.result().lora_uri)
