"""The seam between a fleet and what runs in its pods: an `Engine`, and the `Run`s of steps that it tells of.

Two engines stand behind it: `replica` is fast, `exact` asks the engine's real scheduler before every step.
"""

import math
from collections import deque
from typing import Final, NamedTuple, Protocol, TypeAlias

from capstan_api.limits import BatchLimits
from capstan_sim.book import Book
from capstan_sim.step_time import StepModel

REMEMBERED_RUNS: Final = 4096


Step: TypeAlias = tuple[int, float, float, int, int, int, float]
"""The fields of a `StepSample`."""


class Run(NamedTuple):
    """`num_steps` steps from `start` on, numbered from `first`; the i-th of them (from 0) takes `first_s + i·growth_s`
    and has `context + i·sequences` context tokens."""

    first: int
    start: float
    num_steps: int
    prefill_tokens: int
    sequences: int
    context: int
    pairs: int
    first_s: float
    growth_s: float

    def end(self, num_steps: int) -> float:
        """When that many of its steps are over."""
        return self.start + num_steps * self.first_s + self.growth_s * (num_steps * (num_steps - 1) / 2)

    def steps_until(self, moment: float) -> int:
        """The number of steps after which `moment` is reached, at least 1."""
        # The stable root of growth/2·j² + (first − growth/2)·j = moment − start.
        half, elapsed = self.growth_s / 2, moment - self.start
        linear = self.first_s - half
        root = math.sqrt(max(0.0, linear * linear + 4 * half * elapsed))
        steps = max(1, math.ceil(2 * elapsed / (linear + root)))
        while steps > 1 and self.end(steps - 1) >= moment:
            steps -= 1
        while self.end(steps) < moment:
            steps += 1
        return steps

    def steps(self, number: int, zero_s: float) -> list[Step]:
        """Those from `number` on; `zero_s` is the moment that zero stands for."""
        first, start, num_steps, prefill_tokens, sequences, context, pairs, first_s, growth_s = self
        attention_pairs = float(pairs)
        # Without a call of ours, `end` written out: these are made by the million.
        return [
            (
                first + step,
                zero_s + (start + (step + 1) * first_s + growth_s * ((step + 1) * step / 2)),
                first_s + step * growth_s,
                prefill_tokens,
                sequences,
                context + step * sequences,
                attention_pairs,
            )
            for step in range(max(number - first, 0), num_steps)
        ]


class Engine(Protocol):
    """What a fleet asks of the engine in a pod. `now` is never earlier than in the call before.

    `until` is the end of the run that is being computed, infinity while idle; `advance` must be called then. `submit`
    and `set_limits` may bring it forward.
    """

    book: Book
    model: StepModel
    limits: BatchLimits
    until: float
    outstanding: int
    """Requests that wait or run here."""
    prefix_queries: int
    """Prompt tokens looked for in the prefix cache."""
    prefix_hits: int
    """Those of them that were found."""
    runs: deque[Run]
    """Those that are over, oldest first, until somebody takes them."""

    @property
    def num_running(self) -> int: ...

    @property
    def num_waiting(self) -> int: ...

    @property
    def num_preemptions(self) -> int: ...

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens of the waiting requests."""
        ...

    @property
    def prefill_backlog(self) -> int:
        """Prompt tokens of the requests here that are not computed yet; those of the present step are not."""
        ...

    def submit(self, request: int, now: float) -> None:
        """A request arrives; it takes part in the next step that begins."""
        ...

    def set_limits(self, limits: BatchLimits, now: float) -> None:
        """Apply from the next step on. Lower ones drain: nothing is preempted for them."""
        ...

    def advance(self) -> None:
        """The run is over: take over what it computed and plan the next."""
        ...

    def abandon(self) -> list[int]:
        """Stop for ever; the requests that were waiting or running."""
        ...

    def kv_tokens(self, now: float) -> int:
        """Tokens that the KV cache holds."""
        ...

    def num_steps(self, now: float) -> int:
        """Steps completed."""
        ...

    def num_generated(self, now: float) -> int:
        """Output tokens made."""
        ...

    def busy_s(self, now: float) -> float: ...

    def run_so_far(self, now: float) -> Run | None:
        """What of the present run is over, if any step is."""
        ...
