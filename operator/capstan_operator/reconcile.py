"""The loop: observe, decide, apply, again. Level-triggered: a timer and the world's events only wake it.

Knows no world in particular and draws nothing: each `Turn` is handed to `on_turn`. A turn that fails becomes
`Turn.error` and a condition, the loop goes on with a growing pause, and what must be remembered is only replaced by
what a whole decision left behind.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from capstan_api.manifest import InvalidResource
from capstan_api.status import Condition, ConditionStatus, ConditionType, InferenceDeploymentStatus
from capstan_api.v1alpha1 import InferenceDeployment
from capstan_operator.admin import AdminClient
from capstan_operator.apply import apply
from capstan_operator.bounded_http import BoundedHttp
from capstan_operator.decide import Decision, Memory, Observation, decide
from capstan_operator.decide.times import rfc3339
from capstan_operator.decide.values import Value
from capstan_operator.observe import Observer
from capstan_operator.scrape import Scraper
from capstan_operator.settings import OperatorSettings
from capstan_operator.world.base import World

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Turn:
    """One round of the loop. `observation` and `decision` are None when the turn failed before it came to them."""

    now: float
    deployment: InferenceDeployment
    memory: Memory
    """What the decision was given, not what it left."""
    observation: Observation | None = None
    decision: Decision | None = None
    status: InferenceDeploymentStatus | None = None
    error: str | None = None


class Reconciler:
    """Runs one InferenceDeployment. `source` is asked every turn, so that an edited resource is followed."""

    def __init__(
        self,
        world: World,
        source: Callable[[], InferenceDeployment],
        *,
        settings: OperatorSettings | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._world = world
        self._source = source
        self._settings = settings or OperatorSettings()
        self._clock = clock
        self._http = BoundedHttp(self._settings)
        self._admin = AdminClient(self._http, world.admin_token)
        self._observer = Observer(
            world,
            Scraper(self._http, self._settings),
            self._admin,
            max_step_samples=self._settings.max_step_samples,
            clock=clock,
        )
        self._deployment = source()
        self._memory = Memory.restored(self._deployment.status.memory)
        self._written: tuple[float, InferenceDeploymentStatus] | None = None

    async def turn(self) -> Turn:
        """Observe, decide and apply once. Raises what the world or the law raises."""
        errors: list[str] = []
        self._refresh(errors)
        deployment, memory = self._deployment, self._memory
        observation = await self._observer.observe(deployment, memory)
        now = self._clock()
        decision = decide(deployment, observation, memory, now)
        self._memory = decision.memory
        errors += await apply(decision.actions, self._world, self._admin)
        await self._publish(decision.status, now)
        return Turn(now, deployment, memory, observation, decision, decision.status, "; ".join(errors) or None)

    async def run(self, stop: asyncio.Event, on_turn: Callable[[Turn], None]) -> None:
        """Turn after turn until `stop` is set."""
        failures = 0
        try:
            while not stop.is_set():
                self._world.wake.clear()
                try:
                    turn = await self.turn()
                    failures = 0
                except Exception as error:
                    # Whatever went wrong, the processes that serve must not lose their operator over it.
                    logger.exception("a turn failed")
                    failures += 1
                    turn = await self._failed(f"{type(error).__name__}: {error}")
                on_turn(turn)
                interval_s = self._settings.turn_interval_s
                interval_s = self._settings.turn_interval_s
                pause_s = min(interval_s * 2 ** min(failures, 16), max(interval_s, self._settings.longest_retry_s))
                await _first_of(stop, self._world.wake, pause_s)
        finally:
            await self._http.close()

    def _refresh(self, errors: list[str]) -> None:
        """Follow the source; while it cannot be read, the last good resource is in force."""
        try:
            self._deployment = self._source()
        except (InvalidResource, OSError) as error:
            errors.append(f"the last valid resource stays in force: {error}")

    async def _publish(self, status: InferenceDeploymentStatus, now: float) -> None:
        if self._written is not None:
            at, last = self._written
            if _substance(last) == _substance(status) and now - at < self._settings.status_interval_s:
                return
        await self._world.write_status(status)
        self._written = (now, status)

    async def _failed(self, error: str) -> Turn:
        now = self._clock()
        before = self._written[1] if self._written else InferenceDeploymentStatus()
        status = _with_failure(before, error, now, self._deployment.metadata.generation)
        with suppress(Exception):
            # Best effort: the error itself may be that nothing can be written.
            await self._world.write_status(status)
            self._written = (now, status)
        return Turn(now, self._deployment, self._memory, status=status, error=error)


def record(turn: Turn) -> dict[str, Any]:
    """One line of the decision log: the inputs of a turn and what came out. `replay` decides it again."""
    return {
        "now": turn.now,
        "deployment": turn.deployment.model_dump(mode="json", exclude={"status"}),
        "memory": _plain(turn.memory),
        "observation": _plain(turn.observation),
        "decision": _plain(turn.decision, exclude={"memory", "status"}),
        "error": turn.error,
    }


def replay(recorded: dict[str, Any]) -> Decision:
    """The decision that the recorded inputs give; raises `ValueError` for a turn that never came to decide."""
    if recorded.get("observation") is None:
        raise ValueError("this turn failed before it had an observation: there is nothing to decide again")
    return decide(
        InferenceDeployment.model_validate(recorded["deployment"]),
        Observation.model_validate(recorded["observation"]),
        Memory.model_validate(recorded["memory"]),
        recorded["now"],
    )


def _plain(value: Value | None, exclude: set[str] | None = None) -> Any:
    """As JSON would give it back: by way of its text, where even a scraped NaN has a form."""
    return None if value is None else json.loads(value.model_dump_json(exclude=exclude))


async def _first_of(stop: asyncio.Event, wake: asyncio.Event, timeout_s: float) -> None:
    waiting = [asyncio.ensure_future(event.wait()) for event in (stop, wake)]
    try:
        await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()


def _substance(status: InferenceDeploymentStatus) -> InferenceDeploymentStatus:
    """What a reader would miss: not the books that move with every turn."""
    return status.model_copy(update={"memory": "", "usage": InferenceDeploymentStatus().usage})


def _with_failure(
    status: InferenceDeploymentStatus, error: str, now: float, generation: int
) -> InferenceDeploymentStatus:
    known = {condition.type: condition for condition in status.conditions}
    before = known.get(ConditionType.READY)
    since = before.last_transition_time if before and before.status is ConditionStatus.FALSE else rfc3339(now)
    known[ConditionType.READY] = Condition(
        type=ConditionType.READY,
        status=ConditionStatus.FALSE,
        reason="ReconcileFailed",
        message=error[:1024],
        last_transition_time=since,
        observed_generation=generation,
    )
    return status.model_copy(update={"conditions": list(known.values())})
