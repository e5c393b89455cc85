"""The admin ports of engines and gateway, as the operator uses them: limits, recent steps, figures, routing table.

The same in every world: whoever runs the processes only says where they listen. Answers are validated before they are
believed.
"""

import json
from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from capstan_api.footprint import MemoryFigures
from capstan_api.limits import BatchLimits, LimitsPatch, LimitsState
from capstan_api.replicas import ReplicaEntry, ReplicaTableStatus, ReplicaTableUpdate
from capstan_api.startup import StartupReport
from capstan_operator.bounded_http import Answer, BoundedHttp
from capstan_operator.decide.seen.steps import StepSample
from capstan_operator.errors import AdminError, Conflict

_STEPS = TypeAdapter(tuple[StepSample, ...])
M = TypeVar("M", bound=BaseModel)


class AdminClient:
    """Speaks to admin ports with one token. Every method raises `AdminError` when it cannot do its work."""

    def __init__(self, http: BoundedHttp, token: str) -> None:
        self._http = http
        self._authorization = {"Authorization": f"Bearer {token}"}

    async def limits(self, admin_url: str) -> LimitsState:
        """The limits in force at an engine."""
        return _validated(LimitsState, await self._call("GET", f"{admin_url}/admin/limits"))

    async def set_limits(
        self, admin_url: str, limits: BatchLimits, *, version: int, lease_seconds: int, reason: str
    ) -> LimitsState:
        """Put limits in force, or renew their lease. Raises `Conflict` when `version` is no longer the current one."""
        patch = LimitsPatch(
            max_sequences=limits.max_sequences,
            max_batched_tokens=limits.max_batched_tokens,
            lease_seconds=lease_seconds,
            reason=reason,
        )
        answer = await self._call(
            "PATCH", f"{admin_url}/admin/limits", patch.model_dump(), headers={"If-Match": f'"{version}"'}
        )
        return _validated(LimitsState, answer)

    async def steps(self, admin_url: str, *, after: int, limit: int) -> tuple[StepSample, ...]:
        """Samples of the steps numbered above `after`, oldest first."""
        answer = await self._call("GET", f"{admin_url}/admin/steps?after={after}&limit={limit}")
        try:
            return _STEPS.validate_python(json.loads(answer.body)["steps"])
        # Nested deeply enough, JSON exhausts the stack of its reader.
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise AdminError(f"{admin_url}/admin/steps answers what are not steps: {_first_line(error)}") from None

    async def figures(self, admin_url: str) -> MemoryFigures:
        """What an engine's model takes of memory."""
        return _validated(MemoryFigures, await self._call("GET", f"{admin_url}/admin/figures"))

    async def kv_tokens(self, admin_url: str) -> int:
        """Tokens that an engine's KV cache holds."""
        answer = await self._call("GET", f"{admin_url}/admin/state")
        try:
            state = json.loads(answer.body)
            return int(state["blocks_total"]) * int(state["block_size"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise AdminError(f"{admin_url}/admin/state tells no size of the KV cache: {_first_line(error)}") from None

    async def startup(self, admin_url: str) -> StartupReport:
        """What a replica that is not ready yet is busy with; a fetcher and an engine answer alike."""
        return _validated(StartupReport, await self._call("GET", f"{admin_url}/admin/startup"))

    async def table(self, admin_url: str) -> tuple[ReplicaEntry, ...]:
        """The gateway's table of replicas, sorted by id."""
        status = _validated(ReplicaTableStatus, await self._call("GET", f"{admin_url}/admin/replicas"))
        rows = (ReplicaEntry(id=r.id, url=r.url, state=r.state) for r in status.replicas if r.in_table)
        return tuple(sorted(rows, key=lambda row: row.id))

    async def route(self, admin_url: str, table: Iterable[ReplicaEntry]) -> None:
        """Make `table` the gateway's whole table."""
        update = ReplicaTableUpdate(replicas=tuple(table))
        await self._call("PUT", f"{admin_url}/admin/replicas", update.model_dump(mode="json"))

    async def _call(self, method: str, url: str, body: Any = None, *, headers: dict[str, str] | None = None) -> Answer:
        answer = await self._http.request(method, url, headers={**self._authorization, **(headers or {})}, json=body)
        if answer.status == 412:
            raise Conflict(f"{url} has changed since it was read")
        if answer.status >= 300:
            said = answer.body[:200].decode(errors="replace")
            raise AdminError(f"{method} {url} answers {answer.status}: {said}")
        return answer


def _validated(model: type[M], answer: Answer) -> M:
    try:
        return model.model_validate_json(answer.body)
    except ValidationError as error:
        raise AdminError(f"an admin port answers what is not a {model.__name__}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
