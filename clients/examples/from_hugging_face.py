"""From a dataset of Hugging Face's `datasets` library, which is to be installed beside fluxsmith."""

import os
from pathlib import Path

import fluxsmith
from datasets import Dataset, Image

STEPS = int(os.environ.get("STEPS", "250"))
FILES = sorted((Path(__file__).resolve().parents[2] / "assets/demo/train").glob("*.png"))

# Made here, to run without a network; yours may come from datasets.load_dataset("OWNER/NAME", split="train").
table = {"image": [str(path) for path in FILES], "text": [path.with_suffix(".txt").read_text() for path in FILES]}
drawings = Dataset.from_dict(table).cast_column("image", Image())

with fluxsmith.Client() as client:
    dataset = client.datasets.create_from(drawings, name="drawings")
    print(f"{dataset.name}: {dataset.sample_count} samples")
    job = client.train(dataset, learning_rate=1e-3, batch_size=8, steps=STEPS)
    print("LoRA at", job.result().lora_uri)
