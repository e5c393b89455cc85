"""Bearer authentication in front of a whole application: denied unless the path is declared open.

It looks at the path that the application will route by and at nothing else: no Host header, no normalisation.
"""

import hmac
from hashlib import sha256

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from capstan_gateway.errors import Unauthorized
from capstan_gateway.incoming import request_id_of
from capstan_gateway.reply import Reply


class RequireBearer:
    """ASGI middleware. `token` None shuts every path that is not open and answers with `unset_message`."""

    def __init__(
        self, app: ASGIApp, *, token: str | None, open_paths: frozenset[str] = frozenset(), unset_message: str = ""
    ) -> None:
        self._app = app
        self._digest = None if token is None else _digest(token)
        self._open_paths = open_paths
        self._unset_message = unset_message

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self._open_paths:
            headers = Headers(scope=scope)
            if (refusal := self._refusal(headers.get("authorization", ""))) is not None:
                await Reply(send, request_id_of(headers)).fail(refusal)
                return
        await self._app(scope, receive, send)

    def _refusal(self, authorization: str) -> Unauthorized | None:
        if self._digest is None:
            return Unauthorized(self._unset_message)
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(_digest(token.strip()), self._digest):
            return None
        return Unauthorized("A valid key is needed: send it as 'Authorization: Bearer KEY'.")


def _digest(token: str) -> bytes:
    # Equal lengths, so that the comparison's time says nothing about the token's.
    return sha256(token.encode()).digest()
