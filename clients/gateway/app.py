"""The application: its routes, its errors, its limits."""

import importlib.metadata
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from gateway import jobs, problems, training
from gateway.callers import Caller
from gateway.limits import BodyLimit, BodyTooLarge
from gateway.problems import Problem
from gateway.schemas import Health
from gateway.settings import GatewaySettings

_TOLD: dict[str, Any] = {"content": {problems.MEDIA_TYPE: {}}, "model": Problem}
_PROBLEM: dict[int | str, dict[str, Any]] = {"default": {"description": "What went wrong", **_TOLD}}


class _Gateway(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """Describe problems under their own media type alone; FastAPI has models under that of the answer."""
        description = super().openapi()
        for operations in description["paths"].values():
            for operation in operations.values():
                for response in operation["responses"].values():
                    if problems.MEDIA_TYPE in response.get("content", {}):
                        schema = {"$ref": f"#/components/schemas/{Problem.__name__}"}
                        response["content"] = {problems.MEDIA_TYPE: {"schema": schema}}
        return description


def create_app(settings: GatewaySettings) -> FastAPI:
    """Make the gateway of these settings. It keeps nothing: any number of them may serve side by side."""
    app = _Gateway(
        title="fluxsmith gateway",
        version=importlib.metadata.version("fluxsmith"),
        description="LoRA training for FLUX.1: pictures with captions in, the address of a LoRA out.",
        generate_unique_id_function=lambda route: route.name,  # what generated clients call their methods
    )
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.state.settings = settings
    problems.install(app)

    @app.exception_handler(BodyTooLarge)
    async def too_large(_: Request, error: BodyTooLarge) -> JSONResponse:
        return problems.respond(error.told)

    app.include_router(training.router, responses=_PROBLEM)
    app.include_router(jobs.router, responses=_PROBLEM)

    @app.get("/healthz", tags=["health"])
    async def healthz() -> Health:
        """Whether the gateway itself answers."""
        return Health(status="ok")

    @app.get(
        "/readyz", tags=["health"], response_model=Health, responses={503: {"description": "One is away", **_TOLD}}
    )
    async def readyz(client: Caller) -> Health | JSONResponse:
        """Whether encoder and trainer answer too, asked with the token that comes; 503 if not."""
        await client.check_services()
        return Health(status="ok")

    return app
