"""The scheduler: what the next step computes, and what follows from its result.

Knows no tensor, no clock (`now` is an argument) and no text. One rule serves prefill, chunked prefill, decode and
recomputation after preemption: a step lets computed tokens catch up with known tokens, under a token budget and a
limit of running requests.

    plan(now)                  decodes first, so that TPOT is bounded; then prompts in order of rank, running or waiting
    commit(plan, result, now)  computed tokens become shareable, new tokens become known, requests end

One more step may be planned before a commit, while the device still computes. Such a plan counts on what the step in
flight draws (`UNKNOWN`), knows which requests that step ends by their length, and does not know which end by a stop id:
what it computes for those is dropped. Steps run one after the other, so the blocks of an ended request can be handed
out while the step that still writes to them is in flight.

Surprising idea: one `rank` decides everything that is an order: who is admitted, whose prompt goes first, who is
preempted and, where the queue is full, who is refused (the worst rank, though it came first). It follows from the
arrival, and is another one only while a first token is late or cannot but be: such a request yields to those that can
still be in time. Served in order of arrival, under overload everybody waits just beyond the threshold and all are late,
as is known of queues with impatient customers (whence adaptive LIFO, and shedding of the oldest); who yields is served
later, and is not dropped. An admitted request holds blocks for its whole prompt at once, so only decodes can ever lack
a block, and preemption happens in one place.
"""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable
from operator import attrgetter
from typing import NamedTuple

from capstan_api.limits import BatchLimits
from capstan_engine.block_table import block_table
from capstan_engine.errors import QueueFull, RequestError, RequestTooLarge
from capstan_engine.messages import FinishReason, Output, Submit
from capstan_engine.scheduler.block_pool import BlockPool
from capstan_engine.scheduler.prefill_pace import PrefillPace
from capstan_engine.scheduler.prefix_cache import PrefixCache
from capstan_engine.scheduler.queueing import CompletionRate, WaitingQueue, retry_after_s
from capstan_engine.scheduler.request import Request, Status
from capstan_engine.scheduler.step import Sampled, ScheduledRequest, StepPlan, StepResult
from capstan_engine.scheduler.step_builder import StepBuilder

_by_rank = attrgetter("rank")


class Displaced(NamedTuple):
    """A waiting request that was refused after all, for one of better rank."""

    request_id: str
    error: QueueFull


class _Flight(NamedTuple):
    """A step that was planned and is not committed yet."""

    requests: list[Request]
    planned_at: float
    num_filling: int
    """Tokens of prompts, where they have used up the budget, else 0."""


class Scheduler:
    """Continuous batching over one block pool.

    `commit` follows each `plan` in the same order, at once or after one more; everything else may come at any time.
    """

    def __init__(
        self,
        *,
        num_blocks: int,
        block_size: int,
        max_model_len: int,
        limits: BatchLimits,
        max_queued_requests: int,
        prefix_caching: bool = True,
    ) -> None:
        self.limits = limits
        self.block_size = block_size
        self.max_model_len = max_model_len
        self.pool = BlockPool(num_blocks)
        self.num_preemptions = 0
        self.num_prefix_queries = 0
        self.num_prefix_hits = 0
        self._max_queued_requests = max_queued_requests
        self._prefix_cache = PrefixCache(self.pool, block_size) if prefix_caching else None
        # Blocks that an admission leaves free, so that the next decode does not have to preempt what was just admitted.
        self._watermark = -(-num_blocks // 100)
        self._requests: dict[str, Request] = {}
        self._waiting = WaitingQueue()
        self._running: list[Request] = []
        self._deadlines: list[tuple[float, str]] = []
        self._judgements: list[tuple[float, str]] = []
        """When it is asked whether a first token can be in time, of requests that have none and have not yielded."""
        self._pace = PrefillPace()
        self._completions = CompletionRate()
        self._num_submitted = 0
        self._now = 0.0
        self._committed_at = 0.0
        self._in_flight: deque[_Flight] = deque()
        self._outputs: list[Output] = []

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_prefill_tokens(self) -> int:
        """Prompt tokens that are not computed yet, of running and waiting requests."""
        return sum(max(0, len(r.prompt_token_ids) - r.num_computed) for r in (*self._running, *self._waiting))

    @property
    def has_work(self) -> bool:
        return bool(self._running or self._waiting)

    def submit(self, submit: Submit) -> Displaced | None:
        """Put a request into the queue. Returns whom that has displaced: no output follows for it.

        Raises RequestTooLarge when the engine could never hold it, QueueFull when too many wait of no worse rank, and
        RequestError for an empty prompt or an id that is in use.
        """
        self._now = max(self._now, submit.arrival_time)
        if submit.request_id in self._requests:
            raise RequestError(f"request id {submit.request_id!r} is already in use", param="request_id")
        if not submit.prompt_token_ids:
            raise RequestError("the prompt must hold at least one token", param="prompt")
        request = Request.from_submit(submit, self._num_submitted, self.max_model_len)
        self._check_size(request)
        displaced = self._make_place_for(request)
        self._num_submitted += 1
        self._requests[request.id] = request
        self._waiting.push(request)
        if request.deadline is not None:
            insort(self._deadlines, (request.deadline, request.id))
        if request.first_token_due is not None:
            self._judge_at(request, request.first_token_due - self._pace.seconds_for(len(request.prompt_token_ids)))
        return displaced

    def abort(self, request_ids: Iterable[str]) -> None:
        """Forget these requests and take their blocks back; unknown ids are ignored. No output follows."""
        for request_id in request_ids:
            request = self._requests.get(request_id)
            if request is not None:
                self._release(request)

    def set_limits(self, limits: BatchLimits) -> None:
        """Apply `limits` from the next plan on. Lower ones drain: nothing running is preempted for them."""
        self.limits = limits

    def plan(self, now: float) -> StepPlan:
        """The next step. Requests past their deadline end first; their outputs come with the commit of this plan.

        Those whose first token can no longer be in time yield before anything is decided by rank.
        """
        assert len(self._in_flight) < 2, "commit the oldest plan before making another"
        self._now = now
        self._end_expired(now)
        self._let_late_yield(now)
        step = StepBuilder(self.limits.max_batched_tokens, now)
        for request in self._decodes_with_room(step.budget):
            step.add(request)
        room = step.budget
        self._add_prompts(step)
        self._in_flight.append(_Flight(step.requests, now, room if not step.budget else 0))
        return step.plan()

    def commit(self, plan: StepPlan, result: StepResult, now: float) -> list[Output]:
        """Take over the result of `plan`, the oldest that has not been committed.

        Returns new tokens and ends, those of expired requests included.
        """
        assert self._in_flight, "nothing was planned"
        flight = self._in_flight.popleft()
        if flight.num_filling:
            # One that was planned ahead began when the one before it ended.
            self._pace.learn(flight.num_filling, now - max(flight.planned_at, self._committed_at))
        self._now = self._committed_at = now
        # Pairing by object and not by id: an id may have been aborted and used again since the plan.
        for request, scheduled in zip(flight.requests, plan.scheduled, strict=True):
            if request.status is not Status.ENDED:
                self._commit_one(request, scheduled, result, now)
        outputs, self._outputs = self._outputs, []
        return outputs

    def _check_size(self, request: Request) -> None:
        num_prompt_tokens, max_tokens = len(request.prompt_token_ids), request.params.max_tokens
        if num_prompt_tokens + min(max_tokens, 1) > self.max_model_len:
            raise RequestTooLarge(
                f"the prompt has {num_prompt_tokens} tokens, which leaves no room for output: "
                f"this engine's max_model_len is {self.max_model_len}",
                param="prompt",
            )
        capacity = self.pool.num_blocks * self.block_size
        if request.max_length > capacity:
            raise RequestTooLarge(
                f"{num_prompt_tokens} prompt tokens plus max_tokens {max_tokens} exceed the {capacity} tokens that the "
                "KV cache holds; shorten the prompt, lower max_tokens, or give the engine more kv_cache_bytes",
                param="max_tokens",
            )

    def _make_place_for(self, request: Request) -> Displaced | None:
        """Refuse the worst rank where the queue is full: `request` itself, or who waits and has had nothing yet."""
        free_places = max(self.limits.max_sequences - len(self._running), 0)
        if len(self._waiting) < self._max_queued_requests + free_places:
            return None
        error = QueueFull(
            f"{len(self._waiting)} requests wait already; try again later",
            retry_after_seconds=retry_after_s(self._waiting, self._completions, self._now),
        )
        worst = self._waiting.last_untouched()
        if worst is None or worst.rank < request.rank:
            raise error
        self._release(worst)
        return Displaced(worst.id, error)

    def _end_expired(self, now: float) -> None:
        while self._deadlines and self._deadlines[0][0] < now:
            self._end(self._requests[self._deadlines[0][1]], FinishReason.DEADLINE, now)

    def _let_late_yield(self, now: float) -> None:
        """Whoever has no output moves back as soon as its first token cannot be in time, however soon it is computed.

        Whose first token a step in flight draws keeps its rank.
        """
        while self._judgements and self._judgements[0][0] <= now:
            request = self._requests[self._judgements[0][1]]
            self._judge_at(request, None)
            if request.output_token_ids:
                continue
            late_at = self._late_at(request)
            if late_at > now:
                # More of it is computed or cached, or steps are faster, than when it was judged before.
                self._judge_at(request, late_at)
            elif request.status is Status.WAITING:
                self._waiting.remove(request)
                request.fall_back()
                self._waiting.push(request)
            else:
                request.fall_back()

    def _late_at(self, request: Request) -> float:
        """The last moment at which what is left of the prompt can be begun, to end before its first token is due."""
        assert request.first_token_due is not None, f"request {request.id} has no threshold"
        num_left, cache = len(request.prompt_token_ids) - request.num_planned, self._cache_for(request)
        if request.status is Status.WAITING and cache is not None:
            num_left -= len(cache.match(request)) * self.block_size
        return request.first_token_due - self._pace.seconds_for(num_left, len(self._in_flight))

    def _judge_at(self, request: Request, moment: float | None) -> None:
        """Ask then, and not before, whether its first token can be in time; never again with None."""
        if request.judged_at is not None:
            del self._judgements[bisect_left(self._judgements, (request.judged_at, request.id))]
        request.judged_at = moment
        if moment is not None:
            insort(self._judgements, (moment, request.id))

    def _rank_as_at_arrival(self, request: Request) -> None:
        """Its first token is there: what follows is waited for as much as anybody's."""
        if request.status is Status.WAITING:
            self._waiting.remove(request)
            request.rank = request.arrival_rank
            self._waiting.push(request)
        else:
            request.rank = request.arrival_rank

    def _decodes_with_room(self, budget: int) -> list[Request]:
        """Running requests that lack one token, each with a block for it. They take turns when not all fit."""
        decodes = [request for request in self._running if request.num_unplanned == 1]
        if len(decodes) > budget:
            del decodes[budget:]
            served = set(decodes)
            self._running = [request for request in self._running if request not in served] + decodes
        for request in decodes:
            if len(request.token_ids) > len(request.block_table) * self.block_size:
                self._make_room_for(request)
        return [request for request in decodes if request.status is Status.RUNNING]

    def _make_room_for(self, request: Request) -> None:
        """Give `request` one more block; for it take those of requests that end anyway, or preempt the worst ranks.

        That may be itself.
        """
        while request.status is Status.RUNNING:
            if self.pool.num_free:
                request.block_table.append(self.pool.take())
                return
            leaving = next((r for r in self._running if not r.num_unplanned and r.block_table), None)
            if leaving is None:
                self._preempt(max((r for r in self._running if r.num_unplanned), key=_by_rank))
            else:
                # It waits for its last result only, and what computes that runs before what is planned now.
                self.pool.give_back(leaving.block_table)
                leaving.block_table = block_table()

    def _add_prompts(self, step: StepBuilder) -> None:
        """Prefill in order of rank, whether running already or still waiting, until the budget is spent."""
        prefills = [request for request in self._running if request.num_unplanned > 1]
        prefills.sort(key=_by_rank, reverse=True)
        may_admit = True
        while step.budget:
            if may_admit and (not prefills or self._waiting.precedes(prefills[-1])):
                # Room does not grow within a step: a head that does not fit is asked only once.
                may_admit = self._admit_head()
                if may_admit:
                    step.add(self._running[-1])
            elif prefills:
                step.add(prefills.pop())
            else:
                return

    def _admit_head(self) -> bool:
        """Let the head of the queue run, with blocks for all its known tokens, if there is room for it."""
        if not self._waiting or len(self._running) >= self.limits.max_sequences:
            return False
        request = self._waiting.head
        cache = self._cache_for(request)
        cached = [] if cache is None else cache.match(request)
        num_new = self._num_blocks_for(len(request.token_ids)) - len(cached)
        num_needed = num_new + sum(map(self.pool.is_free, cached))
        if num_needed + (self._watermark if self._running else 0) > self.pool.num_free:
            return False
        self.pool.share(cached)
        request.block_table = block_table([*cached, *(self.pool.take() for _ in range(num_new))])
        request.num_published = len(cached)
        request.num_planned = request.num_computed = len(cached) * self.block_size
        if cache is not None and request.first_scheduled_time is None:
            request.num_cached_tokens = request.num_computed
            self.num_prefix_queries += len(request.prompt_token_ids)
            self.num_prefix_hits += request.num_computed
        self._waiting.remove(request)
        request.status = Status.RUNNING
        self._running.append(request)
        return True

    def _cache_for(self, request: Request) -> PrefixCache | None:
        # Prompt log probabilities need every position computed.
        return self._prefix_cache if request.prompt_logprobs is None else None

    def _num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def _commit_one(self, request: Request, scheduled: ScheduledRequest, result: StepResult, now: float) -> None:
        error = result.errors.get(request.id)
        if error is not None:
            # What this request computed may be why it failed: nobody shall share it.
            self.pool.forget(scheduled.block_table)
            self._end(request, FinishReason.ERROR, now, error=error)
            return
        # A request that lost its blocks since has others or none; its new token and its log probabilities hold.
        if request.block_table is scheduled.block_table:
            request.num_computed += len(scheduled.token_ids)
            if self._prefix_cache is not None and request.num_computed >= (request.num_published + 1) * self.block_size:
                self._prefix_cache.publish(request)
        if request.prompt_logprobs is not None:
            new = result.prompt_logprobs.get(request.id, [])
            request.prompt_logprobs[scheduled.start + 1 : scheduled.start + 1 + len(new)] = new
        if scheduled.samples:
            self._judge_at(request, None)
            if request.rank != request.arrival_rank:
                self._rank_as_at_arrival(request)
            sampled = result.sampled[request.id]
            reason = request.learn(sampled.token_id)
            if reason is None:
                self._emit(request, sampled)
            else:
                self._end(request, reason, now, sampled)
        elif scheduled.start + len(scheduled.token_ids) == request.max_length:
            # Nothing to sample and nothing left to compute: only the prompt was wanted (max_tokens 0).
            self._end(request, FinishReason.LENGTH, now)

    def _end(
        self,
        request: Request,
        reason: FinishReason,
        now: float,
        sampled: Sampled | None = None,
        *,
        error: str | None = None,
    ) -> None:
        self._emit(request, sampled, reason, error)
        self._release(request)
        self._completions.record(now, len(self._waiting))

    def _emit(
        self,
        request: Request,
        sampled: Sampled | None,
        reason: FinishReason | None = None,
        error: str | None = None,
    ) -> None:
        """Queue an output. The request's first one also carries what is known only once."""
        is_first = request.num_output == (sampled is not None)
        is_whole = reason is None or reason in (FinishReason.STOP, FinishReason.LENGTH)
        self._outputs.append(
            Output(
                request_id=request.id,
                token_ids=[] if sampled is None else [sampled.token_id],
                logprobs=None if sampled is None or sampled.logprobs is None else [sampled.logprobs],
                prompt_logprobs=request.prompt_logprobs if is_whole else None,
                finish_reason=reason,
                stop_token_id=sampled.token_id if sampled is not None and reason is FinishReason.STOP else None,
                error=error,
                num_cached_tokens=request.num_cached_tokens if is_first else 0,
                first_scheduled_time=request.first_scheduled_time if is_first else None,
            )
        )
        request.prompt_logprobs = None

    def _preempt(self, request: Request) -> None:
        """Back to the queue: known tokens stay, computed ones are computed again."""
        self.num_preemptions += 1
        self._running.remove(request)
        self.pool.give_back(request.block_table)
        request.restart()
        request.status = Status.WAITING
        self._waiting.push(request)

    def _release(self, request: Request) -> None:
        """Take everything back from a request that ends."""
        if request.status is Status.RUNNING:
            self._running.remove(request)
            self.pool.give_back(request.block_table)
        else:
            self._waiting.remove(request)
        if request.deadline is not None:
            # At once: it may lie a day ahead, and a process that kept it until then would grow with every request.
            del self._deadlines[bisect_left(self._deadlines, (request.deadline, request.id))]
        self._judge_at(request, None)
        request.status = Status.ENDED
        del self._requests[request.id]
