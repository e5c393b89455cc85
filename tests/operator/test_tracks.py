"""What is known of each engine process from one look to the next."""

import pytest
from worlds import NOW, deployment, engine_metrics, replica, samples

from capstan_operator.decide.seen.observation import Replica
from capstan_operator.decide.seen.tracks import Track

WEB = deployment()


def told(at: float = NOW, *, restarts: int = 0, **metrics: float) -> Replica:
    return replica(WEB, metrics=engine_metrics(at, **metrics), restarts=restarts)


def looked(*looks: Replica) -> tuple[Track, tuple[float, ...]]:
    """The track after the last of these looks at a process, and what passed before it."""
    track, passed = None, tuple[float, ...]()
    for look in looks:
        assert look.metrics is not None
        before = track if track is not None and track.is_of(look) else None
        track = Track.after(look, look.metrics, before)
        passed = track.since(before)
    assert track is not None
    return track, passed


def test_nothing_has_passed_at_a_process_that_was_not_there_before() -> None:
    track, passed = looked(told(busy_seconds=50, prefix_hits=9, heartbeat=3))
    assert passed == (0, 0, 0, 0)
    assert (track.at, track.advanced_at, track.last_step, track.recent_hits) == (NOW, NOW, 0, 0)


def test_nothing_has_passed_where_a_counter_ran_backwards() -> None:
    before = told(busy_seconds=10, prefix_queries=100)
    on = told(NOW + 2, busy_seconds=11, prefix_queries=150, prefix_hits=20)
    back = told(NOW + 2, busy_seconds=11, prefix_queries=99)
    assert looked(before, on)[1] == (2, 1, 50, 20)
    assert looked(before, back)[1] == (0, 0, 0, 0)


def test_a_process_that_restarted_under_its_name_is_another_one() -> None:
    first = told(busy_seconds=10, samples=samples(30))
    assert looked(first)[0].last_step == 30
    track, passed = looked(first, told(NOW + 2, busy_seconds=12, restarts=1))
    assert passed == (0, 0, 0, 0)
    assert track.last_step == 0


def test_a_heartbeat_that_stands_still_is_no_advance_however_fresh_the_look() -> None:
    still, _ = looked(told(heartbeat=7), told(NOW + 2, heartbeat=7), told(NOW + 4, heartbeat=7))
    assert (still.at, still.advanced_at) == (NOW + 4, NOW)
    assert looked(told(heartbeat=7), told(NOW + 4, heartbeat=8))[0].advanced_at == NOW + 4


def test_hits_of_a_prefix_cache_are_half_forgotten_in_a_minute() -> None:
    track, _ = looked(told(), told(NOW + 1, prefix_hits=100), told(NOW + 61, prefix_hits=110))
    assert track.recent_hits == pytest.approx(60)
