"""A request whose first token is late, or cannot but be, yields to those that can still be in time: once, and not for
ever."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan_engine.errors import QueueFull
from capstan_engine.scheduler.prefill_pace import PrefillPace
from capstan_engine.scheduler.request import LATE_HANDICAP_S, Request
from engine.scheduler_loop import Loop, served
from fakes import make_submit


def held(loop: Loop, request_id: str) -> Request:
    return loop.scheduler._requests[request_id]


def order(loop: Loop) -> list[str]:
    """Ids in the order in which the requests have their first token."""
    return list(loop.finish())


def test_a_late_request_is_served_after_one_that_can_still_be_in_time() -> None:
    def served_in(now: float) -> list[str]:
        loop = Loop(max_sequences=1)
        loop.submit(make_submit("running", max_tokens=2))
        loop.step()
        loop.submit(
            make_submit("old", arrival_time=0.5, first_token_due=1.5, max_tokens=1),
            make_submit("fresh", arrival_time=1.0, first_token_due=2.0, max_tokens=1),
        )
        loop.now = now
        return order(loop)

    assert served_in(1.49) == ["running", "old", "fresh"]
    # A step that begins when the token is due ends after it.
    assert served_in(1.5) == ["running", "fresh", "old"]
    # Where all are late the order is the old one.
    assert served_in(2.0) == ["running", "old", "fresh"]


@given(st.permutations(range(6)), st.integers(1, 3))
def test_without_thresholds_the_order_is_that_of_arrival_however_late_it_is(
    arrivals: list[int], sequences: int
) -> None:
    loop = Loop(max_sequences=sequences)
    loop.submit(*(make_submit(f"{at}", arrival_time=at, max_tokens=1) for at in arrivals))
    loop.now = 1e6
    assert order(loop) == [f"{at}" for at in range(6)]


def test_it_stands_behind_what_arrives_within_the_handicap_and_no_longer() -> None:
    """A stream that the engine can just serve would keep it out for ever."""
    loop = Loop(max_sequences=1, max_queued_requests=1000)
    loop.submit(make_submit("late", first_token_due=2.0, max_tokens=1))
    loop.submit(make_submit("before", arrival_time=-1.0, max_tokens=1))
    loop.step()
    # The engine stood still until its first token was late.
    loop.now = 2.0
    ended: list[str] = []
    while "late" not in ended and loop.now < 300:
        loop.submit(make_submit(f"{loop.now}", arrival_time=loop.now, first_token_due=loop.now + 2.0, max_tokens=1))
        ended += [output.request_id for output in loop.step()[1]]
        loop.now += 1.0
    in_front = [f"{2.0 + second}" for second in range(118)]
    assert ended == [*in_front, "late"]
    assert loop.now - 1.0 == LATE_HANDICAP_S


def test_a_running_prompt_yields_its_turn_and_keeps_its_blocks_and_its_place() -> None:
    loop = Loop(max_batched_tokens=16, max_sequences=2)
    loop.submit(make_submit("late", prompt=range(40), first_token_due=1.0))
    assert served(loop.step()[0]) == {"late": 16}
    blocks = list(held(loop, "late").block_table)
    loop.now = 1.0
    loop.submit(make_submit("fresh", prompt=range(40, 60), arrival_time=1.0, first_token_due=2.0))
    assert served(loop.step()[0]) == {"fresh": 16}
    assert list(held(loop, "late").block_table) == blocks
    assert loop.scheduler.num_running == 2
    assert served(loop.step()[0]) == {"fresh": 4, "late": 12}
    assert served(loop.step()[0]) == {"fresh": 1, "late": 12}
    assert held(loop, "late").num_output == 1
    assert loop.scheduler.num_preemptions == 0


def test_a_late_prompt_is_preempted_before_one_that_arrived_after_it() -> None:
    def preempted(first_token_due: float) -> list[str]:
        loop = Loop(num_blocks=12, max_batched_tokens=8)
        loop.submit(make_submit("first", [1, 2, 3, 4], priority=1, max_tokens=12))
        loop.submit(make_submit("fresh", [2, 3, 4, 5], arrival_time=0.3, max_tokens=12))
        loop.step()
        # It comes from the gateway, and so slowly that the two need more blocks before it is through.
        loop.submit(make_submit("old", range(10, 34), arrival_time=0.1, first_token_due=first_token_due, max_tokens=1))
        loop.limit(8, 4)
        loop.now = 0.4
        for _ in range(12):
            if not loop.scheduler.num_preemptions:
                loop.step()
        return [request.id for request in loop.scheduler._waiting]

    assert preempted(8.0) == ["fresh"]
    assert preempted(0.4) == ["old"]


def test_one_that_has_output_never_yields_though_it_was_preempted() -> None:
    loop = Loop(num_blocks=4, max_sequences=2)
    loop.submit(make_submit("first", [1, 2, 3, 4], max_tokens=12))
    loop.submit(make_submit("second", [2, 3, 4, 5], max_tokens=12, arrival_time=0.1, first_token_due=5.0))
    for _ in range(20):
        if not loop.scheduler.num_preemptions:
            loop.step()
    (second,) = loop.scheduler._waiting
    assert second.id == "second"
    rank = second.rank
    loop.now = 100.0
    loop.submit(make_submit("fresh", arrival_time=6.0, first_token_due=101.0))
    loop.step()
    assert second.rank == rank
    assert loop.scheduler._waiting.head is second


def test_one_whose_first_token_is_promised_by_a_step_in_flight_does_not_yield() -> None:
    loop = Loop(max_batched_tokens=16)
    loop.submit(
        make_submit("whole", range(10), first_token_due=1.0), make_submit("half", range(20, 40), first_token_due=1.0)
    )
    ranks = {name: held(loop, name).rank for name in ("whole", "half")}
    first = loop.scheduler.plan(0.9)
    assert served(first) == {"whole": 10, "half": 6}
    second = loop.scheduler.plan(1.1)
    loop.scheduler.commit(first, loop.runner.execute(first), 1.1)
    assert held(loop, "whole").rank == ranks["whole"]
    assert held(loop, "half").rank == (LATE_HANDICAP_S, ranks["half"][1])
    loop.scheduler.commit(second, loop.runner.execute(second), 1.1)
    assert held(loop, "half").rank == ranks["half"], "an answer that has begun is not held up"


def test_one_that_loses_its_blocks_before_its_promised_token_came_does_not_yield() -> None:
    loop = Loop()
    loop.submit(make_submit(first_token_due=1.0))
    request = held(loop, "r")
    rank = request.rank
    first = loop.scheduler.plan(0.5)
    loop.scheduler._preempt(request)
    assert request.num_output == 0
    second = loop.scheduler.plan(1.5)
    assert request.rank == rank
    for plan in (first, second):
        loop.scheduler.commit(plan, loop.runner.execute(plan), 1.5)
    assert request.num_output == 2
    assert request.rank == rank


def test_it_yields_once() -> None:
    loop = Loop(max_sequences=1)
    loop.submit(make_submit("running", max_tokens=100), make_submit("late", first_token_due=1.0))
    for now in (0.0, 1.0, 2.0, 60.0):
        loop.now = now
        loop.step()
    assert held(loop, "late").rank == (LATE_HANDICAP_S, 1)


def test_five_levels_higher_it_goes_before_a_lower_one_though_it_is_late() -> None:
    loop = Loop(max_sequences=1)
    loop.submit(make_submit("running", max_tokens=2))
    loop.submit(make_submit("high and late", priority=5, first_token_due=1.0, max_tokens=1))
    loop.submit(make_submit("low", arrival_time=1.0, first_token_due=3.0, max_tokens=1))
    loop.now = 2.0
    assert order(loop) == ["high and late", "running", "low"]


def test_one_that_was_late_before_it_arrived_yields_at_once() -> None:
    loop = Loop(max_sequences=1)
    loop.submit(make_submit("running", max_tokens=100))
    loop.submit(make_submit("retried", arrival_time=10.0, first_token_due=1.0))
    loop.now = 11.0
    loop.step()
    assert held(loop, "retried").rank == (10.0 + LATE_HANDICAP_S, 1)


def test_at_a_full_queue_the_late_one_makes_place_for_one_that_can_be_in_time() -> None:
    loop = Loop(max_sequences=1, max_queued_requests=2)
    loop.submit(make_submit("running", max_tokens=100))
    loop.step()
    loop.submit(
        make_submit("late", arrival_time=0.1, first_token_due=1.1),
        make_submit("in time", arrival_time=0.5, first_token_due=5.5),
    )
    # Nobody has yielded yet: the newest is refused, as ever.
    with pytest.raises(QueueFull):
        loop.submit(make_submit("too early", arrival_time=1.0, first_token_due=2.0))
    loop.now = 1.1
    loop.step()
    displaced = loop.scheduler.submit(make_submit("fresh", arrival_time=1.2, first_token_due=2.2))
    assert displaced is not None
    assert displaced.request_id == "late"
    # Those that arrive later than the handicap cannot.
    loop.now = 2.2
    loop.step()
    with pytest.raises(QueueFull):
        loop.submit(make_submit("much later", arrival_time=160.0, first_token_due=161.0))


@pytest.mark.parametrize("end", ["abort", "deadline", "first token", "error"])
def test_nothing_is_kept_of_a_moment_that_no_longer_matters(end: str) -> None:
    loop = Loop()
    loop.submit(make_submit(first_token_due=1e5, deadline=1.0 if end == "deadline" else None))
    assert loop.scheduler._judgements
    if end == "abort":
        loop.scheduler.abort(["r"])
    elif end == "error":
        loop.runner.broken = {"r"}
    elif end == "deadline":
        loop.now = 2.0
    loop.step()
    assert loop.scheduler._judgements == []
    # The same id anew has a moment of its own.
    loop.scheduler.abort(["r"])
    loop.submit(make_submit(arrival_time=2.0, first_token_due=3.0))
    assert loop.scheduler._judgements == [(3.0, "r")]


# --- before it is late ---------------------------------------------------------------------------------------------


def step_that_takes(loop: Loop, seconds: float) -> dict[str, int]:
    """One step; tokens per request."""
    plan = loop.scheduler.plan(loop.now)
    loop.now += seconds
    loop.scheduler.commit(plan, loop.runner.execute(plan), loop.now)
    return served(plan)


def paced(**options: int) -> Loop:
    """A full step of 16 tokens took a second just now, and it is 1.0."""
    loop = Loop(max_batched_tokens=16, **options)
    loop.submit(make_submit("first", range(100, 116), max_tokens=1))
    step_that_takes(loop, 1.0)
    return loop


@pytest.mark.parametrize(("due", "first"), [(3.51, "long"), (3.49, "fresh")])
def test_a_prompt_for_which_no_time_is_left_yields_before_it_is_late(due: float, first: str) -> None:
    """32 tokens take two steps, and half of another one on average."""
    loop = paced()
    loop.submit(
        make_submit("long", range(32), first_token_due=due, max_tokens=1),
        make_submit("fresh", range(40, 56), arrival_time=0.5, first_token_due=9.0, max_tokens=1),
    )
    assert served(loop.step()[0]) == {first: 16}


def test_what_is_computed_of_it_already_is_time_that_it_does_not_need() -> None:
    loop = paced(max_sequences=2)
    loop.submit(make_submit("long", range(48), first_token_due=4.6, max_tokens=1))
    rank = held(loop, "long").rank
    for _ in range(3):
        assert step_that_takes(loop, 1.0) == {"long": 16}
        if loop.now < 4:
            assert held(loop, "long").rank == rank
    assert loop.now == 4.0


def test_what_is_cached_of_it_is_too() -> None:
    def yields(salt: str) -> bool:
        loop = Loop(max_batched_tokens=16)
        loop.submit(make_submit("before", range(33), max_tokens=1))
        for _ in range(3):
            step_that_takes(loop, 1.0)
        loop.submit(make_submit("again", range(33), first_token_due=5.0, cache_salt=salt))
        rank = held(loop, "again").rank
        loop.scheduler.plan(loop.now)
        return held(loop, "again").rank != rank

    assert not yields(salt="")
    assert yields(salt="another")


def test_a_step_with_room_to_spare_says_nothing_of_the_pace() -> None:
    loop = Loop(max_batched_tokens=17)
    loop.submit(make_submit("first", range(16), max_tokens=1))
    step_that_takes(loop, 10.0)
    assert loop.scheduler._pace.seconds_for(1000) == 0


def test_of_a_step_that_was_planned_ahead_only_its_own_time_counts() -> None:
    loop = Loop(max_batched_tokens=16)
    loop.submit(make_submit("long", range(32), max_tokens=1))
    plans = [loop.scheduler.plan(0.0), loop.scheduler.plan(0.0)]
    for at, plan in zip((1.0, 1.5), plans, strict=True):
        loop.scheduler.commit(plan, loop.runner.execute(plan), at)
    assert loop.scheduler._pace.seconds_for(16) == 0.75


def test_the_pace_is_that_of_the_fastest_of_the_last_full_steps() -> None:
    pace = PrefillPace()
    assert pace.seconds_for(1_000_000) == 0
    for seconds in (0.1, 5.0, 0.1, 0.1):
        pace.learn(100, seconds)
        assert pace.seconds_for(200) == pytest.approx(0.25), "a hiccup makes nobody late"
    for _ in range(4):
        pace.learn(100, 0.2)
    assert pace.seconds_for(200) == pytest.approx(0.5)
    assert pace.seconds_for(200, num_in_flight=1) == pytest.approx(0.7)
