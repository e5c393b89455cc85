"""Who gets KV blocks: admission and its watermark, preemption, and prefixes that are shared."""

from capstan_engine.messages import FinishReason
from engine.scheduler_loop import Loop, served
from fakes import make_submit


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
