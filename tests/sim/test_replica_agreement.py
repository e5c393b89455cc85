"""The fast replica and the real scheduler give every request the same first and last token, to rounding."""

import math
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan_api.limits import BatchLimits
from capstan_sim.book import Book
from capstan_sim.engine import Engine
from capstan_sim.exact import ExactReplica
from capstan_sim.fleet import Fleet
from capstan_sim.replica import Replica
from capstan_sim.step_time import StepModel
from capstan_sim.workload import Workload

LENGTHS = st.tuples(st.floats(0, 0.4), st.integers(1, 90), st.integers(1, 40))
LIMITS = st.builds(
    lambda sequences, extra: BatchLimits(max_sequences=sequences, max_batched_tokens=sequences + extra),
    st.integers(1, 8),
    st.integers(0, 60),
)
TIGHT = st.builds(
    lambda sequences, tokens: BatchLimits(max_sequences=sequences, max_batched_tokens=tokens),
    st.integers(1, 8),
    st.integers(1, 12),
)

TTFTS_S = st.one_of(
    st.just([math.inf]),
    st.lists(st.sampled_from([0.0, 0.0137, 0.0613, 0.1517, 0.3719, 1.0371, math.inf]), min_size=1, max_size=4),
)
"""Of the requests in turn. No multiple of a step's seconds: a boundary may be a rounding error before such a moment."""


def model(kv_tokens: int) -> StepModel:
    return StepModel(0.008, 2.4e-4, 2e-4, 4.9e-6, 2e-7, kv_tokens)


def book(requests: list[tuple[float, int, int]], priorities: list[int], ttfts_s: Sequence[float] = (math.inf,)) -> Book:
    gaps, prompts, outputs = zip(*requests, strict=True)
    arrivals = [sum(gaps[: i + 1]) for i in range(len(gaps))]
    made = Book(Workload.of(arrivals, prompts, outputs))
    made.priority = [priorities[i % len(priorities)] for i in range(len(made))]
    made.first_token_due = [at + ttfts_s[i % len(ttfts_s)] for i, at in enumerate(arrivals)]
    return made


def play(engine: Engine, changes: list[tuple[float, BatchLimits]], probes: list[float]) -> list[tuple[int, ...]]:
    """Feed the engine its book's requests, and changes of limits, in order of time; what it told at `probes`."""
    events = [(at, 1, index) for index, at in enumerate(engine.book.arrival)]
    events += [(at, 0, index) for index, (at, _) in enumerate(changes)]
    events += [(at, 2, index) for index, at in enumerate(probes)]
    told = []
    for at, kind, index in [*sorted(events), (math.inf, 0, 0)]:
        while engine.until < at:
            engine.advance()
        if kind == 2:
            queue = (engine.num_running, engine.num_waiting, engine.prefill_backlog)
            told.append((*queue, engine.num_steps(at), engine.num_generated(at)))
        elif at < math.inf and kind == 1:
            engine.submit(index, at)
        elif at < math.inf:
            engine.set_limits(changes[index][1], at)
    return told


@settings(max_examples=500)
@given(
    requests=st.lists(LENGTHS, min_size=1, max_size=30),
    priorities=st.sampled_from([[0], [0, 0, 1], [3, -2, 0, 50]]),
    ttfts_s=TTFTS_S,
    kv_tokens=st.integers(130, 400),
    limits=st.one_of(LIMITS, TIGHT),
    changes=st.lists(st.tuples(st.floats(0, 4), st.one_of(LIMITS, TIGHT)), max_size=3),
    probes=st.lists(st.floats(0, 4), max_size=6),
)
def test_runs_give_what_single_steps_of_the_real_scheduler_give(
    requests, priorities, ttfts_s, kv_tokens, limits, changes, probes
):
    fast, exact = book(requests, priorities, ttfts_s), book(requests, priorities, ttfts_s)
    replica = Replica(model(kv_tokens), limits, fast)
    oracle = ExactReplica(model(kv_tokens), limits, exact, block_size=1)
    assert play(replica, changes, probes) == play(oracle, changes, probes)
    assert fast.first == pytest.approx(exact.first, rel=1e-9)
    assert fast.done == pytest.approx(exact.done, rel=1e-9)
    assert replica.num_preemptions == oracle.num_preemptions
    assert replica.num_steps(1e9) == oracle.num_steps(1e9)
    assert replica.num_generated(1e9) == oracle.num_generated(1e9) == sum(fast.output)
    assert replica.busy_s(1e9) == pytest.approx(oracle.busy_s(1e9))


def agree(fast: Book, exact: Book) -> None:
    assert min(fast.done) > 0
    assert fast.first == pytest.approx(exact.first, rel=1e-9)
    assert fast.done == pytest.approx(exact.done, rel=1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_they_agree_in_an_overload_in_which_most_first_tokens_are_late(seed: int) -> None:
    draw = random.Random(seed)
    requests = [(draw.expovariate(40), draw.randint(1, 120), draw.randint(1, 60)) for _ in range(300)]
    ttfts_s = [draw.uniform(0.05, 2.0) for _ in range(7)] + [math.inf]
    limits = BatchLimits(max_sequences=draw.choice((2, 3, 6, 12)), max_batched_tokens=draw.choice((16, 40, 128)))
    kv_tokens = draw.choice((180, 260, 500))
    books = [book(requests, [0, 0, 1, -1], ttfts_s) for _ in range(2)]
    replica, oracle = Replica(model(kv_tokens), limits, books[0]), ExactReplica(model(kv_tokens), limits, books[1], 1)
    probes = [draw.uniform(0, 20) for _ in range(40)]
    assert play(replica, [], probes) == play(oracle, [], probes)
    agree(*books)
    assert replica.num_preemptions == oracle.num_preemptions
    late = sum(first > due for first, due in zip(books[0].first, books[0].first_token_due, strict=True))
    assert late > 30
    in_order = book(requests, [0, 0, 1, -1])
    play(Replica(model(kv_tokens), limits, in_order), [], [])
    assert sum(books[0].first) != pytest.approx(sum(in_order.first)), "nobody has yielded"


def test_a_head_that_finds_no_room_lets_another_one_in_as_soon_as_it_is_late() -> None:
    """Within what is one series of decode steps, and at the first boundary after that moment."""
    # The long one decodes alone; the large one never fits beside it, the small one does.
    requests = [(0.0, 60, 60), (0.1, 90, 5), (0.05, 20, 5)]
    ttfts_s = [math.inf, 0.3003, math.inf]
    limits = BatchLimits(max_sequences=8, max_batched_tokens=256)
    books = [book(requests, [0], ttfts_s) for _ in range(2)]
    play(Replica(model(150), limits, books[0]), [], [])
    play(ExactReplica(model(150), limits, books[1], 1), [], [])
    agree(*books)
    due = books[0].first_token_due[1]
    one_step_s = 0.0083
    assert due <= books[0].started[2] < due + one_step_s
    assert books[0].started[1] >= books[0].done[0] - one_step_s


@pytest.mark.parametrize("seed", range(4))
def test_they_agree_about_requests_that_are_retried_after_they_were_late(seed: int) -> None:
    def lived(engine: Callable[..., Engine]) -> Book:
        draw = random.Random(seed)
        requests = [(draw.expovariate(60), draw.randint(1, 120), draw.randint(1, 60)) for _ in range(200)]
        made = book(requests, [0, 1], [draw.uniform(0.1, 1.0) for _ in range(5)])
        limits = BatchLimits(max_sequences=6, max_batched_tokens=64)
        fleet = Fleet(made, model(400), limits, 1.0, engine)
        for _ in range(3):
            fleet.launch(ready=True)
        # Those of the second are lost while nobody else is ready: they wait, late by then, for a new replica.
        fleet.at(1.0, lambda: fleet.restart(fleet.pods[0]))
        fleet.at(1.5, lambda: fleet.stop(fleet.pods[1]))
        fleet.at(2.2, lambda: fleet.restart(fleet.pods[0]))
        fleet.run(1e4)
        assert sum(made.num_retries) > 10
        return made

    agree(lived(Replica), lived(lambda *of: ExactReplica(*of, block_size=1)))
