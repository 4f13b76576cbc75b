"""Limits of the server."""

from __future__ import annotations

from dataclasses import dataclass

from retort.config.ranges import check_ranges, number


@dataclass(frozen=True)
class Limits:
    """Limits that keep memory and waiting times bounded.

    Attributes:
        megabytes: maximum size of a request's body; a larger one is answered with 413.
        seconds: maximum duration of a file; a longer one is answered with 413.
        queue: maximum number of requests being served; more are answered with 429 and a Retry-After header.
        sockets: maximum number of Realtime sessions.
        timeout: seconds that a request may take, its upload included.
        idle: seconds without a message after which a Realtime session is closed.
        batch_wait: milliseconds that a segment waits for others at most, so that they are recognised as one batch.
        batch_seconds: maximum audio in a batch, padding included.
        batch_size: maximum number of segments in a batch.

    Raises:
        UserError: a number is out of its range.
    """

    megabytes: float = number(25.0, 0.001, 100_000)
    seconds: float = number(3600.0, 1, 864_000)
    queue: int = number(256, 1, 100_000)
    sockets: int = number(32, 0, 100_000)
    timeout: float = number(300.0, 0.1, 86_400)
    idle: float = number(900.0, 0.1, 86_400)
    batch_wait: float = number(10.0, 0, 10_000)
    batch_seconds: float = number(60.0, 1, 10_000)
    batch_size: int = number(16, 1, 1024)

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def bytes(self) -> int:
        """Maximum size of a body in bytes."""
        return int(self.megabytes * 1_000_000)
