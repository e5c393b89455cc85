"""Errors as clients see them: one shape, `{"error": {message, type, param, code}}`, for every route and status.

Knows no route. No text of an unforeseen exception ever reaches a client: those become a bare 500 and a log entry.
"""

from http import HTTPStatus
from typing import Any, Final, Self

import orjson
from pydantic import ValidationError
from starlette.responses import Response

from capstan_api.names import ERROR_ENGINE_DEAD
from capstan_engine.errors import CapstanEngineError, QueueFull, RequestError, RequestTooLarge

INVALID: Final = "invalid_request_error"
_TYPES: Final = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer other than success. `retry_after` (seconds) becomes the header of that name."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["retry-after"] = str(max(1, round(retry_after)))

    @classmethod
    def invalid(cls, param: str | None, message: str, *, code: str | None = None) -> Self:
        """400: a field of the request is wrong."""
        return cls(400, message, param=param, code=code)

    @classmethod
    def from_engine(cls, error: CapstanEngineError) -> Self:
        """What an error of the engine's own tree means to a client."""
        match error:
            case QueueFull():
                return cls(429, str(error), code="queue_full", retry_after=error.retry_after_seconds)
            case RequestTooLarge():
                return cls(400, str(error), param=error.param, code="context_length_exceeded")
            case RequestError():
                return cls(400, str(error), param=error.param)
            case _:
                return cls(503, "The engine has stopped and is being restarted.", code=ERROR_ENGINE_DEAD, retry_after=5)

    @classmethod
    def from_validation(cls, error: ValidationError, body: Any) -> Self:
        """400 that names the field which pydantic objects to; never echoes the value."""
        # A field of several possible types fails once per type; the error that got deepest into the body is meant.
        found = [
            (_path(e["loc"], body, missing=e["type"] == "missing"), e["msg"]) for e in error.errors(include_input=False)
        ]
        param, _ = max(found, key=lambda each: each[0].count(".") + each[0].count("["))
        messages = list(dict.fromkeys(message for path, message in found if path == param))
        return cls.invalid(param or None, f"Invalid value for '{param or 'body'}': {' or '.join(messages)}.")

    @property
    def type(self) -> str:
        return _TYPES.get(self.status, INVALID if self.status < 500 else "server_error")

    def body(self) -> bytes:
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return orjson.dumps({"error": error})

    def response(self) -> Response:
        return Response(self.body(), self.status, self.headers, "application/json")


def unforeseen() -> ApiError:
    """500 for an exception that nobody planned for; its text stays in the log."""
    return ApiError(500, "Internal error. The server's log has the details.", code="internal_error")


def of_status(status: int, detail: str | None = None, headers: dict[str, str] | None = None) -> ApiError:
    """The error of a routing failure such as 404 or 405."""
    return ApiError(status, detail or HTTPStatus(status).phrase, headers=headers)


def _path(loc: tuple[int | str, ...], body: Any, *, missing: bool) -> str:
    """`messages[0].content`: the part of pydantic's location that exists in the body, so without names of types."""
    path, here = "", body
    for step in loc:
        if isinstance(here, dict) and isinstance(step, str) and step in here:
            path, here = f"{path}.{step}" if path else step, here[step]
        elif isinstance(here, list) and isinstance(step, int) and step < len(here):
            path, here = f"{path}[{step}]", here[step]
        elif missing and isinstance(here, dict) and step == loc[-1]:
            path = f"{path}.{step}" if path else str(step)
    return path
