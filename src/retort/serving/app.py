"""The application: routes, pages and error handlers."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute

from retort.serving.errors import ApiError, answer_error
from retort.serving.guard import Guard
from retort.serving.realtime import realtime
from retort.serving.state import State
from retort.serving.transcriptions import transcriptions

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' blob:; style-src 'unsafe-inline'; img-src data:; "
    "connect-src 'self'; media-src blob:; worker-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content security policy of the page: nothing of other hosts."""


def build_app(state: State, origins: Sequence[str] = (), local: bool = True) -> Starlette:
    """The ASGI application.

    Args:
        origins: origins whose pages may use the server (CORS), in addition to its own page.
        local: whether it listens on the loopback interface; other host names are then refused.
    """
    middleware = [Middleware(Guard, limits=state.limits, metrics=state.metrics, origins=origins, local=local)]
    if origins:
        allowed: dict[str, Any] = {
            "allow_origins": list(origins),
            "allow_methods": ["*"],
            "allow_headers": ["*"],
        }
        middleware.append(Middleware(CORSMiddleware, **allowed))
    started = int(time.time())

    def described(name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": started, "owned_by": "retort"}

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [described(name) for name in state.models.by_name]})

    async def model(request: Request) -> Response:
        return JSONResponse(described(state.model(request.path_params["name"]).name))

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok", "models": list(state.models.by_name)})

    async def metrics(_: Request) -> Response:
        return PlainTextResponse(state.metrics.text(), media_type="text/plain; version=0.0.4")

    async def page(_: Request) -> Response:
        headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}
        return HTMLResponse(
            files("retort.serving").joinpath("page.html").read_text(encoding="utf-8"), headers=headers
        )

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        state.models.close()

    app = Starlette(
        routes=[
            Route("/", page),
            Route("/healthz", health),
            Route("/metrics", metrics),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/v1/audio/transcriptions", transcriptions, methods=["POST"]),
            WebSocketRoute("/v1/realtime", realtime),
        ],
        middleware=middleware,
        exception_handlers={ApiError: answer_error, HTTPException: _answer_http},
        lifespan=lifespan,
    )
    app.state.retort = state
    return app


async def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    message = f"{request.method} {request.url.path[:100]}: {error.detail}."
    return ApiError(error.status_code, message, code=code).response()
