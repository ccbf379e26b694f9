"""From a folder of captioned pictures to a LoRA file."""

import os
from pathlib import Path

import fluxsmith

STEPS = int(os.environ.get("STEPS", "250"))
DRAWINGS = Path(__file__).resolve().parents[2] / "assets/demo/train"  # each picture has its caption in a .txt beside it

with fluxsmith.Client() as client:
    dataset = client.datasets.create_from_folder(DRAWINGS, flip=True)
    job = client.train(dataset, rank=16, learning_rate=1e-3, batch_size=8, steps=STEPS)
    for event in job.watch():
        print(event)
    print("written:", job.download("ink.safetensors"))
