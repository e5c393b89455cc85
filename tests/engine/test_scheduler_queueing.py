"""Order of service, ageing, and what a refused client is told."""

from hypothesis import given
from hypothesis import strategies as st

from capstan_engine.scheduler.queueing import CompletionRate, WaitingQueue, retry_after_s
from capstan_engine.scheduler.request import PRIORITY_LEVEL_S, Request
from fakes import make_submit


def waiting(*requests: tuple[float, int]) -> WaitingQueue:
    """A queue of requests with (arrival, priority); ids are their positions."""
    queue = WaitingQueue()
    for number, (arrival, priority) in enumerate(requests):
        submit = make_submit(str(number), arrival_time=arrival, priority=priority)
        queue.push(Request.from_submit(submit, number, max_model_len=100))
    return queue


def ids(queue: WaitingQueue) -> list[str]:
    return [request.id for request in queue]


def test_the_higher_class_goes_first_then_the_earlier_arrival() -> None:
    assert ids(waiting((0, 0), (2, 1), (1, 1), (1, 0))) == ["2", "1", "0", "3"]


def test_equal_arrivals_keep_their_order_of_submission() -> None:
    assert ids(waiting((0, 0), (0, 0), (0, 0))) == ["0", "1", "2"]


def test_a_low_class_is_overtaken_only_by_what_arrives_within_its_head_start() -> None:
    assert ids(waiting((0, 0), (PRIORITY_LEVEL_S - 1, 1), (PRIORITY_LEVEL_S + 1, 1))) == ["1", "0", "2"]


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(-2, 2)), min_size=1), st.data())
def test_removing_any_request_leaves_the_others_in_order(
    requests: list[tuple[float, int]], data: st.DataObject
) -> None:
    queue = waiting(*requests)
    before = list(queue)
    gone = data.draw(st.sampled_from(before))
    queue.remove(gone)
    assert list(queue) == [request for request in before if request is not gone]
    assert len(queue) == len(before) - 1


def test_retry_after_is_the_time_to_serve_what_waits_at_the_measured_rate() -> None:
    rate = CompletionRate()
    for end in range(10):
        rate.record(float(end), num_waiting=3)
    # Ten ends in ten seconds, three wait.
    assert retry_after_s(waiting((0, 0), (0, 0), (0, 0)), rate, now=10.0) == 3.0


def test_ends_at_an_empty_queue_say_nothing_about_capacity() -> None:
    rate = CompletionRate()
    rate.record(0.0, num_waiting=1)
    rate.record(100.0, num_waiting=0)
    assert rate.seconds_for(1, now=200.0) is None


def test_without_measurements_one_waits_as_long_as_the_longest_has() -> None:
    assert retry_after_s(waiting((3.0, 0), (5.5, 0)), CompletionRate(), now=10.0) == 7.0


@given(st.lists(st.floats(0, 1e6), max_size=100), st.floats(0, 1e6))
def test_retry_after_is_a_whole_number_of_seconds_from_1_to_60(ends: list[float], now: float) -> None:
    rate = CompletionRate()
    for end in sorted(ends):
        rate.record(end, num_waiting=1)
    seconds = retry_after_s(waiting((0, 0)), rate, now)
    assert seconds == int(seconds)
    assert 1 <= seconds <= 60
