"""Whatever happens, in whatever order: no block is lost or shared wrongly, limits hold, and every request gets the
tokens that it would get alone. Hypothesis searches for the order that breaks it, one step in flight or two.
"""

from collections import Counter, deque
from collections.abc import Callable

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from capstan_api.limits import BatchLimits
from capstan_engine.errors import QueueFull, RequestTooLarge
from capstan_engine.messages import FinishReason, Output, Submit
from capstan_engine.scheduler.request import LATE_HANDICAP_S, PRIORITY_LEVEL_S, Rank, Request, Status
from capstan_engine.scheduler.scheduler import Scheduler
from capstan_engine.scheduler.step import UNKNOWN, StepPlan, StepResult
from fakes import FakeRunner, make_submit

NUM_BLOCKS = 14
BLOCK_SIZE = 4
MAX_MODEL_LEN = 40

# Few different tokens and prefixes, so that prompts really share blocks.
prompts = st.builds(
    lambda start, length, tail: ([start] * length)[:30] + tail,
    st.integers(0, 2),
    st.sampled_from([0, 3, 4, 8, 12, 20]),
    st.lists(st.integers(0, 2), min_size=1, max_size=6),
)


def alone(submit: Submit) -> list[int]:
    """The tokens of a request that has an engine for itself, without cache and without chunks."""
    runner = FakeRunner(num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE)
    scheduler = new_scheduler(BatchLimits(max_sequences=1, max_batched_tokens=1000), prefix_caching=False)
    scheduler.submit(msgspec.structs.replace(submit, deadline=None))
    tokens: list[int] = []
    while scheduler.has_work:
        plan = scheduler.plan(0.0)
        for output in scheduler.commit(plan, runner.execute(plan), 0.0):
            tokens += output.token_ids
    return tokens


def new_scheduler(limits: BatchLimits, *, prefix_caching: bool) -> Scheduler:
    return Scheduler(
        num_blocks=NUM_BLOCKS,
        block_size=BLOCK_SIZE,
        max_model_len=MAX_MODEL_LEN,
        limits=limits,
        max_queued_requests=6,
        prefix_caching=prefix_caching,
    )


class SchedulerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = FakeRunner(num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE)
        self.limits = BatchLimits(max_sequences=4, max_batched_tokens=16)
        self.scheduler = new_scheduler(self.limits, prefix_caching=True)
        self.now = 0.0
        self.flights: deque[tuple[StepPlan, Callable[[], StepResult]]] = deque()
        self.submits: dict[str, Submit] = {}
        self.tokens: dict[str, list[int]] = {}
        self.expected: dict[str, list[int]] = {}
        self.ends: dict[str, FinishReason] = {}
        self.aborted: set[str] = set()

    @rule(
        prompt=prompts,
        priority=st.integers(0, 1),
        patience=st.none() | st.integers(1, 30),
        ttft=st.none() | st.integers(0, 8),
        salt=st.sampled_from(["", "", "tenant"]),
        seed=st.integers(0, 1),
        max_tokens=st.integers(0, 25),
        min_tokens=st.integers(0, 3),
        stop_token_ids=st.sampled_from([(), tuple(range(0, 97, 5))]),
    )
    def submit(
        self,
        prompt: list[int],
        priority: int,
        patience: int | None,
        ttft: int | None,
        salt: str,
        seed: int,
        max_tokens: int,
        min_tokens: int,
        stop_token_ids: tuple[int, ...],
    ) -> None:
        submit = make_submit(
            f"r{len(self.submits)}",
            prompt,
            arrival_time=self.now,
            priority=priority,
            deadline=None if patience is None else self.now + patience,
            first_token_due=None if ttft is None else self.now + ttft,
            cache_salt=salt,
            seed=seed,
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            stop_token_ids=stop_token_ids,
        )
        ranks = {r.id: r.rank for r in self.scheduler._waiting if r.first_scheduled_time is None}
        try:
            displaced = self.scheduler.submit(submit)
        except QueueFull:
            assert self.scheduler.num_waiting >= 6
            return
        except RequestTooLarge:
            assert len(prompt) + max_tokens > min(MAX_MODEL_LEN, NUM_BLOCKS * BLOCK_SIZE)
            return
        if displaced is not None:
            assert ranks[displaced.request_id] == max(ranks.values())
            assert ranks[displaced.request_id][0] > self.now - priority * PRIORITY_LEVEL_S
            assert not self.tokens[displaced.request_id]
            self.aborted.add(displaced.request_id)
        self.submits[submit.request_id] = submit
        self.tokens[submit.request_id] = []
        self.expected[submit.request_id] = alone(submit)

    def open_ids(self) -> list[str]:
        return [i for i in self.submits if i not in self.ends and i not in self.aborted]

    @precondition(lambda self: self.open_ids())
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(self.open_ids()))
        self.scheduler.abort([request_id])
        self.aborted.add(request_id)

    @rule(max_sequences=st.integers(1, 5), max_batched_tokens=st.integers(1, 24))
    def set_limits(self, max_sequences: int, max_batched_tokens: int) -> None:
        self.limits = BatchLimits(max_sequences=max_sequences, max_batched_tokens=max_batched_tokens)
        self.scheduler.set_limits(self.limits)

    @precondition(lambda self: len(self.flights) < 2)
    @rule(seconds=st.integers(0, 3))
    def plan(self, seconds: int) -> None:
        self.now += seconds
        running, preemptions = self.scheduler.num_running, self.scheduler.num_preemptions
        before = [(r, r.rank, bool(r.output_token_ids)) for r in self.scheduler._requests.values()]
        plan = self.scheduler.plan(self.now)
        self.check_ranks(before, len(self.flights))
        assert plan.num_tokens <= self.limits.max_batched_tokens
        assert plan.num_tokens == plan.num_prefill_tokens + plan.num_decodes
        assert self.scheduler.num_running <= max(self.limits.max_sequences, running)
        if not plan:
            assert not self.scheduler.has_work or self.scheduler.num_preemptions > preemptions or self.flights
        for scheduled in plan.scheduled:
            submit = self.submits[scheduled.request_id]
            assert submit.deadline is None or submit.deadline >= self.now
            known = submit.prompt_token_ids + self.tokens[scheduled.request_id]
            if scheduled.token_ids[-1] == UNKNOWN:
                assert any(s.request_id == scheduled.request_id and s.samples for s in self.flights[-1][0].scheduled)
                known.append(UNKNOWN)
            assert scheduled.token_ids == known[scheduled.start : scheduled.start + scheduled.num_tokens]
            assert scheduled.start + scheduled.num_tokens <= len(submit.prompt_token_ids) + max(
                submit.params.max_tokens - 1, 0
            )
            assert len(scheduled.block_table) * BLOCK_SIZE >= scheduled.start + scheduled.num_tokens
        self.flights.append((plan, self.runner.launch(plan)))

    def moments(self, request_id: str) -> tuple[float, float]:
        """By which a request is ranked before and after it has yielded."""
        submit = self.submits[request_id]
        own, due = submit.arrival_time - submit.priority * PRIORITY_LEVEL_S, submit.first_token_due
        return own, own if due is None else own + LATE_HANDICAP_S

    def check_ranks(self, before: list[tuple[Request, Rank, bool]], num_in_flight: int) -> None:
        """Who was late at the plan and had no output, known or promised, has yielded once; of the others only who has
        no time for its prompt."""
        for request, rank, had_output in before:
            due, (own, late) = self.submits[request.id].first_token_due, self.moments(request.id)
            assert request.rank[0] in (own, late)
            if request.rank != rank:
                assert not had_output
                assert rank[0] == own
                whole_s = self.scheduler._pace.seconds_for(len(request.prompt_token_ids), num_in_flight)
                assert due <= self.now + whole_s
            if request.status is not Status.ENDED and not had_output and due is not None and due <= self.now:
                assert request.rank[0] == late
            if request.num_output:
                assert request.rank == request.arrival_rank

    @precondition(lambda self: self.flights)
    @rule()
    def commit(self) -> None:
        plan, land = self.flights.popleft()
        for output in self.scheduler.commit(plan, land(), self.now):
            self.take(output)

    def take(self, output: Output) -> None:
        request_id = output.request_id
        assert request_id not in self.ends, "nothing follows an end"
        # An end by deadline is decided in the plan, and may be on its way when the client aborts.
        if request_id in self.aborted:
            assert output.finish_reason is FinishReason.DEADLINE
            return
        submit, tokens, expected = self.submits[request_id], self.tokens[request_id], self.expected[request_id]
        tokens += output.token_ids
        assert tokens == expected[: len(tokens)]
        if output.finish_reason is None:
            return
        self.ends[request_id] = output.finish_reason
        if output.finish_reason is FinishReason.DEADLINE:
            assert submit.deadline is not None
            assert submit.deadline < self.now
        else:
            assert tokens == expected
            stopped = bool(tokens) and tokens[-1] in submit.params.stop_token_ids
            stopped = stopped and len(tokens) > submit.params.min_tokens
            assert output.finish_reason is (FinishReason.STOP if stopped else FinishReason.LENGTH)

    @invariant()
    def the_blocks_held_are_those_of_the_running_requests(self) -> None:
        scheduler = self.scheduler
        holders = Counter(block for request in scheduler._running for block in request.block_table)
        assert scheduler.pool.num_held == len(holders)
        for block, count in holders.items():
            assert scheduler.pool._holders[block] == count
        assert all(not request.block_table for request in scheduler._waiting)

    @invariant()
    def every_open_request_is_in_one_place(self) -> None:
        scheduler = self.scheduler
        assert all(request.status is Status.RUNNING for request in scheduler._running)
        assert all(request.status is Status.WAITING for request in scheduler._waiting)
        places = [request.id for request in [*scheduler._running, *scheduler._waiting]]
        assert sorted(places) == sorted(scheduler._requests)
        expiring = [r.id for r in scheduler._requests.values() if r.deadline is not None]
        assert sorted(request_id for _, request_id in scheduler._deadlines) == sorted(expiring)
        waiting = [request.rank for request in scheduler._waiting]
        assert waiting == sorted(waiting)
        undecided = [r for r in scheduler._requests.values() if r.judged_at is not None]
        assert scheduler._judgements == sorted((r.judged_at, r.id) for r in undecided)
        assert all(r.num_output == 0 and r.judged_at <= r.first_token_due for r in undecided)

    @invariant()
    def shared_blocks_hold_the_same_past(self) -> None:
        pasts: dict[int, tuple[str, tuple[int, ...]]] = {}
        for request in self.scheduler._running:
            for index, block in enumerate(request.block_table):
                past = (request.cache_salt, tuple(request.token_ids[: (index + 1) * BLOCK_SIZE]))
                assert pasts.setdefault(block, past) == past

    def teardown(self) -> None:
        while self.flights:
            self.commit()
        for _ in range(2000):
            if not self.scheduler.has_work:
                break
            self.plan(0)
            self.commit()
        assert not self.open_ids()
        assert self.scheduler.pool.num_held == 0


SchedulerMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=50)
test_everything_ends_with_the_tokens_it_would_get_alone = SchedulerMachine.TestCase
