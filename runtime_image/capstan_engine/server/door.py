"""The outermost layer of every app: request ids, authentication, and the last catch for exceptions.

Pure ASGI around the whole app, so no route can be forgotten: everything that is not in `open_paths` needs the token,
unknown paths included. Decides by the path in the ASGI scope, never by a URL that the Host header could bend.
"""

import hashlib
import hmac
import logging
import re
from time import monotonic
from typing import Final
from uuid import uuid4

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from capstan_api import names
from capstan_engine.server.errors import ApiError, unforeseen

logger = logging.getLogger(__name__)

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Door:
    """`token` None lets everybody in, unless `locked` gives the reason why nobody may pass."""

    def __init__(
        self, app: ASGIApp, *, token: str | None, open_paths: frozenset[str], locked: str | None = None
    ) -> None:
        self._app = app
        self._digest = None if token is None else _digest(token.encode())
        self._open_paths = open_paths
        self._locked = locked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})["arrival"] = monotonic()
        headers = dict(scope["headers"])
        request_id = _request_id(headers.get(names.HEADER_REQUEST_ID.encode()))
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message["headers"], (names.HEADER_REQUEST_ID.encode(), request_id)]
            await send(message)

        refusal = self._refusal(scope["path"], headers.get(b"authorization", b""))
        if refusal is not None:
            await refusal.response()(scope, receive, send_with_id)
            return
        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            logger.debug("client left while sending its body")
        except Exception:  # the last catch: a request's failure must not end the server
            logger.exception("request %s failed", request_id.decode())
            if not started:
                await unforeseen().response()(scope, receive, send_with_id)

    def _refusal(self, path: str, authorization: bytes) -> ApiError | None:
        if path in self._open_paths:
            return None
        if self._locked is not None:
            return ApiError(401, self._locked, code="no_token_configured")
        if self._digest is None:
            return None
        scheme, _, presented = authorization.partition(b" ")
        if scheme.lower() == b"bearer" and hmac.compare_digest(_digest(presented.strip()), self._digest):
            return None
        message = "Missing or wrong bearer token in the Authorization header."
        return ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})


def _digest(token: bytes) -> bytes:
    # Equal lengths, so that the comparison's time says nothing about the token's.
    return hashlib.sha256(token).digest()


def _request_id(presented: bytes | None) -> bytes:
    """The client's id when it is harmless in a log and a header, else a new one."""
    if presented is not None and _REQUEST_ID.fullmatch(presented.decode("latin-1")):
        return presented
    return uuid4().hex.encode()
