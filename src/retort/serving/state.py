"""What the endpoints share: models, limits, metrics, and the number of requests being served."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from retort.serving.errors import ApiError
from retort.serving.limits import Limits
from retort.serving.metrics import Metrics
from retort.serving.models import Models, ServedModel


class State:
    """State of a server.

    Attributes:
        active: number of requests being served.
        sockets: number of open Realtime sessions.
    """

    def __init__(self, models: Models, limits: Limits, metrics: Metrics) -> None:
        self.models, self.limits, self.metrics = models, limits, metrics
        self.active = 0
        self.sockets = 0
        metrics.gauge("retort_requests_active", "Transcription requests being served.", lambda: self.active)
        metrics.gauge("retort_sockets_active", "Open Realtime sessions.", lambda: self.sockets)

    def model(self, name: str) -> ServedModel:
        """The model of a request; without a name the only model.

        Raises:
            ApiError: there is no such model.
        """
        models = self.models.by_name
        if name in models:
            return models[name]
        if not name and len(models) == 1:
            return next(iter(models.values()))
        names = ", ".join(models)
        if not name:
            raise ApiError(400, f"The request names no model. This server has {names}.", param="model")
        message = f"There is no model '{name[:100]}'. This server has {names}."
        raise ApiError(404, message, param="model", code="model_not_found")

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a request while it is served.

        Raises:
            ApiError: too many are being served.
        """
        if self.active >= self.limits.queue:
            message = f"The server is busy: it is serving {self.active} requests. Try again later."
            raise ApiError(429, message, code="queue_full", retry_after=self.retry_after())
        self.active += 1
        try:
            yield
        finally:
            self.active -= 1

    def retry_after(self) -> int:
        """Seconds after which the queue is expected to be empty, 1 to 60."""
        backlog = max((each.worker.backlog for each in self.models.by_name.values()), default=0.0)
        return min(60, max(1, math.ceil(backlog)))
