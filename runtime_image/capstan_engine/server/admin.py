"""The admin port: what the operator reads and moves. Limits, drain, state, recent steps, what the model takes.

Its own port and its own token, so that no key of a client opens it. Without a token in the environment it is locked,
and says so: never open by accident.
"""

import re
from time import monotonic
from typing import Annotated, Final, TypeVar

import msgspec
import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from capstan_api import names
from capstan_api.limits import LimitsPatch, LimitsState
from capstan_engine.server.app import alive, answer_errors, read_body
from capstan_engine.server.door import Door
from capstan_engine.server.errors import ApiError
from capstan_engine.server.front_end import FrontEnd
from capstan_engine.server.lifecycle import Phase
from capstan_engine.server.limits import OutsideEnvelope, Stale

_MAX_BODY_BYTES: Final = 64 << 10
_ETAG: Final = re.compile(r'(?:W/)?"(\d{1,18})"|(\d{1,18})')


class DrainBody(BaseModel):
    """Body of POST /admin/drain; it may be empty."""

    model_config = ConfigDict(strict=True, extra="forbid")

    timeout_seconds: Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False)] | None = None


class StepsQuery(BaseModel):
    """Query of GET /admin/steps. Queries are text, so numbers are read from strings here."""

    after: int = Field(default=0, ge=0, le=2**63 - 1)
    limit: int = Field(default=1000, ge=1, le=4096)


def create_admin_app(front: FrontEnd, *, token: str | None) -> ASGIApp:
    """The application of the admin port. `token` None locks all but the probes."""
    admin = _Admin(front)
    app = Starlette(
        routes=[
            Route("/livez", admin.livez),
            Route("/readyz", admin.readyz),
            Route("/admin/limits", admin.limits, methods=["GET"]),
            Route("/admin/limits", admin.patch_limits, methods=["PATCH"]),
            Route("/admin/drain", admin.drain, methods=["POST"]),
            Route("/admin/startup", admin.startup),
            Route("/admin/figures", admin.figures),
            Route("/admin/state", admin.state),
            Route("/admin/steps", admin.steps),
        ]
    )
    answer_errors(app)
    locked = None if token else f"The admin port is locked: set {names.ENV_ADMIN_TOKEN} in the engine's environment."
    return Door(app, token=token, open_paths=frozenset({"/livez", "/readyz"}), locked=locked)


class _Admin:
    def __init__(self, front: FrontEnd) -> None:
        self._front = front

    async def livez(self, _: Request) -> Response:
        return alive(self._front)

    async def readyz(self, _: Request) -> Response:
        self._front.lifecycle.check()
        return JSONResponse({"status": "ready"})

    async def limits(self, _: Request) -> Response:
        return _limits_response(self._front.limits.state())

    async def patch_limits(self, request: Request) -> Response:
        based_on = _version(request.headers.get("if-match"))
        patch = _parse(LimitsPatch, await read_body(request, _MAX_BODY_BYTES))
        self._front.lifecycle.check()
        try:
            return _limits_response(self._front.limits.patch(patch, based_on))
        except Stale as error:
            current = self._front.limits.version
            raise ApiError(412, f"{error}.", code="stale_version", headers={"etag": f'"{current}"'}) from None
        except OutsideEnvelope as error:
            raise ApiError.invalid(error.field, f"{error}.", code="outside_envelope") from None

    async def drain(self, request: Request) -> Response:
        body = _parse(DrainBody, await read_body(request, _MAX_BODY_BYTES) or b"{}")
        lifecycle = self._front.lifecycle
        lifecycle.drain(body.timeout_seconds)
        # Nobody can renew it any more, and what is still answered keeps the pace that it was given.
        self._front.limits.end_lease()
        return JSONResponse({"draining": lifecycle.phase is Phase.DRAINING, "open_requests": lifecycle.num_open})

    async def startup(self, _: Request) -> Response:
        return Response(self._front.startup().model_dump_json(), media_type="application/json")

    async def figures(self, _: Request) -> Response:
        return Response(self._front.model.figures.model_dump_json(), media_type="application/json")

    async def state(self, _: Request) -> Response:
        return JSONResponse(self._front.state())

    async def steps(self, request: Request) -> Response:
        try:
            query = StepsQuery.model_validate(dict(request.query_params))
        except ValidationError as error:
            raise ApiError.from_validation(error, dict(request.query_params)) from None
        found = self._front.steps.after(query.after, query.limit)
        return Response(msgspec.json.encode({"steps": found, "now": monotonic()}), media_type="application/json")


def _limits_response(state: LimitsState) -> Response:
    return Response(state.model_dump_json(), media_type="application/json", headers={"etag": f'"{state.version}"'})


def _version(if_match: str | None) -> int | None:
    """The version that a change is based on; None for `*`, which means whatever is in force."""
    if if_match is None:
        message = "PATCH needs If-Match with the version that the change is based on: the ETag of GET /admin/limits."
        raise ApiError(428, message, code="if_match_required")
    if if_match.strip() == "*":
        return None
    match = _ETAG.fullmatch(if_match.strip())
    if match is None:
        raise ApiError.invalid("If-Match", 'If-Match must be one version, for example "3".')
    return int(match[1] or match[2])


T = TypeVar("T", bound=BaseModel)


def _parse(kind: type[T], raw: bytes) -> T:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ApiError.invalid(None, f"The body is not valid JSON: {error}.") from None
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise ApiError.from_validation(error, body) from None
