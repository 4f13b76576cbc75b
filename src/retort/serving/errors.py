"""Errors of the server in OpenAI's schema."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An error that a request is answered with.

    Args:
        status: HTTP status.
        message: one or two full sentences: what is wrong, and what to do.
        param: parameter of the request that is wrong.
        code: OpenAI's code, such as `model_not_found`.
        retry_after: seconds after which the client may try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = (
            status,
            message,
            param,
            code,
            retry_after,
        )

    def content(self) -> dict[str, Any]:
        """The object `error` of OpenAI's schema."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"message": self.message, "type": kind, "param": self.param, "code": self.code}

    def response(self) -> JSONResponse:
        """The error as a response."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return JSONResponse({"error": self.content()}, self.status, headers)


def internal_error() -> ApiError:
    """The answer to an unexpected error, whose details are in the log of the server."""
    return ApiError(500, "The server failed on this request. Its log has the reason.", code="internal_error")


async def answer_error(request: Request, error: Exception) -> JSONResponse:
    """Exception handler for :class:`ApiError`."""
    assert isinstance(error, ApiError)
    return error.response()
