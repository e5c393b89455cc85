"""The admin application: the operator's side of the gateway, on a port of its own behind a token of its own.

Without a token in the environment the whole port refuses: there is no open mode to forget about.
"""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from capstan_api.engine_args import GatewayArgs
from capstan_api.names import ENV_ADMIN_TOKEN
from capstan_api.replicas import GatewayState, ReplicaTableUpdate
from capstan_gateway.app import application
from capstan_gateway.auth import RequireBearer
from capstan_gateway.errors import InvalidRequest
from capstan_gateway.exchange import Fleet
from capstan_gateway.incoming import ClientGone, read_body
from capstan_gateway.proxy import Proxy

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=BaseModel)


class DrainRequest(BaseModel):
    """Body of `POST /admin/drain`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    timeout_seconds: float | None = Field(default=None, ge=0, le=86400, allow_inf_nan=False)


def admin_app(
    proxy: Proxy,
    fleet: Fleet,
    *,
    configure: Callable[[GatewayArgs], None],
    drain: Callable[[float | None], None],
    token: str | None,
) -> ASGIApp:
    """The application of the admin port.

    `configure` raises ValueError for what it does not take; `drain` takes a timeout in seconds, None for the declared
    one.
    """
    started = time.monotonic()

    async def read_replicas(_: Request) -> Response:
        return _model_response(fleet.table.status())

    async def replace_replicas(request: Request) -> Response:
        if fleet.table.replace(_validated(ReplicaTableUpdate, await _body(request))):
            rows = ", ".join(f"{replica.id} {replica.state}" for replica in fleet.table)
            logger.info("replicas: %s", rows or "none")
        return _model_response(fleet.table.status())

    async def read_config(_: Request) -> Response:
        return _model_response(fleet.config.args)

    async def replace_config(request: Request) -> Response:
        args = _validated(GatewayArgs, await _body(request))
        try:
            configure(args)
        except ValueError as error:
            raise InvalidRequest(f"{error}.", param="slo_classes", code="invalid_value") from None
        return _model_response(fleet.config.args)

    async def read_state(_: Request) -> Response:
        return _model_response(state())

    async def start_drain(request: Request) -> Response:
        drain(_validated(DrainRequest, await _body(request) or b"{}").timeout_seconds)
        return _model_response(state())

    def state() -> GatewayState:
        return GatewayState(
            held=len(fleet.room),
            in_flight=fleet.table.num_in_flight,
            open=proxy.num_open,
            draining=proxy.draining,
            uptime_seconds=time.monotonic() - started,
            routed={reason.value: count for reason, count in fleet.metrics.routed.items()},
            table=fleet.table.status(),
        )

    app = application(
        [
            Route("/admin/replicas", read_replicas, methods=["GET"]),
            Route("/admin/replicas", replace_replicas, methods=["PUT"]),
            Route("/admin/config", read_config, methods=["GET"]),
            Route("/admin/config", replace_config, methods=["PUT"]),
            Route("/admin/state", read_state),
            Route("/admin/drain", start_drain, methods=["POST"]),
        ]
    )
    return RequireBearer(app, token=token, unset_message=f"The admin port is shut: {ENV_ADMIN_TOKEN} is not set.")


def _validated(model: type[M], body: bytes) -> M:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "body"
        raise InvalidRequest(f"{where}: {first['msg']}.", param=where, code="invalid_value") from None


async def _body(request: Request) -> bytes:
    try:
        return await read_body(request.headers, request.receive)
    except ClientGone:
        raise InvalidRequest("The body is incomplete.") from None


def _model_response(model: BaseModel) -> Response:
    return Response(model.model_dump_json(), media_type="application/json")
