"""A product's backend on the asynchronous client: a user's pictures come in, a LoRA per user goes out.

    export FILES=loras WEBHOOK=http://127.0.0.1:9999/done
    .venv/bin/uvicorn examples.product_backend:app --app-dir clients

Nothing is kept in memory that a restart would lose: the trainer knows the jobs and whose they are, and the folder has
the files. So on start it goes on with what has no file yet. Its tenant is its own: other programs' jobs are not its.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Annotated

import httpx
from fastapi import FastAPI, HTTPException
from fastapi import Path as InPath
from fastapi.responses import FileResponse
from fluxsmith import AsyncClient, AsyncJobHandle, JobState, errors
from pydantic import Base64Bytes, BaseModel

TENANT = "product"

UserId = Annotated[str, InPath(pattern=r"^[a-z0-9-]{1,64}$")]  # it becomes the name of a file


class Picture(BaseModel):
    """An image file as base64, and what it shows."""

    image: Base64Bytes  # never a user's text as it came: the client would take it for a path on this machine
    caption: str


class Trainings:
    """The trainings of all users: begins them, follows them to their end, keeps the files."""

    def __init__(self, client: AsyncClient, folder: Path, webhook: str) -> None:
        self._client = client
        self._folder = folder
        self._webhook = webhook
        self._following: set[asyncio.Task[None]] = set()

    async def begin(self, user_id: str, pictures: list[Picture]) -> AsyncJobHandle:
        """Queue a job for the user, and follow it from now on."""
        pairs = [(picture.image, picture.caption) for picture in pictures]
        dataset = await self._client.datasets.create_from(pairs, name=f"user {user_id}")
        job = await self._client.train(dataset, user_id=user_id, epochs=1)
        self.follow(job)
        return job

    def file_of(self, job: AsyncJobHandle) -> Path:
        """Where the LoRA of a job is kept."""
        return self._folder / f"{job.snapshot.user_id}-{job.id}.safetensors"

    async def newest(self, user_id: str) -> AsyncJobHandle | None:
        """The user's newest job."""
        async with aclosing(self._client.jobs(user_id=user_id)) as jobs:
            return await anext(jobs, None)

    async def go_on(self) -> None:
        """After a restart, follow every job that may still bring a file."""
        async for job in self._client.jobs():
            wanted = job.snapshot.state not in {JobState.FAILED, JobState.CANCELLED}
            if job.snapshot.user_id and wanted and not self.file_of(job).exists():
                self.follow(job)

    def follow(self, job: AsyncJobHandle) -> None:
        """Fetch the file once the job has ended, and tell the product either way."""
        task = asyncio.create_task(self._fetch(job))
        self._following.add(task)  # asyncio itself keeps no hold on tasks
        task.add_done_callback(self._following.discard)

    async def stop(self) -> None:
        """Leave the jobs to themselves."""
        for task in self._following:
            task.cancel()
        await asyncio.gather(*self._following, return_exceptions=True)

    async def _fetch(self, job: AsyncJobHandle) -> None:
        told = {"user_id": job.snapshot.user_id, "job_id": job.id}
        try:
            await job.result()
            await job.download(self.file_of(job))
            told["state"] = "ready"
        except (errors.JobFailed, errors.JobCancelled) as error:
            told |= {"state": "failed", "reason": error.reason, "remedy": error.remedy}
        if self._webhook:
            async with httpx.AsyncClient() as web:
                await web.post(self._webhook, json=told)


def create_app(folder: Path, webhook: str = "") -> FastAPI:
    """Make the product's application, which keeps files in `folder` and posts to `webhook` when a job has ended."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        folder.mkdir(parents=True, exist_ok=True)
        async with AsyncClient(tenant=TENANT) as client:
            app.state.trainings = trainings = Trainings(client, folder, webhook)
            await trainings.go_on()
            yield
            await trainings.stop()

    app = FastAPI(title="A product", lifespan=lifespan)

    @app.post("/users/{user_id}/lora", status_code=202)
    async def begin(user_id: UserId, pictures: list[Picture]) -> dict[str, str]:
        try:
            job = await app.state.trainings.begin(user_id, pictures)
        except (errors.InvalidRequest, errors.DatasetFailed) as error:
            raise HTTPException(422, str(error)) from error
        except errors.QuotaExceeded as error:
            raise HTTPException(429, str(error)) from error
        return {"job_id": job.id}

    @app.get("/users/{user_id}/lora")
    async def fetch(user_id: UserId) -> FileResponse:
        trainings: Trainings = app.state.trainings
        job = await trainings.newest(user_id)
        if job is None or not trainings.file_of(job).exists():
            raise HTTPException(404, job.snapshot.state if job else "this user has no training")
        return FileResponse(trainings.file_of(job))

    return app


app = create_app(Path(os.environ.get("FILES", "loras")), os.environ.get("WEBHOOK", ""))
