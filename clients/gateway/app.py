"""The application: its routes, its errors, its limits."""

import importlib.metadata
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp

from gateway import docs_page, jobs, problems, training
from gateway.bodies import described_schemas
from gateway.browsers import OwnPagesOnly
from gateway.callers import Caller, OneCaller
from gateway.limits import BytesUnderWay
from gateway.problems import Problem
from gateway.schemas import Health
from gateway.settings import GatewaySettings
from gateway.unread import ReadToTheEnd

_TOLD: dict[str, Any] = {"content": {problems.MEDIA_TYPE: {}}, "model": Problem}
_PROBLEM: dict[int | str, dict[str, Any]] = {"default": {"description": "What went wrong", **_TOLD}}


class _Gateway(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """Describe problems under their own media type alone; FastAPI has models under that of the answer."""
        description = super().openapi()
        description["components"]["schemas"].update(described_schemas())
        for operations in description["paths"].values():
            for operation in operations.values():
                for response in operation["responses"].values():
                    if problems.MEDIA_TYPE in response.get("content", {}):
                        schema = {"$ref": f"#/components/schemas/{Problem.__name__}"}
                        response["content"] = {problems.MEDIA_TYPE: {"schema": schema}}
        return description

    def build_middleware_stack(self) -> ASGIApp:
        """Look at who sends before anything else, and give the answer to what was not foreseen its headers too."""
        own_pages_only = OwnPagesOnly(OneCaller(super().build_middleware_stack()), settings=self.state.settings)
        return ReadToTheEnd(own_pages_only)


def create_app(settings: GatewaySettings) -> FastAPI:
    """Make the gateway of these settings. It keeps nothing: any number of them may serve side by side."""
    app = _Gateway(
        title="fluxsmith gateway",
        version=importlib.metadata.version("fluxsmith"),
        description="LoRA training for FLUX.1: pictures with captions in, the address of a LoRA out.",
        generate_unique_id_function=lambda route: route.name,  # what generated clients call their methods
        # FastAPI's own pages load their scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
    )
    app.state.settings = settings
    app.state.bytes_under_way = BytesUnderWay(settings.max_bytes_under_way)
    problems.install(app)
    app.include_router(docs_page.router)
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
