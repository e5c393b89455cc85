"""The public application: routes, and errors in OpenAI's shape for everything that is none.

Model list, health and metrics are answered here; what needs an engine goes to the proxy.
"""

import logging
import time
from importlib.metadata import version
from typing import Final

import orjson
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from capstan_api.names import HEADER_REQUEST_ID
from capstan_gateway.auth import RequireBearer
from capstan_gateway.config import LiveConfig
from capstan_gateway.errors import (
    GatewayError,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    ModelNotFound,
    RouteNotFound,
)
from capstan_gateway.incoming import request_id_of
from capstan_gateway.metrics import GatewayMetrics
from capstan_gateway.proxy import Proxy

logger = logging.getLogger(__name__)

OPEN_PATHS: Final = frozenset({"/health", "/livez", "/readyz", "/metrics"})
"""Reachable without the API key: probes and the scraper carry none."""
PROXIED_PATHS: Final = ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize")


def public_app(proxy: Proxy, config: LiveConfig, metrics: GatewayMetrics, api_key: str | None) -> ASGIApp:
    """The application of the public port. `api_key` None means that no key is asked for."""
    created = int(time.time())

    def entry(name: str) -> dict[str, object]:
        # An alias is a way to ask for the first model, which its root names.
        served = config.classes.served_model_names
        root = name if name in served else served[0]
        return {"id": name, "object": "model", "created": created, "owned_by": "capstan", "root": root, "parent": None}

    async def models(_: Request) -> Response:
        return json_response({"object": "list", "data": [entry(name) for name in config.classes.model_names]})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in config.classes.model_names:
            served = ", ".join(config.classes.model_names)
            raise ModelNotFound(f"The requested model does not exist. Served here: {served}.", param="model")
        return json_response(entry(name))

    async def alive(_: Request) -> Response:
        return json_response({"status": "ok"})

    async def ready(_: Request) -> Response:
        # Ready without replicas too: holding requests until there are some is what the gateway is for.
        return json_response({"status": "draining" if proxy.draining else "ok"}, 503 if proxy.draining else 200)

    async def scrape(_: Request) -> Response:
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)

    async def product_version(_: Request) -> Response:
        return json_response({"version": version("capstan")})

    app = application(
        [
            *(Route(path, proxy, methods=["POST"]) for path in PROXIED_PATHS),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/health", alive),
            Route("/livez", alive),
            Route("/readyz", ready),
            Route("/metrics", scrape),
            Route("/version", product_version),
        ]
    )
    return app if api_key is None else RequireBearer(app, token=api_key, open_paths=OPEN_PATHS)


def application(routes: list[Route]) -> Starlette:
    """A Starlette application whose every error has the OpenAI shape."""
    app = Starlette(
        routes=routes,
        exception_handlers={
            GatewayError: _gateway_error,
            HTTPException: _http_error,
            Exception: _internal_error,
        },
    )
    app.router.redirect_slashes = False
    return app


def json_response(body: object, status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, media_type="application/json")


def error_response(request: Request, error: GatewayError) -> Response:
    """The response that an error stands for."""
    headers = {**error.headers(), HEADER_REQUEST_ID: request_id_of(request.headers)}
    return Response(orjson.dumps(error.body()), error.status, headers, "application/json")


async def _gateway_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, GatewayError)
    return error_response(request, error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return error_response(request, RouteNotFound(f"No route {request.method} {request.url.path}."))
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        response = error_response(request, MethodNotAllowed(f"{request.url.path} takes {allowed}."))
        response.headers["allow"] = allowed
        return response
    return error_response(request, InvalidRequest("The request is malformed."))


async def _internal_error(request: Request, error: Exception) -> Response:
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return error_response(request, InternalError("The gateway failed on this request."))
