"""ASGI middleware: size of bodies, origins, counting, and the answer to unexpected errors."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from retort.serving.errors import ApiError, internal_error
from retort.serving.limits import Limits
from retort.serving.metrics import Metrics

DRAIN_SECONDS = 10.0
"""Time for which the rest of a refused body is read and discarded: many clients read no answer before they sent all."""
LOCAL = ("localhost", "127.0.0.1", "::1")

log = logging.getLogger(__name__)


class Guard:
    """Middleware of the server.

    A page of another origin is refused, unless it was allowed: browsers send forms and open sockets for any page. A
    server on the loopback interface also refuses names of other hosts (DNS rebinding).

    Args:
        origins: origins that are allowed, such as `https://example.org`; `*` allows all.
        local: whether the server listens on the loopback interface.
    """

    def __init__(
        self, app: ASGIApp, limits: Limits, metrics: Metrics, origins: Sequence[str], local: bool
    ) -> None:
        self.app, self.limits, self.metrics, self.origins, self.local = app, limits, metrics, origins, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request or a socket."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        refused = self._refused(Headers(scope=scope))
        if scope["type"] == "websocket":
            if refused is not None:
                await receive()
                await send({"type": "websocket.close", "code": 1008, "reason": refused.message[:120]})
                return
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self.limits.bytes)
        started = time.monotonic()
        try:
            if refused is not None or exchange.too_large():
                answer = refused or exchange.error()
                await answer.response()(scope, receive, exchange.send)
            else:
                await self.app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            pass
        except Exception:
            log.exception("a request failed: %s", scope["path"])
            if not exchange.status:
                await internal_error().response()(scope, receive, exchange.send)
        finally:
            self._count(scope, exchange.status, time.monotonic() - started)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope.get("route")
        path = getattr(route, "path", "other")
        self.metrics.count(
            "retort_requests_total", "Requests by path and status.", path=path, status=str(status)
        )
        self.metrics.observe("retort_request_seconds", "Duration of requests in seconds.", seconds, path=path)

    def _refused(self, headers: Headers) -> ApiError | None:
        host = headers.get("host", "")
        if self.local and host and _host_name(host) not in LOCAL:
            return ApiError(
                403, f"This server does not answer for the host '{host[:100]}'.", code="wrong_host"
            )
        origin = headers.get("origin")
        if origin is None or "*" in self.origins or origin in self.origins:
            return None
        if origin != "null" and urlsplit(origin).netloc == host:
            return None
        return ApiError(
            403,
            f"Pages of {origin[:100]} may not use this server. Start it with --cors to allow it.",
            code="wrong_origin",
        )


def _host_name(host: str) -> str:
    with suppress(ValueError):
        return urlsplit(f"//{host}").hostname or ""
    return ""


class _Exchange:
    """A request whose body is counted, and whose rest is read before an early answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, most: int) -> None:
        headers = Headers(scope=scope)
        stated = headers.get("content-length", "")
        self.stated = int(stated) if stated.isascii() and stated.isdigit() else 0
        self.status = 0
        self._receive, self._send, self._most = receive, send, most
        self._more = self.stated > 0 or "chunked" in headers.get("transfer-encoding", "").lower()
        self._expects = "expect" in headers  # the client waits for an answer before it sends the body
        self._read = 0

    def too_large(self) -> bool:
        """Whether the header states too large a body."""
        return self.stated > self._most

    def error(self) -> ApiError:
        """The answer to too large a body."""
        most = self._most / 1e6
        return ApiError(
            413,
            f"The request is larger than {most:g} MB. Send a shorter or compressed file.",
            code="body_too_large",
        )

    async def receive(self) -> Message:
        """The next message to the application.

        Raises:
            ApiError: the body is too large.
        """
        message = await self._next()
        if self._read > self._most:
            raise self.error()
        return message

    async def send(self, message: Message) -> None:
        """A message of the application."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self._more and not (self._expects and not self._read) and not await self._drained():
                message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
        await self._send(message)

    async def _next(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._read += len(message.get("body", b""))
            self._more = message.get("more_body", False)
        elif message["type"] == "http.disconnect":
            self._more = False
        return message

    async def _drained(self) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while self._more:
                    await self._next()
        return not self._more
