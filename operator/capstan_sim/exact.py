"""One engine in simulated time that asks the engine's real scheduler before every step: slow, and never wrong.

Knows no tokens: prompts are zeros of the right length, answers too. It has the face of `replica.Replica`, which is
tested against it, and may stand in for it in any simulation.
"""

import math
from collections import deque

from capstan_api.limits import BatchLimits
from capstan_engine.messages import SamplingParams, Submit
from capstan_engine.scheduler.scheduler import Scheduler
from capstan_engine.scheduler.step import Sampled, StepPlan, StepResult
from capstan_sim.book import Book
from capstan_sim.engine import REMEMBERED_RUNS, Run
from capstan_sim.step_time import StepModel

_NO_BOUND = 1 << 40


class ExactReplica:
    """The real scheduler over blocks of `block_size` tokens, without a prefix cache."""

    def __init__(self, model: StepModel, limits: BatchLimits, book: Book, block_size: int = 16) -> None:
        self.model, self.limits, self.book = model, limits, book
        self.until = math.inf
        self.outstanding = 0
        self.prefix_queries = self.prefix_hits = 0
        self.runs: deque[Run] = deque(maxlen=REMEMBERED_RUNS)
        self._scheduler = Scheduler(
            num_blocks=model.kv_tokens // block_size,
            block_size=block_size,
            max_model_len=model.kv_tokens,
            limits=limits,
            max_queued_requests=_NO_BOUND,
            prefix_caching=False,
        )
        self._plan: StepPlan | None = None
        self._run: Run | None = None
        self._here: dict[int, None] = {}
        self._steps = self._generated = 0
        self._busy_s = 0.0

    @property
    def num_running(self) -> int:
        return self._scheduler.num_running

    @property
    def num_waiting(self) -> int:
        return self._scheduler.num_waiting

    @property
    def waiting_tokens(self) -> int:
        """Without those of preempted requests."""
        return sum(self.book.prompt[request] for request in self._here if self.book.started[request] < 0)

    @property
    def prefill_backlog(self) -> int:
        return self._scheduler.num_prefill_tokens

    @property
    def num_preemptions(self) -> int:
        return self._scheduler.num_preemptions

    def submit(self, request: int, now: float) -> None:
        book = self.book
        due = book.first_token_due[request]
        self._scheduler.submit(
            Submit(
                request_id=str(request),
                prompt_token_ids=[0] * book.prompt[request],
                params=SamplingParams(seed=0, max_tokens=book.output[request]),
                arrival_time=book.arrival[request],
                priority=book.priority[request],
                first_token_due=due if due < math.inf else None,
            )
        )
        self._here[request] = None
        self.outstanding += 1
        if self._plan is None:
            self._begin(now)

    def set_limits(self, limits: BatchLimits, now: float) -> None:
        self.limits = limits
        self._scheduler.set_limits(limits)

    def advance(self) -> None:
        plan, run, now, book = self._plan, self._run, self.until, self.book
        assert plan is not None, "an idle replica has nothing to advance"
        assert run is not None, "what was planned runs"
        self.runs.append(run)
        self._steps += 1
        self._busy_s += now - run.start
        sampled = {s.request_id: Sampled(0) for s in plan.scheduled if s.samples}
        # The last token of a request is drawn too, but not computed any further.
        for output in self._scheduler.commit(plan, StepResult(sampled=sampled), now):
            request = int(output.request_id)
            self._generated += len(output.token_ids)
            if book.first[request] < 0:
                book.first_token(request, now)
            if output.finish_reason is not None:
                book.finished(request, now)
                del self._here[request]
                self.outstanding -= 1
        self._begin(now)

    def abandon(self) -> list[int]:
        left = list(self._here)
        self._scheduler.abort(map(str, left))
        self._here, self._plan, self._run, self.until, self.outstanding = {}, None, None, math.inf, 0
        return left

    def kv_tokens(self, now: float) -> int:
        return self._scheduler.pool.num_held * self._scheduler.block_size

    def num_steps(self, now: float) -> int:
        return self._steps

    def num_generated(self, now: float) -> int:
        return self._generated

    def busy_s(self, now: float) -> float:
        return self._busy_s + (now - self._run.start if self._run is not None else 0.0)

    def run_so_far(self, now: float) -> Run | None:
        """Nothing: its runs are single steps, and the present one is not over."""
        return None

    def _begin(self, now: float) -> None:
        plan = self._scheduler.plan(now)
        while not plan:
            self._scheduler.commit(plan, StepResult(), now)
            if not self._scheduler.has_work:
                self._plan, self._run, self.until = None, None, math.inf
                return
            # All whose turn it was have been preempted: it is the others' turn.
            plan = self._scheduler.plan(now)
        figures = (plan.num_prefill_tokens, plan.num_decodes, plan.context_tokens, plan.attention_pairs)
        for scheduled in plan.scheduled:
            request = int(scheduled.request_id)
            if self.book.started[request] < 0:
                self.book.started[request] = now
        self._plan = plan
        self._run = Run(self._steps + 1, now, 1, *figures, self.model.seconds(*figures), 0.0)
        self.until = self._run.end(1)
