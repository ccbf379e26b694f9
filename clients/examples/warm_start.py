"""Go on from a LoRA that is there: that of an earlier job, or a file of another trainer."""

import os
from pathlib import Path

import fluxsmith

STEPS = int(os.environ.get("STEPS", "250"))
DRAWINGS = Path(__file__).resolve().parents[2] / "assets/demo/train"

with fluxsmith.Client() as client:
    dataset = client.datasets.create_from_folder(DRAWINGS)
    first = client.train(dataset, rank=8, learning_rate=1e-3, batch_size=8, steps=STEPS)
    first.wait()
    path = first.download("first.safetensors")

    uri = client.upload_adapter(path)  # or first.result().lora_uri, which is in the store already
    second = client.train(dataset, rank=8, learning_rate=1e-4, batch_size=8, steps=STEPS, warm_start_uri=uri)
    print("LoRA at", second.result().lora_uri)
