"""The API port: routes, their OpenAPI description, and the way from raw bytes to a validated body.

FastAPI routes and describes; it does not parse. Bodies are read with a byte limit and parsed by `requests.parse`,
because the framework's own path answers NaN with 500 and reads bodies of any size.
"""

import asyncio
from importlib.metadata import version
from typing import Any, Final, TypeVar

from fastapi import FastAPI, Request
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from capstan_engine.errors import CapstanEngineError
from capstan_engine.server import openai, tokens
from capstan_engine.server.answer import Connected
from capstan_engine.server.door import Door
from capstan_engine.server.errors import ApiError, of_status, unforeseen
from capstan_engine.server.front_end import FrontEnd
from capstan_engine.server.lifecycle import Phase
from capstan_engine.server.metrics import CONTENT_TYPE
from capstan_engine.server.requests import (
    Body,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    TokenizeBody,
    TokenizeChatBody,
    parse,
)

MAX_BODY_BYTES: Final = 8 << 20
OPEN_PATHS: Final = frozenset({"/livez", "/readyz", "/startupz", "/health", "/ready", "/metrics"})

B = TypeVar("B", bound=Body)


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every answer with a status of 400 or more."""

    error: ErrorDetail


_BODIES: Final[tuple[type[BaseModel], ...]] = (
    ChatBody,
    CompletionBody,
    TokenizeBody,
    TokenizeChatBody,
    DetokenizeBody,
    ErrorBody,
)
_SCHEMAS: Final = "#/components/schemas/"


def create_app(front: FrontEnd, *, api_key: str | None = None) -> ASGIApp:
    """The application of the API port. With `api_key`, everything but probes and metrics needs it."""
    app = FastAPI(title="Capstan engine", version=version("capstan"), docs_url=None, redoc_url=None)
    _add_probes(app, front)
    _add_generation(app, front)
    _add_models(app, front)
    _add_tokens(app, front)
    _describe(app)
    answer_errors(app)
    return Door(app, token=api_key, open_paths=OPEN_PATHS)


def alive(front: FrontEnd) -> Response:
    """The answer of both ports' /livez. Raises `ApiError` 503 when only a restart can help."""
    reason = front.stuck()
    if reason is not None:
        raise ApiError(503, reason, code="stuck", retry_after=5)
    return JSONResponse({"status": "alive"})


def answer_errors(app: Any) -> None:
    """Give every error of a Starlette application the one shape."""

    async def of_api(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error.response()

    async def of_engine(_: Request, error: Exception) -> Response:
        assert isinstance(error, CapstanEngineError)
        return ApiError.from_engine(error).response()

    async def of_routing(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        detail = f"No such route: {request.method} {request.url.path}" if error.status_code == 404 else error.detail
        return of_status(error.status_code, detail, dict(error.headers or {})).response()

    async def of_surprise(_: Request, error: Exception) -> Response:
        # Starlette raises it once more after this answer; the door logs it there.
        return unforeseen().response()

    app.add_exception_handler(Exception, of_surprise)
    app.add_exception_handler(ApiError, of_api)
    app.add_exception_handler(CapstanEngineError, of_engine)
    app.add_exception_handler(HTTPException, of_routing)


async def read_body(request: Request, limit: int = MAX_BODY_BYTES) -> bytes:
    """The body, counted while it arrives. Raises `ApiError` 413 as soon as it is too long."""
    too_long = ApiError(413, f"The body exceeds {limit} bytes.", code="body_too_large", headers={"connection": "close"})
    declared = request.headers.get("content-length", "0")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > limit:
        raise too_long
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_long
    return bytes(body)


def _add_probes(app: FastAPI, front: FrontEnd) -> None:
    @app.get("/livez", tags=["probes"], summary="No restart is needed", responses=_errors(503))
    @app.head("/livez", include_in_schema=False)
    async def livez() -> Response:
        return alive(front)

    @app.get("/startupz", tags=["probes"], summary="The model is loaded", responses=_errors(503))
    @app.head("/startupz", include_in_schema=False)
    async def startupz() -> Response:
        if front.lifecycle.phase is Phase.LOADING:
            raise ApiError(503, f"{front.startup().message}.", code="loading", retry_after=5)
        return JSONResponse({"status": "started"})

    @app.get("/health", tags=["probes"], summary="The engine's loop turns", responses=_errors(503))
    @app.head("/health", include_in_schema=False)
    async def health() -> Response:
        reason = front.unhealthy()
        if reason is not None:
            raise ApiError(503, reason, code="unhealthy", retry_after=5)
        return JSONResponse({"status": front.lifecycle.phase})

    @app.get("/ready", tags=["probes"], summary="Requests are accepted", responses=_errors(503))
    @app.head("/ready", include_in_schema=False)
    @app.get("/readyz", tags=["probes"], summary="Requests are accepted", responses=_errors(503), operation_id="readyz")
    @app.head("/readyz", include_in_schema=False)
    async def ready() -> Response:
        if front.lifecycle.phase is not Phase.READY:
            raise ApiError(503, f"This server is {front.lifecycle.phase}.", code=front.lifecycle.phase, retry_after=5)
        return JSONResponse({"status": "ready"})

    @app.get("/metrics", tags=["probes"], summary="Prometheus metrics")
    @app.head("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        # A scrape takes milliseconds: beside the loop it delays no stream.
        page = await asyncio.to_thread(front.metrics.render)
        return Response(page, headers={"content-type": CONTENT_TYPE})


def _add_generation(app: FastAPI, front: FrontEnd) -> None:
    @app.post("/v1/chat/completions", tags=["generation"], openapi_extra=_takes(ChatBody), responses=_GENERATION_ERRORS)
    async def chat_completions(request: Request) -> Response:
        return await _generating(front, request, ChatBody, "chatcmpl")

    @app.post(
        "/v1/completions", tags=["generation"], openapi_extra=_takes(CompletionBody), responses=_GENERATION_ERRORS
    )
    async def completions(request: Request) -> Response:
        return await _generating(front, request, CompletionBody, "cmpl")


async def _generating(front: FrontEnd, request: Request, kind: type[B], prefix: str) -> Response:
    with front.counting_refusals():
        front.lifecycle.check()
        body = parse(kind, await read_body(request))
        assert isinstance(body, ChatBody | CompletionBody)
        call = front.names.open(prefix, body.model, request.headers, request.state.arrival)
    return Connected(lambda send: openai.generate(front, body, call, send))


def _add_models(app: FastAPI, front: FrontEnd) -> None:
    @app.get("/v1/models", tags=["models"])
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [_model_entry(front, name) for name in front.names.all]})

    @app.get("/v1/models/{model_id:path}", tags=["models"], responses=_errors(404))
    async def model(model_id: str) -> Response:
        return JSONResponse(_model_entry(front, front.names.check(model_id)))

    @app.get("/version", tags=["models"])
    async def show_version() -> Response:
        return JSONResponse({"version": app.version})


def _model_entry(front: FrontEnd, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": front.created,
        "owned_by": "capstan",
        "root": front.names.served[0],
        "parent": None,
        "max_model_len": front.max_model_len,
    }


def _add_tokens(app: FastAPI, front: FrontEnd) -> None:
    either = {"anyOf": [{"$ref": _SCHEMAS + "TokenizeBody"}, {"$ref": _SCHEMAS + "TokenizeChatBody"}]}

    @app.post("/tokenize", tags=["tokens"], openapi_extra=_takes_schema(either), responses=_errors(400, 404, 413, 503))
    async def tokenize(request: Request) -> Response:
        raw = await read_body(request)
        return JSONResponse(await tokens.tokenize(front.names, front.model, raw))

    @app.post(
        "/detokenize", tags=["tokens"], openapi_extra=_takes(DetokenizeBody), responses=_errors(400, 404, 413, 503)
    )
    async def detokenize(request: Request) -> Response:
        body = parse(DetokenizeBody, await read_body(request))
        return JSONResponse(await tokens.detokenize(front.names, front.model, body))

    @app.get("/tokenizer_info", tags=["tokens"], responses=_errors(503))
    async def tokenizer_info() -> Response:
        return JSONResponse(tokens.info(front.model))


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    content = {"application/json": {"schema": {"$ref": _SCHEMAS + "ErrorBody"}}}
    return {status: {"description": of_status(status).message, "content": content} for status in (401, *statuses)}


_GENERATION_ERRORS: Final = _errors(400, 404, 408, 413, 429, 500, 503)


def _takes(body: type[BaseModel]) -> dict[str, Any]:
    return _takes_schema({"$ref": _SCHEMAS + body.__name__})


def _takes_schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _describe(app: FastAPI) -> None:
    """Add the bodies, which FastAPI does not see, to the served OpenAPI document."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        document = made()
        _, defined = models_json_schema([(body, "validation") for body in _BODIES], ref_template=_SCHEMAS + "{model}")
        document.setdefault("components", {}).setdefault("schemas", {}).update(defined["$defs"])
        return document

    app.openapi = openapi  # type: ignore[method-assign]
