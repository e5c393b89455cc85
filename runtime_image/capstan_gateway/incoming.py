"""A client's request as the gateway understands it: enough to classify, route and repeat it, and no more.

Whether the parameters make sense is the engine's business; the body goes on byte for byte unless a model alias has to
be replaced. What is refused here is what can be refused without an engine: sizes, what is not JSON, unknown models and
classes. A deployment at zero is therefore never woken by a request that could not be served anyway.
"""

import asyncio
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Final
from uuid import uuid4

import orjson
from starlette.datastructures import Headers
from starlette.types import Receive

from capstan_api.engine_args import SloClass
from capstan_api.names import (
    HEADER_DEADLINE_MS,
    HEADER_REPLICA,
    HEADER_REQUEST_ID,
    HEADER_SLO_CLASS,
    HEADER_WAITED_MS,
)
from capstan_gateway.bodies import Body
from capstan_gateway.classes import ClassTable
from capstan_gateway.errors import BodyTooLarge, InvalidRequest, RequestTimedOut
from capstan_gateway.routing import BYTES_PER_TOKEN, MAX_BLOCKS, TOKENS_PER_BLOCK, prefix_keys

MAX_BODY_BYTES: Final = 8 << 20
BODY_TIMEOUT_S: Final = 60.0
MAX_DEADLINE_MS: Final = 24 * 3600 * 1000
# As engines read them.
_MAX_DIGITS: Final = 9
# Objects and arrays in a body: more than a conversation, or a text of brackets, can have that fits any model's context.
_MAX_CONTAINERS: Final = 1 << 18
# Of a conversation: four for each of the messages that an engine takes.
_MAX_PARTS: Final = 1 << 14

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# Read without complaint, and not to be written again (RFC 9110 §5.5).
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")

# Belong to one connection and not to the message (RFC 9110 §7.6.1), or are written anew by the gateway.
_NOT_FORWARDED: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "host",
        "content-length",
        "accept-encoding",
        "expect",
        "content-type",
        HEADER_SLO_CLASS,
        HEADER_DEADLINE_MS,
        HEADER_REQUEST_ID,
        HEADER_WAITED_MS,
        HEADER_REPLICA,
    }
)


class ClientGone(Exception):
    """The client has closed its connection; there is nobody to answer."""


@dataclass(frozen=True)
class Incoming:
    """One accepted request. Times are monotonic seconds."""

    path: str
    request_id: str
    arrival: float
    slo_class: SloClass
    deadline: float | None
    """The client's own, from its arrival."""
    headers: tuple[tuple[str, str], ...]
    """What is passed on as it came."""
    body: bytes
    keys: tuple[bytes, ...]
    """Prefix keys of the prompt."""
    num_prompt_tokens: int
    """Estimated."""

    def upstream_headers(self, now: float) -> dict[str, str]:
        """Headers of the request to a replica, sent at `now`."""
        headers = dict(self.headers)
        headers["content-type"] = "application/json"
        # A compressed stream would be held back by its compressor.
        headers["accept-encoding"] = "identity"
        headers[HEADER_REQUEST_ID] = self.request_id
        headers[HEADER_SLO_CLASS] = self.slo_class.name
        headers[HEADER_WAITED_MS] = str(round(1000 * (now - self.arrival)))
        if self.deadline is not None:
            # The engine counts from its own receipt of the request.
            headers[HEADER_DEADLINE_MS] = str(max(1, round(1000 * (self.deadline - now))))
        return headers


def request_id_of(headers: Headers) -> str:
    """The client's request id when it is a harmless one, otherwise a new one."""
    given = headers.get(HEADER_REQUEST_ID, "")
    return given if _REQUEST_ID.fullmatch(given) else uuid4().hex


async def read_body(headers: Headers, receive: Receive, account: Body | None = None) -> bytes:
    """The whole body, counted while it comes, and on its account if it has one.

    Raises BodyTooLarge, TooManyBytes, RequestTimedOut and ClientGone.
    """
    declared = headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > MAX_BODY_BYTES:
        raise _too_large()
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > MAX_BODY_BYTES:
                    raise _too_large()
                if account is not None:
                    account.grow(len(chunk))
                chunks.append(chunk)
                if not message.get("more_body", False):
                    return b"".join(chunks)
    except TimeoutError:
        raise RequestTimedOut(f"The body did not arrive within {BODY_TIMEOUT_S:.0f} seconds.") from None


def _too_large() -> BodyTooLarge:
    return BodyTooLarge(f"The body is larger than {MAX_BODY_BYTES} bytes. Send a shorter prompt or fewer at a time.")


def parse(
    path: str,
    headers: Headers,
    body: bytes,
    classes: ClassTable,
    *,
    request_id: str,
    arrival: float,
    prefix_affinity: bool,
) -> Incoming:
    """Understand a request. Raises InvalidRequest and ModelNotFound."""
    document = _json_object(body)
    model = document.get("model")
    if model is not None and not isinstance(model, str):
        raise InvalidRequest("model must be a string.", param="model", code="invalid_type")
    slo_class, engine_model = classes.select(headers.get(HEADER_SLO_CLASS), model)
    if engine_model != model:
        body = _written(document | {"model": engine_model})
    prompt, num_prompt_tokens = canonical_prompt(document)
    return Incoming(
        path=path,
        request_id=request_id,
        arrival=arrival,
        slo_class=slo_class,
        deadline=_deadline(headers.get(HEADER_DEADLINE_MS), arrival),
        headers=tuple(_forwarded(headers)),
        body=body,
        keys=prefix_keys(prompt, engine_model or "") if prefix_affinity else (),
        num_prompt_tokens=num_prompt_tokens,
    )


def _forwarded(headers: Headers) -> Iterator[tuple[str, str]]:
    for name, value in headers.items():
        if name in _NOT_FORWARDED:
            continue
        if _CONTROL.search(value):
            raise InvalidRequest(f"The header {name} holds a control character.", param=name, code="invalid_value")
        yield name, value


def _json_object(body: bytes) -> dict[str, Any]:
    # Seven bytes can become two hundred and more of memory: one body would be the end of a gateway of 256 MiB. Brackets
    # within texts count too, because telling them apart would take as long as reading all.
    if body.count(b"{") + body.count(b"[") > _MAX_CONTAINERS:
        raise InvalidRequest(f"The body has more than {_MAX_CONTAINERS} objects and arrays.", code="invalid_json")
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(
            f"The body is not valid JSON: line {error.lineno}, column {error.colno}.", code="invalid_json"
        ) from None
    if not isinstance(document, dict):
        raise InvalidRequest("The body must be a JSON object.", code="invalid_json")
    return document


def _deadline(header: str | None, arrival: float) -> float | None:
    if header is None:
        return None
    is_number = header.isascii() and header.isdecimal() and len(header) <= _MAX_DIGITS
    if not is_number or not 1 <= int(header) <= MAX_DEADLINE_MS:
        raise InvalidRequest(
            f"The header {HEADER_DEADLINE_MS} takes whole milliseconds from 1 to {MAX_DEADLINE_MS}.",
            param=HEADER_DEADLINE_MS,
            code="invalid_value",
        )
    return arrival + int(header) / 1000


def canonical_prompt(document: dict[str, Any]) -> tuple[bytes, int]:
    """The prompt's bytes in the order in which the engine reads it, four to a token id, and a guess of its tokens.

    Equal beginnings here mean equal beginnings there: tools come first, as chat templates put them there. Whatever has
    an unexpected type contributes nothing, and so does what is beyond any use; the engine will say what is wrong with
    it, and nobody's stream waits while it is looked at here.
    """
    if isinstance(messages := document.get("messages"), list):
        tools = [_written(document["tools"])] if document.get("tools") else []
        parts = chain(tools, chain.from_iterable(map(_message_parts, messages[:_MAX_PARTS])))
        text = b"\0".join(islice(parts, _MAX_PARTS))
        return text, len(text) // BYTES_PER_TOKEN
    prompt = document.get("prompt")
    # Of a batch of prompts the first one decides.
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], list | str):
        prompt = prompt[0]
    if isinstance(prompt, str):
        text = prompt.encode()
        return text, len(text) // BYTES_PER_TOKEN
    if isinstance(prompt, list):
        ids = [i for i in prompt[: MAX_BLOCKS * TOKENS_PER_BLOCK] if isinstance(i, int) and 0 <= i < 2**32]
        return struct.pack(f"<{len(ids)}I", *ids), len(prompt)
    return b"", 0


def _message_parts(message: object) -> Iterator[bytes]:
    if not isinstance(message, dict):
        return
    role, content = message.get("role"), message.get("content")
    yield role.encode() if isinstance(role, str) else b""
    if isinstance(content, str):
        yield content.encode()
    elif isinstance(content, list):
        for part in content:
            text = part.get("text") if isinstance(part, dict) else None
            yield text.encode() if isinstance(text, str) else _written(part)
    if calls := message.get("tool_calls"):
        yield _written(calls)


def _written(part: object) -> bytes:
    """A part of a body as JSON again. Raises InvalidRequest: four times as deep can be read as can be written."""
    try:
        return orjson.dumps(part)
    except orjson.JSONEncodeError:
        raise InvalidRequest("The body is nested too deeply.", code="invalid_json") from None
