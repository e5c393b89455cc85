"""What is known of each engine process from one look to the next."""

import pytest
from worlds import NOW, deployment, engine_metrics, replica, samples

from capstan_operator.decide.seen.engines import Engines
from capstan_operator.decide.seen.observation import Replica
from capstan_operator.decide.seen.tracks import Track, Tracks

WEB = deployment()


def told(at: float = NOW, *, restarts: int = 0, **metrics: float) -> Replica:
    return replica(WEB, metrics=engine_metrics(at, **metrics), restarts=restarts)


def looked(*looks: Replica) -> tuple[Track, tuple[float, ...]]:
    """The track after the last of these looks at a replica, and what passed before it."""
    tracks, passed = Tracks(), tuple[float, ...]()
    for look in looks:
        tracks, passed, _ = tracks.after([look], Engines.of([look]))
    track = tracks.get(looks[-1].id)
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


def test_of_replicas_that_come_go_and_fall_silent_each_keeps_its_own_track() -> None:
    first, second, third = (replica(WEB, i, metrics=engine_metrics(busy_seconds=10 * i)) for i in range(3))
    tracks = Tracks().after([first, second], Engines.of([first, second])).tracks
    silent = first.changed(metrics=None)
    later = second.changed(metrics=engine_metrics(NOW + 2, busy_seconds=11))
    tracks, passed, _ = tracks.after([third, silent, later], Engines.of([third, later]))
    assert passed == (2, 1, 0, 0)
    busy_s = {each.id: track.busy_seconds for each in (first, second, third) if (track := tracks.get(each.id))}
    assert busy_s == {first.id: 0, second.id: 11, third.id: 20}
    tracks, passed, _ = tracks.after([later], Engines.of([later]))
    assert (tracks.ids, passed) == ((second.id,), (0, 0, 0, 0))


def test_tracks_come_through_json_as_they_were() -> None:
    both = [told(busy_seconds=1 / 3, samples=samples(3)), replica(WEB, 1)]
    tracks = Tracks().after(both, Engines.of(both)).tracks
    assert Tracks.from_json(tracks.to_json()) == tracks
