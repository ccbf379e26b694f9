"""AsyncClient: events through breaks, calls that end with their iterator or task, a loop that never waits."""

# ruff: noqa: N802  # names of calls are the contract's

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import fluxsmith
import grpc
import pytest
from fluxsmith import AsyncClient, CaptionedImage, Client, RetryPolicy, errors
from fluxsmith._async._fetch import Located, fetch
from fluxsmith._download import part_of
from fluxsmith.v1 import encoder_pb2, encoder_pb2_grpc, trainer_pb2, trainer_pb2_grpc

from tests.clients.recording import CONTENT, DIGEST, Recorder
from tests.faults.proxy import FaultProxy, Faults

_Answer = TypeVar("_Answer")

LAST = 10
SOON_S = 60


class Trainer(trainer_pb2_grpc.TrainerServiceServicer):
    """A job `j` of ten events, whose streams break after each three; an `endless` one stays open after the last."""

    def __init__(self) -> None:
        self.endless = False
        self.streams: list[int] = []
        self.ended = threading.Event()

    def GetTrainingJob(self, _: Any, __: Any) -> trainer_pb2.GetTrainingJobResponse:
        state = trainer_pb2.TRAINING_JOB_STATE_RUNNING if self.endless else trainer_pb2.TRAINING_JOB_STATE_SUCCEEDED
        job = trainer_pb2.TrainingJob(job_id="j", state=state, last_sequence=LAST)
        job.result.lora_uri = "s3://b/k"
        return trainer_pb2.GetTrainingJobResponse(job=job)

    def WatchTrainingJob(self, request: Any, context: Any) -> Iterator[trainer_pb2.WatchTrainingJobResponse]:
        self.streams.append(request.after_sequence)
        context.add_callback(self.ended.set)
        first = request.after_sequence + 1
        for sequence in range(first, LAST + 1):
            if sequence == first + 3 and not self.endless:
                context.abort(grpc.StatusCode.UNAVAILABLE, "broken")
            event = trainer_pb2.TrainingEvent(sequence=sequence, warning=trainer_pb2.JobWarning(message="w"))
            yield trainer_pb2.WatchTrainingJobResponse(event=event)
        if self.endless:
            self.ended.wait(SOON_S)


class Encoder(encoder_pb2_grpc.EncoderServiceServicer):
    """Takes uploads and never says that it has them."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.ended = threading.Event()

    def UploadSamples(self, _: Any, context: Any) -> encoder_pb2.UploadSamplesResponse:
        self.begun.set()
        context.add_callback(self.ended.set)
        self.ended.wait(SOON_S)
        return encoder_pb2.UploadSamplesResponse()


@pytest.fixture
def trainer() -> Trainer:
    return Trainer()  # type: ignore[abstract]  # the other calls are not made


@pytest.fixture
def encoder() -> Encoder:
    return Encoder()  # type: ignore[abstract]


@pytest.fixture
def address(trainer: Trainer, encoder: Encoder) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(4))
    trainer_pb2_grpc.add_TrainerServiceServicer_to_server(trainer, server)
    encoder_pb2_grpc.add_EncoderServiceServicer_to_server(encoder, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def run(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """Run a coroutine in a loop that tells of everything left undone; it must tell of nothing."""
    yield lambda coroutine: asyncio.run(coroutine, debug=True)
    gc.collect()
    assert not [record for record in caplog.records if record.name == "asyncio" and "took" not in record.message]


async def _until(met: Callable[[], bool]) -> None:
    """Wait for what the services are to see first."""
    async with asyncio.timeout(SOON_S):
        while not met():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def a_job(address: str) -> AsyncIterator[fluxsmith.AsyncJobHandle]:
    async with AsyncClient(address, address, retry=RetryPolicy(first_delay_s=0.01)) as client:
        yield await client.job("j")


def test_watch_goes_on_after_breaks_without_losing_or_repeating(address: str, trainer: Trainer, run: Any) -> None:
    async def main() -> list[int]:
        async with a_job(address) as job:
            return [event.sequence async for event in job.watch()]

    assert run(main()) == list(range(1, LAST + 1))
    assert trainer.streams == [0, 3, 6, 9]


def test_result_waits_for_the_end(address: str, trainer: Trainer, run: Any) -> None:
    async def main() -> fluxsmith.TrainingResult:
        async with a_job(address) as job:
            job.snapshot = fluxsmith.TrainingJob(
                id="j", state=fluxsmith.JobState.RUNNING, config=fluxsmith.TrainConfig(), dataset_id="d"
            )
            return await job.result()

    assert run(main()).lora_uri == "s3://b/k"
    assert trainer.streams[0] == 0


def test_wait_that_is_too_long_ends_and_ends_its_call(address: str, trainer: Trainer, run: Any) -> None:
    trainer.endless = True

    async def main() -> None:
        async with a_job(address) as job:
            with pytest.raises(errors.DeadlineExceeded) as caught:
                await job.wait(timeout_s=0.3)
            assert caught.value.reason == "WAIT_TIMEOUT"

    run(main())
    assert not trainer.streams or trainer.ended.wait(SOON_S)  # none where the time was over before it began


def test_calls_under_way_tell_that_the_client_was_closed(
    address: str, trainer: Trainer, encoder: Encoder, run: Any
) -> None:
    trainer.endless = True

    async def main() -> list[BaseException | None]:
        async with AsyncClient(address, address) as client, asyncio.timeout(SOON_S):
            job = await client.job("j")

            async def watched() -> None:
                async for _ in job.watch():
                    pass

            async def sent() -> None:
                image = CaptionedImage(name="a", captions=("a",), content=CONTENT)
                await client.datasets.upload("d", [image])

            tasks = [asyncio.create_task(watched()), asyncio.create_task(sent())]
            await _until(lambda: bool(trainer.streams) and encoder.begun.is_set())
            await client.close()
            await asyncio.wait(tasks)
            return [None if task.cancelled() else task.exception() for task in tasks]

    assert [type(error) for error in run(main())] == [RuntimeError, RuntimeError]


def test_threads_are_told_that_their_client_was_closed(address: str, trainer: Trainer, encoder: Encoder) -> None:
    trainer.endless = True
    client = Client(address, address)
    job = client.job("j")
    image = CaptionedImage(name="a", captions=("a",), content=CONTENT)
    with ThreadPoolExecutor(2) as threads:
        under_way: list[Future[Any]] = [
            threads.submit(lambda: list(job.watch())),
            threads.submit(client.datasets.upload, "d", [image]),
        ]
        assert encoder.begun.wait(SOON_S)
        asyncio.run(_until(lambda: bool(trainer.streams)))
        client.close()
        told = [type(each.exception(SOON_S)) for each in under_way]
    assert told == [RuntimeError, RuntimeError]


@pytest.mark.parametrize("leave", ["close", "break", "cancel"])
def test_leaving_early_ends_the_call(address: str, trainer: Trainer, run: Any, leave: str) -> None:
    trainer.endless = True

    async def main() -> None:
        async with a_job(address) as job:
            if leave == "close":
                async with aclosing(job.watch()) as events:
                    await anext(events)
            elif leave == "break":
                async for _ in job.watch():
                    break
            else:
                task = asyncio.create_task(_drain(job))
                await _until(lambda: bool(trainer.streams))
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert await asyncio.to_thread(trainer.ended.wait, SOON_S)

    run(main())


async def _drain(job: fluxsmith.AsyncJobHandle) -> None:
    async for _ in job.watch():
        pass


def test_cancelling_an_upload_ends_its_calls(address: str, encoder: Encoder, run: Any) -> None:
    images = [CaptionedImage(content=bytes(3_000_000), captions=("a",), name=f"{number}") for number in range(3)]

    async def main() -> None:
        async with AsyncClient(address, address) as client:
            task = asyncio.create_task(client.datasets.upload("d", images))
            await _until(encoder.begun.is_set)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(encoder.ended.wait, SOON_S)

    run(main())


async def _ticks(during: Coroutine[Any, Any, _Answer], *, every_s: float = 0.01) -> int:
    """How often the loop came round while the task ran."""
    task, count = asyncio.create_task(during), 0
    while not task.done():
        await asyncio.sleep(every_s)
        count += 1
    task.result()
    return count


def slow_file(store: FaultProxy, target: Path) -> Coroutine[Any, Any, None]:
    async def locate() -> Located:
        return Located(url=f"http://{store.endpoint}/file", size_bytes=len(CONTENT), content_digest=DIGEST)

    return fetch(locate, target, deadlines=fluxsmith.Deadlines(), retry=RetryPolicy())


@pytest.fixture
def slow_store(recording_store_url: str) -> Iterator[FaultProxy]:
    with FaultProxy(upstream=recording_store_url.removeprefix("http://").partition("/")[0]) as proxy:
        proxy.faults = Faults(delay_s=0.5)
        yield proxy


def test_loop_goes_on_during_a_download(slow_store: FaultProxy, tmp_path: Path, run: Any) -> None:
    assert run(_ticks(slow_file(slow_store, tmp_path / "x"))) > 10
    assert (tmp_path / "x").read_bytes() == CONTENT


def test_cancelled_download_leaves_nothing_under_the_name(slow_store: FaultProxy, tmp_path: Path, run: Any) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(slow_file(slow_store, tmp_path / "x"), 0.1)

    run(main())  # its thread has ended with the loop
    assert set(tmp_path.iterdir()) <= {part_of(tmp_path / "x", DIGEST)}


def test_client_is_made_before_its_loop_and_ends_with_its_block(address: str, run: Any) -> None:
    client = AsyncClient(address, address)

    async def main() -> None:
        async with client:
            await client.job("j")
        with pytest.raises(RuntimeError, match="the client is closed"):
            await client.job("j")

    run(main())


def test_dataset_to_lora(recorder: Recorder, folder: Path, tmp_path: Path, run: Any) -> None:
    async def main() -> list[str]:
        async with AsyncClient(recorder.address, recorder.address) as client:
            dataset = await client.datasets.create_from_folder(folder)
            job = await client.train(dataset, rank=4)
            await job.download(tmp_path / "ink.safetensors")
            return [listed.id async for listed in client.jobs()]

    assert run(main()) == ["j"]
    assert (tmp_path / "ink.safetensors").read_bytes() == CONTENT
    assert recorder.names()[-3:] == ["CreateTrainingJob", "CreateDownloadUrl", "ListTrainingJobs"]
