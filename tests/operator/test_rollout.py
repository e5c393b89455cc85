"""Replicas come and go within surge and availability, and whatever happens in between, the end is the same."""

from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from capstan_operator.decide.rollout import plan
from capstan_operator.decide.seen.observation import Phase, Replica

LIVE = (Phase.PENDING, Phase.STARTING, Phase.READY, Phase.FAILED)


def make(name: str, revision: str, phase: Phase, age: int = 0) -> Replica:
    return Replica(id=name, revision=revision, phase=phase, created_at=1000.0 - age)


def planned(
    replicas: list[Replica],
    wanted: int,
    surge: int = 1,
    unavailable: int = 0,
    cache_value: dict[str, float] | None = None,
    **load: float,
) -> tuple[str, ...]:
    made = plan(
        replicas,
        name="web",
        revision="new",
        wanted=wanted,
        max_surge=surge,
        max_unavailable=unavailable,
        load=load,
        cache_value=cache_value or {},
    )
    return (*(f"start {i}" for i in made.start), *(f"drain {i}" for i in made.drain), *(f"stop {i}" for i in made.stop))


def test_the_tables() -> None:
    ready_old = [make("o1", "old", Phase.READY, 2), make("o2", "old", Phase.READY, 1)]
    new = make("web-new-0", "new", Phase.READY)
    starting = make("web-new-0", "new", Phase.STARTING)
    assert planned([], 2) == ("start web-new-0", "start web-new-1")
    assert planned([new], 1) == ()
    assert planned(ready_old, 2) == ("start web-new-0",)
    assert planned([*ready_old, starting], 2) == ()
    assert planned([*ready_old, new], 2) == ("drain o2",), "the youngest of the idle ones first"
    assert planned([*ready_old, new], 2, o2=3.0) == ("drain o1",), "and busy ones last"
    warm = {"o2": 4096.0}
    assert planned([*ready_old, new], 2, cache_value=warm) == ("drain o1",), "of equals the one that has least cached"
    assert planned([*ready_old, new], 2, cache_value=warm, o1=1.0) == ("drain o2",), "but work counts first"
    waiting = make("web-new-1", "new", Phase.PENDING, 9)
    assert planned([new, waiting, starting.changed(id="web-new-2")], 2) == ("stop web-new-1",)
    assert planned(ready_old, 2, surge=0, unavailable=1) == ("drain o2",)
    assert planned([make("o1", "old", Phase.FAILED), *ready_old[1:]], 2) == ("start web-new-0", "stop o1")
    assert planned([new, make("web-new-1", "new", Phase.STARTING)], 1) == ("stop web-new-1",)
    assert planned([new], 0) == ("drain web-new-0",)
    assert planned([make("web-new-0", "new", Phase.DRAINING)], 1) == ("start web-new-1",), "its name is taken"


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.sampled_from(["old", "new"]), st.sampled_from(Phase)), max_size=5),
    st.integers(0, 4),
    st.tuples(st.integers(0, 2), st.integers(0, 2)).filter(lambda pair: sum(pair) > 0),
    st.data(),
)
def test_every_world_ends_as_wanted_and_never_serves_less_than_it_may(
    start: list[tuple[str, Phase]], wanted: int, slack: tuple[int, int], data: st.DataObject
) -> None:
    surge, unavailable = slack
    names = count(100)
    world = {f"r{i}": make(f"r{i}", revision, phase, i) for i, (revision, phase) in enumerate(start)}
    for _ in range(60):
        ready = sum(r.phase is Phase.READY for r in world.values())
        live = sum(r.phase in LIVE for r in world.values())
        made = plan(
            world.values(),
            name="web",
            revision="new",
            wanted=wanted,
            max_surge=surge,
            max_unavailable=unavailable,
            load={},
            cache_value={},
        )
        assert live + len(made.start) <= max(live, wanted + surge)
        assert ready - len(made.drain) >= min(ready, wanted - unavailable)
        for name in made.start:
            assert name not in world
            world[name] = make(name, "new", Phase.STARTING, -next(names))
        for name in (*made.drain, *made.stop):
            world[name] = world[name].changed(phase=Phase.DRAINING)
        # Then the world does something of its own, sometimes late.
        moving = [r for r in world.values() if r.phase is not Phase.READY]
        if not moving and not made.start and not made.drain and not made.stop:
            break
        if moving:
            chosen = data.draw(st.sampled_from(sorted(moving, key=lambda r: r.id)))
            if chosen.phase is Phase.DRAINING:
                del world[chosen.id]
            else:
                world[chosen.id] = chosen.changed(phase=Phase.READY)
    assert [r.revision for r in world.values()] == ["new"] * wanted
    assert all(r.phase is Phase.READY for r in world.values())
