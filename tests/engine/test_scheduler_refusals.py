"""What the scheduler refuses at submission, and what it tells who is refused."""

import pytest

from capstan_engine.errors import QueueFull, RequestError, RequestTooLarge
from engine.scheduler_loop import Loop
from fakes import make_submit


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


def test_at_a_full_queue_the_worst_rank_makes_place_though_it_came_first() -> None:
    loop = Loop(max_sequences=1, max_queued_requests=1)
    for name in ("bulk", "bulk too"):
        loop.submit(make_submit(name, priority=-1))
    with pytest.raises(QueueFull):
        loop.submit(make_submit("bulk as well", priority=-1))
    displaced = loop.scheduler.submit(make_submit("urgent", priority=1))
    assert displaced is not None
    assert displaced.request_id == "bulk too"
    assert 1 <= displaced.error.retry_after_seconds <= 60
    assert loop.scheduler.submit(make_submit("urgent too", priority=1)).request_id == "bulk"
    assert sorted(loop.finish()) == ["urgent", "urgent too"]


def test_what_was_begun_is_not_displaced() -> None:
    loop = Loop(num_blocks=4, max_sequences=2, max_queued_requests=0)
    loop.submit(make_submit("a", prompt=range(4), max_tokens=12, priority=-1))
    loop.submit(make_submit("b", prompt=range(4), max_tokens=12, priority=-1))
    loop.step()
    while not loop.scheduler.num_preemptions:
        loop.step()
    loop.limit(1, 64)
    with pytest.raises(QueueFull):
        loop.submit(make_submit("urgent", priority=1))
    assert sorted(loop.finish()) == ["a", "b"]


def test_a_higher_class_that_came_much_later_displaces_nobody() -> None:
    loop = Loop(max_sequences=1, max_queued_requests=0)
    loop.submit(make_submit("patient"))
    with pytest.raises(QueueFull):
        loop.submit(make_submit("urgent", priority=1, arrival_time=31.0))
