"""AsyncClient on the whole stack: a run watched through the death of the trainer, files fetched side by side."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import fluxsmith
from fluxsmith import AsyncClient, StateChanged, StepsCompleted

from services.stack import Stack


async def watched_through_a_kill(client: AsyncClient, stack: Stack, drawings: Path) -> tuple[list[int], list[int]]:
    """Sequences and steps of a run whose trainer is killed in the middle."""
    dataset = await client.datasets.create_from_folder(drawings)
    job = await client.train(dataset, rank=2, steps=30)
    events = []
    killed = False
    async for event in job.watch():
        events.append(event)
        if isinstance(event, StepsCompleted) and not killed:
            killed = True
            await asyncio.to_thread(stack.stop_process, "trainer", signal_number=signal.SIGKILL)
            await asyncio.to_thread(stack.start_service, "trainer", stack.trainer_address)
    assert isinstance(events[-1], StateChanged)
    assert (await job.result()).lora_digest
    steps = [step.step for event in events if isinstance(event, StepsCompleted) for step in event.steps]
    return [event.sequence for event in events], steps


def test_events_through_a_killed_trainer_are_neither_lost_nor_repeated(own_stack: Stack, drawings: Path) -> None:
    async def main() -> tuple[list[int], list[int]]:
        async with AsyncClient(own_stack.encoder_address, own_stack.trainer_address) as client:
            return await watched_through_a_kill(client, own_stack, drawings)

    sequences, steps = asyncio.run(main())
    assert sequences == list(range(1, len(sequences) + 1))
    assert set(steps) == set(range(1, 31))


def test_files_are_fetched_side_by_side(stack: Stack, ready: str, tmp_path: Path) -> None:
    async def main() -> list[list[Path]]:
        async with AsyncClient(stack.encoder_address, stack.trainer_address) as client:
            jobs = [await client.train(ready, rank=2, steps=2, seed=seed) for seed in range(2)]
            await asyncio.gather(*(job.result() for job in jobs))
            return await asyncio.gather(*(job.download_all(tmp_path / job.id) for job in jobs))

    first, second = asyncio.run(main())
    assert all("lora.safetensors" in [path.name for path in files] for files in (first, second))
    assert all(path.stat().st_size for path in (*first, *second))
    assert not list(tmp_path.rglob("*.part"))


def test_dataset_of_pairs_is_that_of_the_folder(stack: Stack, ready: str, drawings: Path) -> None:
    pairs = [(path.read_bytes(), path.with_suffix(".txt").read_text()) for path in sorted(drawings.glob("*.png"))]

    async def main() -> tuple[fluxsmith.Dataset, tuple[fluxsmith.Sample, ...]]:
        async with AsyncClient(stack.encoder_address, stack.trainer_address) as client:
            dataset = await client.datasets.create_from(pairs)
            return dataset, await client.datasets.samples(dataset)

    dataset, samples = asyncio.run(main())
    assert dataset.cached_count == len(pairs)  # what was encoded of the folder serves these too
    assert [sample.captions for sample in samples] == [(caption,) for _, caption in pairs]
