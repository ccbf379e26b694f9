"""AsyncClient on the whole stack: a run watched through the death of the trainer, files fetched side by side."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from urllib.request import Request, urlopen

import fluxsmith
from fluxsmith import AsyncClient, StateChanged, StepsCompleted
from fluxsmith._download import part_of

from services.stack import Stack
from tests.integration.conftest import client_of


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


def test_download_asks_the_store_only_for_the_rest(stack: Stack, ready: str, tmp_path: Path) -> None:
    with client_of(stack) as client:
        job = client.train(ready, rank=2, steps=2)
        result = job.result()
        whole = job.download(tmp_path / "whole").read_bytes()
        located = job._locate("")
        rest = Request(located.url, headers={"Range": "bytes=1000-"})  # noqa: S310
        with urlopen(rest) as answer:  # noqa: S310
            assert (answer.status, answer.read()) == (206, whole[1000:])
        target = tmp_path / "resumed"
        part_of(target, result.lora_digest).write_bytes(whole[:1000])
        assert job.download(target).read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["resumed", "whole"]


def test_dataset_of_pairs_is_that_of_the_folder(stack: Stack, ready: str, drawings: Path) -> None:
    pairs = [(path.read_bytes(), path.with_suffix(".txt").read_text()) for path in sorted(drawings.glob("*.png"))]

    async def main() -> tuple[fluxsmith.Dataset, tuple[fluxsmith.Sample, ...]]:
        async with AsyncClient(stack.encoder_address, stack.trainer_address) as client:
            dataset = await client.datasets.create_from(pairs)
            return dataset, await client.datasets.samples(dataset)

    dataset, samples = asyncio.run(main())
    assert dataset.cached_count == len(pairs)  # what was encoded of the folder serves these too
    assert [sample.captions for sample in samples] == [(caption,) for _, caption in pairs]
