"""What a step holds: its token budget, the order of decodes and prompts, and limits that change between steps."""

from hypothesis import given
from hypothesis import strategies as st

from capstan_engine.messages import FinishReason
from capstan_engine.scheduler.request import PRIORITY_LEVEL_S
from engine.scheduler_loop import Loop, reason, served
from fakes import make_submit


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


def test_the_first_scheduled_time_is_that_of_the_first_chunk() -> None:
    loop = Loop(max_batched_tokens=4)
    loop.submit(make_submit(prompt=range(10), max_tokens=2))
    outputs = []
    for second in (1.0, 2.0, 3.0, 4.0):
        loop.now = second
        outputs += loop.step()[1]
    assert [o.first_scheduled_time for o in outputs] == [1.0, None]
