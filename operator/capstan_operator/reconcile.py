"""The loop: observe, decide, apply, again. Level-triggered: a timer and the world's events only wake it.

Knows no world in particular and draws nothing: each `Turn` is handed to `on_turn`. A turn that fails becomes
`Turn.error` and a condition, the loop goes on with a growing pause, and what must be remembered is only replaced by
what a whole decision left behind.
"""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

from capstan_api.manifest import InvalidResource
from capstan_api.status import Condition, ConditionStatus, ConditionType, DecisionAction, InferenceDeploymentStatus
from capstan_api.v1alpha1 import InferenceDeployment
from capstan_operator.admin import AdminClient
from capstan_operator.apply import apply
from capstan_operator.bounded_http import BoundedHttp
from capstan_operator.budgets import Budgets
from capstan_operator.decide import Decision, Memory, Observation, decide
from capstan_operator.decide.seen.observation import ConfigurationFault
from capstan_operator.decide.times import rfc3339
from capstan_operator.decide.told.novelty import News, news
from capstan_operator.decide.values import Value
from capstan_operator.errors import CapstanOperatorError, Gone
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
    seconds: float = 0.0
    """How long it took."""


class Reconciler:
    """Runs one InferenceDeployment. `source` is asked every turn, so that an edited resource is followed."""

    def __init__(
        self,
        world: World,
        source: Callable[[], InferenceDeployment],
        *,
        settings: OperatorSettings | None = None,
        clock: Callable[[], float] = time.time,
        interval_s: Callable[[], float] | None = None,
        budgets: Budgets | None = None,
        entrance: asyncio.Semaphore | None = None,
        room: asyncio.Semaphore | None = None,
        fence: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`interval_s` is asked after every turn; without it the interval is that of the settings.

        `budgets` are accelerators that it shares with others.

        `room` is held for each turn: a thousand at the same time would all end late, a few at a time all end early.
        `entrance` is held as well, until what stands around the processes was brought about once, which takes long;
        with fewer places than the room has, those who come are not in the way of those whose limits must move.

        `fence` is awaited before an engine or a gateway is told anything, and raises when somebody else may do so.
        """
        self._world = world
        self._source = source
        self._settings = settings or OperatorSettings()
        self._clock = clock
        self._interval_s = interval_s or (lambda: self._settings.turn_interval_s)
        self._budgets = budgets or Budgets(())
        self._entrance: AbstractAsyncContextManager[None] = entrance or nullcontext()
        self._room: AbstractAsyncContextManager[None] = room or nullcontext()
        self._http = BoundedHttp(self._settings, fence=fence)
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
        # What an operator before this one has written, and when is not known.
        self._written = (clock(), self._deployment.status)
        self._configuration_fault: ConfigurationFault | None = None
        self._refused: tuple[str, ...] = ()

    async def turn(self) -> Turn:
        """Observe, decide and apply once. Raises what the world or the law raises."""
        self._refresh()
        deployment, memory = self._deployment, self._memory
        observation = await self._observer.observe(
            deployment, memory, configuration_fault=self._configuration_fault, refused=self._refused
        )
        now = self._clock()
        # Nothing may be awaited between these three: what one loop was promised, another must know to be gone.
        allowance = self._budgets.allowance(deployment, observation, memory, now)
        observation = observation.changed(allowance=allowance)
        decision = decide(deployment, observation, memory, now)
        self._budgets.decided(deployment, decision.demand)
        self._memory = decision.memory
        fault = self._configuration_fault
        errors = [f"the last valid resource stays in force: {fault.message}"] if fault is not None else []
        # Written before it is acted upon: an operator that dies in between finds out what it wanted.
        await _attempt(self._publish(decision.status, now), "WriteStatus", errors)
        prepared = self._world.prepare(deployment, decision.revisions, decision.status.desired_replicas)
        if await _attempt(prepared, "Prepare", errors):
            self._entrance = nullcontext()
        self._refused = await apply(decision.actions, self._world, self._admin)
        errors += self._refused
        for change in decision.changes:
            if change.action is not DecisionAction.SET_LIMITS:
                await _attempt(self._world.announce(change), "Announce", errors)
        return Turn(now, deployment, memory, observation, decision, decision.status, "; ".join(errors) or None)

    async def run(self, stop: asyncio.Event, on_turn: Callable[[Turn], None]) -> None:
        """Turn after turn until `stop` is set. Raises `Gone` when the resource was deleted."""
        failures = 0
        try:
            while not stop.is_set():
                async with self._entrance, self._room:
                    self._world.wake.clear()
                    began = time.monotonic()
                    try:
                        turn = await self.turn()
                        failures = 0
                    except Gone:
                        raise
                    except Exception as error:
                        # Whatever went wrong, the processes that serve must not lose their operator over it.
                        logger.exception("a turn failed")
                        failures += 1
                        turn = await self._failed(f"{type(error).__name__}: {error}")
                on_turn(replace(turn, seconds=time.monotonic() - began))
                interval_s = self._interval_s()
                pause_s = min(interval_s * 2 ** min(failures, 16), max(interval_s, self._settings.longest_retry_s))
                await _first_of(stop, self._world.wake, pause_s)
        finally:
            await self._http.close()

    def _refresh(self) -> None:
        """Follow the source; while it cannot be read, the last good resource is in force."""
        try:
            self._deployment, self._configuration_fault = self._source(), None
        except InvalidResource as error:
            self._configuration_fault = ConfigurationFault(message=str(error), generation=error.generation)
        except OSError as error:
            self._configuration_fault = ConfigurationFault(message=str(error))

    async def _publish(self, status: InferenceDeploymentStatus, now: float) -> None:
        """Write the status if it is new enough for the time that has passed."""
        at, last = self._written
        may_wait_s = {
            News.SUBSTANCE: 0.0,
            News.PROGRESS: self._settings.progress_interval_s,
            News.FIGURES: self._settings.status_interval_s,
            News.BOOKS: self._settings.books_interval_s,
        }
        # A clock that was set back says nothing of how long it was.
        if 0 <= now - at < may_wait_s[news(last, status)]:
            return
        await self._world.write_status(status.model_copy(update={"memory": self._memory.durable()}))
        self._written = (now, status)

    async def _failed(self, error: str) -> Turn:
        now = self._clock()
        status = _with_failure(self._written[1], error, now, self._deployment.metadata.generation)
        with suppress(CapstanOperatorError):
            # Best effort: the error itself may be that nothing can be written.
            await self._publish(status, now)
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
        Observation.from_fields(recorded["observation"]),
        Memory.from_fields(recorded["memory"]),
        recorded["now"],
    )


def _plain(value: Value | None, exclude: set[str] | None = None) -> Any:
    """As JSON would give it back: by way of its text, where even a scraped NaN has a form."""
    return None if value is None else json.loads(value.to_json(exclude))


async def _first_of(stop: asyncio.Event, wake: asyncio.Event, timeout_s: float) -> None:
    waiting = [asyncio.ensure_future(event.wait()) for event in (stop, wake)]
    try:
        await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()


async def _attempt(doing: Awaitable[None], what: str, errors: list[str]) -> bool:
    """Have it done, or note why not: the rest of the turn matters more. Returns whether it was. Raises `Gone`."""
    try:
        await doing
    except Gone:
        raise
    except CapstanOperatorError as error:
        errors.append(f"{what}: {error}")
        return False
    return True


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
