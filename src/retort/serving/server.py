"""Starting and stopping the server."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence

import uvicorn

from retort.common.errors import UserError
from retort.decoding.options import GREEDY, DecodingOptions
from retort.serving.app import build_app
from retort.serving.limits import Limits
from retort.serving.metrics import Metrics
from retort.serving.models import Models
from retort.serving.state import State

LARGEST_MESSAGE = 1 << 24
"""Bytes of a WebSocket message."""


class Server(uvicorn.Server):
    """A server with its models loaded; :meth:`run` serves until SIGINT or SIGTERM.

    It then refuses new connections, answers what was accepted, and ends.

    Args:
        sources: models, as `NAME=MODEL` or `MODEL`, each opened by :func:`retort.load`.
        host: address to listen on.
        port: port; 0 chooses a free one.
        options: decoding options of all models.
        origins: allowed origins of other pages (CORS).
        chunk: frames of a chunk of models that were trained in chunks; 0 for the smallest of the training.

    Attributes:
        state: models, limits and metrics.
        port: the port it listens on.

    Raises:
        UserError: a model cannot be opened, or the address cannot be used.
    """

    def __init__(
        self,
        sources: Sequence[str],
        host: str = "127.0.0.1",
        port: int = 8000,
        limits: Limits | None = None,
        options: DecodingOptions = GREEDY,
        origins: Sequence[str] = (),
        log_level: str = "warning",
        chunk: int = 0,
    ) -> None:
        self.socket = listen(host, port)
        self.host, self.port = host, int(self.socket.getsockname()[1])
        limits, metrics = limits or Limits(), Metrics()
        try:
            self.state = State(Models(sources, options, limits, metrics, chunk), limits, metrics)
        except BaseException:
            self.socket.close()
            raise
        config = uvicorn.Config(
            build_app(self.state, origins, is_loopback(host)),
            log_level=log_level,
            access_log=False,
            http="h11",
            ws="websockets-sansio",
            ws_max_size=LARGEST_MESSAGE,
            lifespan="on",
            server_header=False,
            timeout_graceful_shutdown=int(limits.timeout) + 1,
            timeout_keep_alive=30,
            proxy_headers=False,
        )
        super().__init__(config)

    def serve_until_stopped(self, started: Callable[[], None] = lambda: None) -> None:
        """Serve; `started` is called before the first connection is accepted."""
        started()
        self.run(sockets=[self.socket])


def listen(host: str, port: int) -> socket.socket:
    """A socket on an address.

    Raises:
        UserError: it cannot be used.
    """
    try:
        kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        bound = socket.socket(kind, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(1024)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot listen there ({reason})", where=f"{host}:{port}", remedy="Give another --host or --port"
        ) from None
    return bound


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
