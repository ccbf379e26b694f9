"""Watch a job, stop it by a rule of your own, and keep what it has learnt up to then."""

import os
from pathlib import Path

import fluxsmith

STEPS = int(os.environ.get("STEPS", "250"))
DRAWINGS = Path(__file__).resolve().parents[2] / "assets/demo/train"

with fluxsmith.Client() as client:
    dataset = client.datasets.create_from_folder(DRAWINGS)
    job = client.train(dataset, learning_rate=1e-3, batch_size=8, steps=100_000, checkpoint_interval_steps=1)
    for event in job.watch():  # goes on after a broken connection, without a gap
        if isinstance(event, fluxsmith.StepsCompleted) and event.steps[-1].step >= STEPS:
            print(event)
            job.cancel()  # it stops after the step that it is in; again changes nothing
    print(f"{job.refresh().state.lower()} after step {job.snapshot.step}")
    newest = job.checkpoints()[0]  # what was learnt up to then is kept until the job is deleted
    print("written:", job.download("stopped.safetensors", artifact_name=newest.lora.artifact_name))
