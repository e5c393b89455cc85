"""One OpenAI-compatible server as a client sees it: its address, its model, and a streamed answer.

Knows nothing of load, percentiles or terminals. A stream is read to its last byte and judged by the caller:
`Answer` says what came (text times, finish reason, usage, `[DONE]`, an error event) and not whether that is good.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import aiohttp

from capstan_api import names
from capstan_cli.errors import InputError, Unreachable

_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
# One SSE line holds one event; a longer one is not from a server that we know.
_MAX_LINE_BYTES = 1 << 20


@dataclass
class Answer:
    """A streamed answer as far as it came. Times are the loop's clock."""

    status: int = 0
    text: list[str] = field(default_factory=list)
    first_token_at: float | None = None
    last_token_at: float | None = None
    content_events: int = 0
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    error: str | None = None
    done: bool = False
    replica: str | None = None


def base_url(text: str, *, allow_remote: bool) -> str:
    """The server's root without `/v1`; raises `InputError` when malformed, or not this machine and not allowed."""
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        valid = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise InputError(f"{text!r} is not an address such as http://127.0.0.1:8000")
    if parts.hostname not in _LOOPBACK and not allow_remote:
        raise InputError(f"{parts.hostname} is another machine; add --allow-remote if you may send load to it")
    path = parts.path.rstrip("/").removesuffix("/v1")
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def session(timeout_s: float) -> aiohttp.ClientSession:
    """A client without a limit on connections: open-loop load must never wait for one."""
    key = os.environ.get(names.ENV_API_KEY)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
        timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=10),
        headers={"authorization": f"Bearer {key}"} if key else None,
        read_bufsize=_MAX_LINE_BYTES,
    )


async def post(client: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> dict[str, Any]:
    """A JSON answer; raises `Unreachable` with the server's own message."""
    return await _json(client, "POST", url, body)


async def served_model(client: aiohttp.ClientSession, base: str, wanted: str | None) -> tuple[str, int | None]:
    """The model to ask for and its longest context, if told; raises `Unreachable`, naming what is served."""
    listing = await _json(client, "GET", f"{base}/v1/models", None)
    models = [m for m in listing.get("data", []) if isinstance(m, dict) and isinstance(m.get("id"), str)]
    for model in models:
        if wanted in (None, model["id"]):
            length = model.get("max_model_len")
            return model["id"], length if isinstance(length, int) else None
    served = ", ".join(m["id"] for m in models) or "no model at all"
    raise Unreachable(f"{base} does not serve {wanted!r}; it serves {served}")


async def stream(
    client: aiohttp.ClientSession, url: str, body: dict[str, Any], headers: dict[str, str], answer: Answer
) -> AsyncIterator[str]:
    """Post `body` and yield each piece of text as it comes, noting everything in `answer`.

    Raises `aiohttp.ClientError`, `TimeoutError` or `OSError` when the connection fails; `answer` keeps what had come.
    """
    clock = asyncio.get_running_loop().time
    async with client.post(url, json=body, headers=headers) as response:
        answer.status = response.status
        answer.replica = response.headers.get(names.HEADER_REPLICA)
        if response.status != 200:
            answer.error = error_code(await response.content.read(65_536))
            return
        async for line in response.content:
            payload = line.strip()
            if not payload.startswith(b"data:"):
                continue
            payload = payload[5:].strip()
            if payload == b"[DONE]":
                answer.done = True
                continue
            text = _note(payload, answer)
            if text:
                answer.last_token_at = clock()
                answer.first_token_at = answer.first_token_at or answer.last_token_at
                answer.content_events += 1
                yield text


def error_code(body: bytes) -> str:
    """The `code`, `type` or message of an OpenAI error body, short enough to be counted by."""
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return " ".join(body[:80].decode("utf-8", "replace").split()) or "empty body"
    if not isinstance(error, dict):
        return str(error)[:80]
    return str(error.get("code") or error.get("type") or error.get("message") or "unnamed error")[:80]


def _note(payload: bytes, answer: Answer) -> str:
    try:
        event = json.loads(payload)
        if "error" in event:
            answer.error = error_code(payload)
        answer.usage = event.get("usage") or answer.usage
        choices = event.get("choices") or []
        if not choices:
            return ""
        choice = choices[0]
        answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
        text = (choice.get("delta") or {}).get("content") if "delta" in choice else choice.get("text")
    except (ValueError, TypeError, AttributeError, KeyError, IndexError):
        answer.error = "malformed event"
        return ""
    if not isinstance(text, str):
        return ""
    answer.text.append(text)
    return text


async def _json(client: aiohttp.ClientSession, method: str, url: str, body: dict[str, Any] | None) -> dict[str, Any]:
    try:
        async with client.request(method, url, json=body) as response:
            raw = await response.content.read()
            if response.status != 200:
                raise Unreachable(f"{method} {url} answered {response.status}: {error_code(raw)}")
            value = json.loads(raw)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise Unreachable(
            f"nothing answers at {url} ({error or type(error).__name__}); is `capstan up` running there?"
        ) from None
    except ValueError:
        raise Unreachable(f"{method} {url} did not answer with JSON") from None
    if not isinstance(value, dict):
        raise Unreachable(f"{method} {url} did not answer with a JSON object")
    return value
