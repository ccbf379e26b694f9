"""Several jobs at a time from one asyncio program, to find the learning rate that is best on held-out pictures."""

import asyncio
import os
from pathlib import Path

import fluxsmith

STEPS = int(os.environ.get("STEPS", "250"))
DEMO = Path(__file__).resolve().parents[2] / "assets/demo"
LEARNING_RATES = (1e-4, 3e-4, 1e-3)


async def main() -> None:
    """Encode once, train three times; jobs take turns on one GPU, or run side by side on several."""
    async with fluxsmith.AsyncClient() as client:
        dataset, held_out = await asyncio.gather(
            client.datasets.create_from_folder(DEMO / "train"),
            client.datasets.create_from_folder(DEMO / "heldout"),
        )

        async def loss_at(learning_rate: float) -> float:
            job = await client.train(dataset, held_out=held_out, learning_rate=learning_rate, batch_size=8, steps=STEPS)
            result = await job.result()
            assert result.held_out_loss_lora is not None
            print(f"learning rate {learning_rate:g}: held-out loss {result.held_out_loss_lora:.4f}")
            return result.held_out_loss_lora

        losses = await asyncio.gather(*map(loss_at, LEARNING_RATES))
        print(f"best: {min(zip(losses, LEARNING_RATES, strict=True))[1]:g}")


asyncio.run(main())
