"""Pause a job to free its GPU, and let it go on later from its checkpoint, to the same file as if nothing had been."""

import os
from pathlib import Path

import fluxsmith

STEPS = int(os.environ.get("STEPS", "250"))
DRAWINGS = Path(__file__).resolve().parents[2] / "assets/demo/train"

with fluxsmith.Client() as client:
    dataset = client.datasets.create_from_folder(DRAWINGS)
    job = client.train(dataset, learning_rate=1e-3, batch_size=8, steps=STEPS)
    has_paused = False
    for event in job.watch():
        print(event)
        match event:
            case fluxsmith.StepsCompleted() if not has_paused:
                job.pause()
                has_paused = True
            case fluxsmith.StateChanged(state=fluxsmith.JobState.PAUSED):
                print("paused; another program could use the GPU now")
                job.resume()
    print("LoRA at", job.result().lora_uri)
