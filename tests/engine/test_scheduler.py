"""What a step may do: budget, order, admission, preemption, limits, deadlines, ends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan_api.limits import BatchLimits
from capstan_engine.errors import QueueFull, RequestError, RequestTooLarge
from capstan_engine.messages import FinishReason, Output, Submit
from capstan_engine.scheduler.request import PRIORITY_LEVEL_S
from capstan_engine.scheduler.scheduler import Scheduler
from capstan_engine.scheduler.step import StepPlan, StepResult
from fakes import FakeRunner, make_submit


class Loop:
    """A scheduler, a fake runner and a clock that stands still unless told."""

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        max_sequences: int = 8,
        max_batched_tokens: int = 64,
        max_queued_requests: int = 100,
        max_model_len: int = 200,
        prefix_caching: bool = True,
    ) -> None:
        self.runner = FakeRunner(num_blocks=num_blocks, block_size=4)
        self.scheduler = Scheduler(
            num_blocks=num_blocks,
            block_size=4,
            max_model_len=max_model_len,
            limits=BatchLimits(max_sequences=max_sequences, max_batched_tokens=max_batched_tokens),
            max_queued_requests=max_queued_requests,
            prefix_caching=prefix_caching,
        )
        self.now = 0.0

    def submit(self, *submits: Submit) -> None:
        for submit in submits:
            self.scheduler.submit(submit)

    def step(self) -> tuple[StepPlan, list[Output]]:
        plan = self.scheduler.plan(self.now)
        result = self.runner.execute(plan) if plan else StepResult()
        return plan, self.scheduler.commit(plan, result, self.now)

    def finish(self, max_steps: int = 1000) -> dict[str, list[Output]]:
        """Run until nothing is left; outputs by request."""
        outputs: dict[str, list[Output]] = {}
        for _ in range(max_steps):
            if not self.scheduler.has_work:
                return outputs
            for output in self.step()[1]:
                outputs.setdefault(output.request_id, []).append(output)
        raise AssertionError(f"still working after {max_steps} steps")

    def limit(self, max_sequences: int, max_batched_tokens: int) -> None:
        self.scheduler.set_limits(BatchLimits(max_sequences=max_sequences, max_batched_tokens=max_batched_tokens))


def served(plan: StepPlan) -> dict[str, int]:
    """Tokens per request in a step."""
    return {s.request_id: s.num_tokens for s in plan.scheduled}


def reason(outputs: list[Output]) -> FinishReason | None:
    return outputs[-1].finish_reason


# --- budget and order --------------------------------------------------------------------------------------------


def test_a_long_prompt_is_computed_in_chunks_and_samples_only_at_its_end() -> None:
    loop = Loop(max_batched_tokens=16)
    loop.submit(make_submit(prompt=range(40)))
    chunks = [loop.step()[0].scheduled[0] for _ in range(4)]
    assert [(c.start, c.num_tokens, c.samples) for c in chunks] == [
        (0, 16, False),
        (16, 16, False),
        (32, 8, True),
        (40, 1, True),
    ]


def test_decodes_come_before_prompts_so_that_a_long_prompt_delays_no_token() -> None:
    loop = Loop(max_batched_tokens=16)
    loop.submit(make_submit("old", max_tokens=20))
    loop.step()
    loop.submit(make_submit("new", prompt=range(60), priority=5))
    assert served(loop.step()[0]) == {"old": 1, "new": 15}
    assert served(loop.step()[0]) == {"old": 1, "new": 15}


def test_one_step_mixes_decodes_and_prompts_and_counts_them_for_the_latency_model() -> None:
    loop = Loop(max_batched_tokens=20)
    loop.submit(make_submit("decode", prompt=range(10)))
    loop.step()
    loop.submit(make_submit("prompt", prompt=range(20, 60)))
    loop.step()
    plan, _ = loop.step()
    assert served(plan) == {"decode": 1, "prompt": 19}
    assert (plan.num_prefill_tokens, plan.num_decodes, plan.context_tokens) == (19, 1, 12)
    # The chunk of 19 stands at depth 19.
    assert plan.attention_pairs == 19 * 19 + 19 * 19 // 2


def test_a_higher_class_is_prefilled_before_a_lower_one_that_is_half_way_through_its_prompt() -> None:
    loop = Loop(max_batched_tokens=16)
    loop.submit(make_submit("low", prompt=range(60)))
    loop.step()
    loop.submit(make_submit("high", prompt=range(60, 70), priority=1))
    assert served(loop.step()[0]) == {"high": 10, "low": 6}


def test_within_a_class_a_prompt_once_begun_is_finished_first() -> None:
    loop = Loop(max_batched_tokens=16)
    loop.submit(make_submit("first", prompt=range(40)), make_submit("second", prompt=range(40, 60)))
    assert [served(loop.step()[0]) for _ in range(3)] == [{"first": 16}, {"first": 16}, {"first": 8, "second": 8}]


def test_nobody_slips_past_a_head_of_the_queue_that_does_not_fit() -> None:
    loop = Loop(num_blocks=10)
    loop.submit(make_submit("running", prompt=range(20), max_tokens=2))
    loop.step()
    loop.submit(make_submit("large", prompt=range(50, 80), max_tokens=1), make_submit("small", max_tokens=1))
    assert served(loop.step()[0]) == {"running": 1}
    assert served(loop.step()[0]) == {"large": 30, "small": 3}


@given(st.integers(1, 12), st.integers(1, 40), st.lists(st.integers(1, 50), min_size=1, max_size=12))
def test_no_step_exceeds_its_token_budget_or_its_sequence_limit(
    max_sequences: int, max_batched_tokens: int, prompt_lengths: list[int]
) -> None:
    loop = Loop(num_blocks=200, max_sequences=max_sequences, max_batched_tokens=max_batched_tokens)
    for number, length in enumerate(prompt_lengths):
        loop.submit(make_submit(f"r{number}", prompt=range(length), max_tokens=3))
    for _ in range(1000):
        if not loop.scheduler.has_work:
            break
        plan, _ = loop.step()
        assert 0 < plan.num_tokens <= max_batched_tokens
        assert plan.num_tokens == plan.num_prefill_tokens + plan.num_decodes
        assert loop.scheduler.num_running <= max_sequences
    assert not loop.scheduler.has_work


# --- limits ------------------------------------------------------------------------------------------------------


def test_lowering_max_sequences_drains_and_preempts_nobody() -> None:
    loop = Loop(max_sequences=4)
    loop.submit(*(make_submit(f"r{i}", max_tokens=3 + i) for i in range(6)))
    loop.step()
    loop.limit(max_sequences=2, max_batched_tokens=64)
    running = []
    while loop.scheduler.has_work:
        running.append(len(served(loop.step()[0])))
    assert running[:3] == [4, 4, 3]
    assert max(running[4:]) == 2
    assert loop.scheduler.num_preemptions == 0


def test_raising_limits_admits_in_the_very_next_step() -> None:
    loop = Loop(max_sequences=1)
    loop.submit(*(make_submit(f"r{i}") for i in range(3)))
    assert len(served(loop.step()[0])) == 1
    loop.limit(max_sequences=3, max_batched_tokens=64)
    assert len(served(loop.step()[0])) == 3


def test_a_budget_below_the_number_of_decodes_gives_each_a_fair_turn() -> None:
    loop = Loop(max_sequences=5)
    loop.submit(*(make_submit(f"r{i}", max_tokens=20) for i in range(5)))
    loop.step()
    loop.limit(max_sequences=5, max_batched_tokens=2)
    turns = [request_id for _ in range(5) for request_id in served(loop.step()[0])]
    assert sorted(turns) == sorted([f"r{i}" for i in range(5)] * 2)
    assert all(reason(outputs) is FinishReason.LENGTH for outputs in loop.finish().values())


# --- admission, preemption and blocks ----------------------------------------------------------------------------


def test_admission_leaves_the_watermark_free_while_others_run() -> None:
    loop = Loop(num_blocks=10)
    loop.submit(make_submit("running", prompt=range(20), max_tokens=20))
    loop.step()
    # The running request takes its sixth block now. Four are free, and one of them is the watermark.
    loop.submit(make_submit("exact", prompt=range(20, 36), max_tokens=4))
    assert "exact" not in served(loop.step()[0])
    loop.scheduler.abort(["exact"])
    loop.submit(make_submit("less", prompt=range(20, 32), max_tokens=4))
    assert "less" in served(loop.step()[0])


def test_the_watermark_does_not_keep_the_only_request_out() -> None:
    loop = Loop(num_blocks=4)
    loop.submit(make_submit(prompt=range(15), max_tokens=1))
    assert loop.finish()["r"][-1].finish_reason is FinishReason.LENGTH


def test_preemption_takes_the_lowest_class_then_the_latest_arrival() -> None:
    loop = Loop(num_blocks=9)
    loop.submit(
        make_submit("early low", [1, 2, 3, 4], arrival_time=0, max_tokens=12),
        make_submit("late low", [2, 3, 4, 5], arrival_time=2, max_tokens=12),
        make_submit("late high", [3, 4, 5, 6], arrival_time=3, priority=1, max_tokens=12),
    )
    preempted = []
    for _ in range(60):
        before, waiting = loop.scheduler.num_preemptions, {r.id for r in loop.scheduler._waiting}
        if not loop.scheduler.has_work:
            break
        loop.step()
        if loop.scheduler.num_preemptions > before:
            preempted += sorted({r.id for r in loop.scheduler._waiting} - waiting)
    assert preempted
    assert preempted[0] == "late low"
    assert "late high" not in preempted


def test_a_preempted_request_returns_before_its_class_and_keeps_its_tokens() -> None:
    loop = Loop(num_blocks=8)
    loop.submit(*(make_submit(f"r{i}", [i] * 7, max_tokens=12, arrival_time=i) for i in range(3)))
    outputs = loop.finish()
    assert loop.scheduler.num_preemptions > 0
    for number in range(3):
        alone = Loop()
        alone.submit(make_submit(f"r{number}", [number] * 7, max_tokens=12))
        assert [o.token_ids for o in outputs[f"r{number}"]] == [o.token_ids for o in alone.finish()[f"r{number}"]]


def test_the_blocks_of_a_running_prefix_are_shared_from_the_step_after_it_was_computed() -> None:
    loop = Loop()
    loop.submit(make_submit("a", range(16)), make_submit("b", range(16)))
    assert served(loop.step()[0]) == {"a": 16, "b": 16}
    loop.submit(make_submit("c", range(16)))
    plan, outputs = loop.step()
    assert served(plan)["c"] == 4
    tables = {s.request_id: s.block_table for s in plan.scheduled}
    assert tables["c"][:3] == tables["a"][:3]
    assert next(o for o in outputs if o.request_id == "c").num_cached_tokens == 12
    assert (loop.scheduler.num_prefix_queries, loop.scheduler.num_prefix_hits) == (48, 12)


def test_a_single_full_block_is_shared_as_soon_as_it_is_computed() -> None:
    loop = Loop()
    loop.submit(make_submit("a", range(5)))
    loop.step()
    loop.submit(make_submit("b", range(5)))
    assert served(loop.step()[0])["b"] == 1


def test_cached_blocks_that_nobody_holds_count_once_at_admission() -> None:
    loop = Loop(num_blocks=6)
    loop.submit(make_submit("a", range(20), max_tokens=1))
    loop.finish()
    loop.submit(make_submit("b", range(20), max_tokens=4))
    assert served(loop.step()[0]) == {"b": 4}
    loop.finish()
    assert loop.scheduler.pool.num_held == 0


def test_without_prefix_caching_nothing_is_shared() -> None:
    loop = Loop(prefix_caching=False)
    for request_id in "ab":
        loop.submit(make_submit(request_id, range(16), max_tokens=1))
        assert loop.finish()[request_id][0].num_cached_tokens == 0
    assert loop.scheduler.pool.num_cached == 0
    assert loop.scheduler.num_prefix_queries == 0


def test_prompt_logprobs_compute_every_position_and_come_whole_with_the_first_output() -> None:
    loop = Loop(max_batched_tokens=5)
    loop.submit(make_submit("warm", range(16), max_tokens=1))
    loop.finish()
    loop.submit(make_submit("asks", range(16), max_tokens=3, prompt_logprobs=0))
    outputs = loop.finish()["asks"]
    assert outputs[0].num_cached_tokens == 0
    assert outputs[0].prompt_logprobs is not None
    assert [p and p.ids[0] for p in outputs[0].prompt_logprobs] == [None, *range(1, 16)]
    assert all(o.prompt_logprobs is None for o in outputs[1:])


def test_prompt_logprobs_are_whole_after_a_preemption_in_the_middle_of_the_prompt() -> None:
    loop = Loop(num_blocks=9, max_batched_tokens=3)
    loop.submit(make_submit("high", [50, 51, 52, 53], priority=1, max_tokens=12))
    loop.step()
    loop.step()
    loop.submit(make_submit("asks", range(24), max_tokens=1, prompt_logprobs=0))
    output = loop.finish()["asks"][0]
    assert loop.scheduler.num_preemptions == 1
    assert output.prompt_logprobs is not None
    assert [p and p.ids[0] for p in output.prompt_logprobs] == [None, *range(1, 24)]


def test_the_first_scheduled_time_is_that_of_the_first_chunk() -> None:
    loop = Loop(max_batched_tokens=4)
    loop.submit(make_submit(prompt=range(10), max_tokens=2))
    outputs = []
    for second in (1.0, 2.0, 3.0, 4.0):
        loop.now = second
        outputs += loop.step()[1]
    assert [o.first_scheduled_time for o in outputs] == [1.0, None]


# --- ends --------------------------------------------------------------------------------------------------------


def test_a_stop_id_ends_the_request_and_is_its_last_token() -> None:
    free = Loop()
    free.submit(make_submit(max_tokens=20))
    tokens = [o.token_ids[0] for o in free.finish()["r"]]
    stop = tokens[6]
    loop = Loop()
    loop.submit(make_submit(max_tokens=20, stop_token_ids=(stop,)))
    outputs = loop.finish()["r"]
    assert [o.token_ids[0] for o in outputs] == tokens[: tokens.index(stop) + 1]
    assert (outputs[-1].finish_reason, outputs[-1].stop_token_id) == (FinishReason.STOP, stop)


def test_a_stop_id_within_min_tokens_ends_nothing() -> None:
    class Stubborn(FakeRunner):
        """Draws the stop id although it should be masked."""

        def _sample(self, request: object, past: int) -> int:
            return 7

    loop = Loop()
    loop.runner = Stubborn(block_size=4)
    loop.submit(make_submit(max_tokens=20, min_tokens=3, stop_token_ids=(7,)))
    assert len(loop.finish()["r"]) == 4


def test_the_last_token_by_stop_id_is_a_stop_and_not_a_length() -> None:
    free = Loop()
    free.submit(make_submit(max_tokens=3))
    last = free.finish()["r"][-1].token_ids[0]
    loop = Loop()
    loop.submit(make_submit(max_tokens=3, stop_token_ids=(last,)))
    assert reason(loop.finish()["r"]) is FinishReason.STOP


def test_max_model_len_ends_a_request_with_length() -> None:
    loop = Loop(max_model_len=10)
    loop.submit(make_submit(prompt=range(6), max_tokens=100))
    outputs = loop.finish()["r"]
    assert len(outputs) == 4
    assert reason(outputs) is FinishReason.LENGTH


def test_max_tokens_0_computes_the_prompt_and_draws_nothing() -> None:
    loop = Loop(max_batched_tokens=4, max_model_len=10)
    loop.submit(make_submit(prompt=range(10), max_tokens=0, prompt_logprobs=0))
    (output,) = loop.finish()["r"]
    assert (output.token_ids, output.finish_reason) == ([], FinishReason.LENGTH)
    assert output.prompt_logprobs is not None
    assert len(output.prompt_logprobs) == 10


def test_a_request_that_fails_alone_leaves_the_others_and_its_blocks_unshared() -> None:
    loop = Loop()
    loop.runner.broken = {"bad"}
    loop.submit(make_submit("bad", range(16)), make_submit("good", range(16, 32)))
    outputs = loop.finish()
    assert (reason(outputs["bad"]), outputs["bad"][-1].error) == (FinishReason.ERROR, "logits are not finite")
    assert len(outputs["good"]) == 8
    loop.submit(make_submit("again", range(16), max_tokens=1))
    assert loop.finish()["again"][0].num_cached_tokens == 0


def test_blocks_of_a_failing_request_are_withdrawn_from_the_cache() -> None:
    loop = Loop(max_batched_tokens=8)
    loop.submit(make_submit("bad", range(16)))
    loop.step()
    loop.runner.broken = {"bad"}
    loop.finish()
    assert loop.scheduler.pool.num_cached == 0


# --- deadlines and aborts ----------------------------------------------------------------------------------------


def test_a_request_that_expired_while_waiting_is_never_computed() -> None:
    loop = Loop(max_sequences=1)
    loop.submit(make_submit("running"), make_submit("late", deadline=1.0))
    loop.step()
    loop.now = 2.0
    outputs = loop.finish()
    assert [o.finish_reason for o in outputs["late"]] == [FinishReason.DEADLINE]
    assert outputs["late"][0].first_scheduled_time is None
    assert all("late" not in served(plan) for plan in loop.runner.plans)


def test_a_running_request_ends_at_the_first_boundary_after_its_deadline() -> None:
    loop = Loop()
    loop.submit(make_submit(deadline=1.0, max_tokens=100))
    loop.step()
    loop.now = 1.0
    assert loop.step()[1][0].finish_reason is None
    loop.now = 1.1
    plan, outputs = loop.step()
    assert not plan
    assert [o.finish_reason for o in outputs] == [FinishReason.DEADLINE]
    assert loop.scheduler.pool.num_held == 0


def test_a_used_id_is_not_ended_by_its_predecessors_deadline() -> None:
    loop = Loop()
    loop.submit(make_submit(deadline=1.0))
    loop.scheduler.abort(["r"])
    loop.submit(make_submit())
    loop.now = 5.0
    assert reason(loop.finish()["r"]) is FinishReason.LENGTH


def test_an_abort_between_plan_and_commit_drops_the_result_and_frees_the_blocks() -> None:
    loop = Loop()
    loop.submit(make_submit("gone", range(16)), make_submit("stays", range(16, 32)))
    plan = loop.scheduler.plan(0.0)
    result = loop.runner.execute(plan)
    loop.scheduler.abort(["gone", "unknown"])
    outputs = loop.scheduler.commit(plan, result, 0.0)
    assert [o.request_id for o in outputs] == ["stays"]
    assert loop.scheduler.pool.num_cached == 0
    assert len(loop.finish()["stays"]) == 7


def test_a_result_never_reaches_a_later_request_of_the_same_id() -> None:
    loop = Loop()
    loop.submit(make_submit(prompt=[1, 2, 3]))
    plan = loop.scheduler.plan(0.0)
    result = loop.runner.execute(plan)
    loop.scheduler.abort(["r"])
    loop.submit(make_submit(prompt=[4, 5, 6]))
    assert loop.scheduler.commit(plan, result, 0.0) == []
    assert len(loop.finish()["r"]) == 8


# --- refusals ----------------------------------------------------------------------------------------------------


def test_a_request_that_could_never_fit_is_refused_with_both_numbers() -> None:
    loop = Loop(num_blocks=8, max_model_len=200)
    with pytest.raises(RequestTooLarge, match=r"20 prompt tokens plus max_tokens 13 .* 32") as error:
        loop.submit(make_submit(prompt=range(20), max_tokens=13))
    assert error.value.param == "max_tokens"
    loop.submit(make_submit(prompt=range(20), max_tokens=12))
    assert len(loop.finish()["r"]) == 12


def test_a_prompt_that_fills_the_context_is_refused() -> None:
    with pytest.raises(RequestTooLarge, match=r"10 tokens.*max_model_len is 10"):
        Loop(max_model_len=10).submit(make_submit(prompt=range(10)))


def test_an_empty_prompt_and_a_used_id_are_refused() -> None:
    loop = Loop()
    with pytest.raises(RequestError, match="at least one token"):
        loop.submit(make_submit(prompt=[]))
    loop.submit(make_submit())
    with pytest.raises(RequestError, match="'r' is already in use"):
        loop.submit(make_submit())


def test_the_queue_is_bounded_beyond_what_can_run_at_once() -> None:
    loop = Loop(max_sequences=2, max_queued_requests=3)
    loop.submit(*(make_submit(f"r{i}") for i in range(5)))
    with pytest.raises(QueueFull) as full:
        loop.submit(make_submit("one too many"))
    assert 1 <= full.value.retry_after_seconds <= 60
    assert len(loop.finish()) == 5


def test_the_time_to_retry_follows_from_how_fast_requests_end() -> None:
    loop = Loop(max_sequences=1, max_queued_requests=4)
    number = 0
    for second in range(0, 40, 2):
        loop.now = float(second)
        while loop.scheduler.num_waiting < 5:
            number += 1
            loop.submit(make_submit(f"r{number}", arrival_time=loop.now, max_tokens=1))
        loop.step()
    loop.submit(make_submit("last place", arrival_time=38.0))
    with pytest.raises(QueueFull) as full:
        loop.submit(make_submit("one too many", arrival_time=40.0))
    # One ends every two seconds, five wait.
    assert full.value.retry_after_seconds == 10


def test_no_queue_at_all_still_takes_what_can_run_at_once() -> None:
    loop = Loop(max_sequences=1, max_queued_requests=0)
    loop.submit(make_submit("a"))
    with pytest.raises(QueueFull):
        loop.submit(make_submit("b"))


def test_a_low_class_does_not_starve_under_a_steady_stream_of_a_high_one() -> None:
    loop = Loop(max_sequences=1, max_queued_requests=1000)
    loop.submit(make_submit("low", max_tokens=1))
    ended: list[str] = []
    for second in range(int(PRIORITY_LEVEL_S) + 2):
        loop.now = float(second)
        loop.submit(*(make_submit(f"{second}.{i}", arrival_time=loop.now, priority=1, max_tokens=1) for i in range(2)))
        ended += [output.request_id for output in loop.step()[1]]
    assert "low" not in ended[:20]
    while "low" not in ended and loop.scheduler.has_work:
        ended += [output.request_id for output in loop.step()[1]]
    assert ended.index("low") < 2 * PRIORITY_LEVEL_S + 2
