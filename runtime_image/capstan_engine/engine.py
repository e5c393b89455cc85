"""The step loop's body: plan, launch, wait for the result, commit, and one record of it.

Knows no socket, no asyncio and no text; who calls `step` and where its update goes is the core's business. Surprising
idea: overlap is the order of these four and nothing else. A device that computes by itself gets its next step launched
before the result of the last one is awaited; what planning, launching and committing take is then hidden behind it.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from capstan_api.footprint import MemoryFigures
from capstan_api.limits import BatchLimits
from capstan_engine.errors import RequestError
from capstan_engine.messages import CoreState, Output, Ready, StepSample, Submit, Update
from capstan_engine.scheduler.scheduler import Displaced, Scheduler
from capstan_engine.scheduler.step import StepPlan, StepResult

Landing = Callable[[], StepResult]
"""Waits until a launched step has run, and returns what came of it."""


class Runner(Protocol):
    """What the engine asks of the model's side: one call per step. Errors it raises end the engine."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def figures(self) -> MemoryFigures: ...

    def launch(self, plan: StepPlan) -> Landing:
        """Start a step, empty or not, behind those that were launched before. A token of it may be `UNKNOWN`."""


@dataclass(frozen=True, slots=True)
class _Flight:
    """A step that was launched and has not been committed."""

    plan: StepPlan
    land: Landing
    started: float


class Engine:
    """A scheduler and a runner, joined. `clock` must be the one that stamps `Submit.arrival_time` and deadlines.

    With `overlap` a step is launched before the result of the one before is awaited. It pays where launching returns
    before the step has run; what requests get is the same.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        *,
        overlap: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._overlap = overlap
        self._clock = clock
        self._flights: deque[_Flight] = deque()
        self._last_landing = -math.inf
        self._vocab_size = runner.vocab_size
        self._num_steps = 0
        self._num_heartbeats = 0
        self._busy_seconds = 0.0

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work or bool(self._flights)

    def submit(self, submit: Submit) -> Displaced | None:
        """Accept a request, in place of the one returned if the queue is full.

        Raises RequestTooLarge, QueueFull, or RequestError for one that makes no sense.
        """
        ids = submit.prompt_token_ids
        # One id beyond the embedding would end the engine and every request in it.
        if ids and not 0 <= min(ids) <= max(ids) < self._vocab_size:
            raise RequestError(f"prompt token ids must be from 0 to {self._vocab_size - 1}", param="prompt")
        return self._scheduler.submit(submit)

    def abort(self, request_ids: Iterable[str]) -> None:
        """Forget requests; unknown ids are ignored."""
        self._scheduler.abort(request_ids)

    def set_limits(self, limits: BatchLimits) -> None:
        """Apply limits at the next step."""
        self._scheduler.set_limits(limits)

    def step(self) -> Update:
        """Launch one step and commit one: the same, or with overlap the one before.

        The update holds no sample when nothing was computed or nothing has been committed yet.
        """
        started = self._clock()
        plan = self._scheduler.plan(started)
        self._flights.append(_Flight(plan, self._runner.launch(plan), started))
        outputs: list[Output] = []
        samples: list[StepSample] = []
        # Behind a step without any work nothing is hidden.
        num_left = 1 if self._overlap and plan else 0
        while len(self._flights) > num_left:
            flight = self._flights.popleft()
            outputs += self._scheduler.commit(flight.plan, flight.land(), self._clock())
            samples += self._landed(flight)
        return Update(outputs=outputs, steps=samples, state=self.state())

    def state(self) -> CoreState:
        """Gauges and counters now; each call is one heartbeat."""
        self._num_heartbeats += 1
        scheduler, pool = self._scheduler, self._scheduler.pool
        return CoreState(
            time=self._clock(),
            heartbeat=self._num_heartbeats,
            steps=self._num_steps,
            running=scheduler.num_running,
            waiting=scheduler.num_waiting,
            prefill_backlog=scheduler.num_prefill_tokens,
            blocks_total=pool.num_blocks,
            blocks_held=pool.num_held,
            blocks_cached=pool.num_cached,
            prefix_queries=scheduler.num_prefix_queries,
            prefix_hits=scheduler.num_prefix_hits,
            preemptions=scheduler.num_preemptions,
            busy_seconds=self._busy_seconds,
            max_sequences=scheduler.limits.max_sequences,
            max_batched_tokens=scheduler.limits.max_batched_tokens,
        )

    def ready(self, startup_seconds: dict[str, float]) -> Ready:
        """What the front end must know before the first request."""
        return Ready(
            num_blocks=self._scheduler.pool.num_blocks,
            block_size=self._scheduler.block_size,
            max_model_len=self._scheduler.max_model_len,
            vocab_size=self._vocab_size,
            figures=self._runner.figures.model_dump(),
            startup_seconds=startup_seconds,
            state=self.state(),
        )

    def _landed(self, flight: _Flight) -> list[StepSample]:
        """Count the step. While the one before was still running its time was not its own."""
        plan, ended = flight.plan, self._clock()
        seconds = ended - max(flight.started, self._last_landing)
        self._busy_seconds += seconds
        self._last_landing = ended
        if not plan:
            return []
        self._num_steps += 1
        return [
            StepSample(
                number=self._num_steps,
                time=ended,
                seconds=seconds,
                prefill_tokens=plan.num_prefill_tokens,
                decode_sequences=plan.num_decodes,
                context_tokens=plan.context_tokens,
                attention_pairs=plan.attention_pairs,
            )
        ]
