"""The fast replica and the real scheduler give every request the same first and last token, to rounding."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan_api.limits import BatchLimits
from capstan_sim.book import Book
from capstan_sim.engine import Engine
from capstan_sim.exact import ExactReplica
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


def model(kv_tokens: int) -> StepModel:
    return StepModel(0.008, 2.4e-4, 2e-4, 4.9e-6, 2e-7, kv_tokens)


def book(requests: list[tuple[float, int, int]], priorities: list[int]) -> Book:
    gaps, prompts, outputs = zip(*requests, strict=True)
    arrivals = [sum(gaps[: i + 1]) for i in range(len(gaps))]
    made = Book(Workload.of(arrivals, prompts, outputs))
    made.priority = [priorities[i % len(priorities)] for i in range(len(made))]
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
    kv_tokens=st.integers(130, 400),
    limits=st.one_of(LIMITS, TIGHT),
    changes=st.lists(st.tuples(st.floats(0, 4), st.one_of(LIMITS, TIGHT)), max_size=3),
    probes=st.lists(st.floats(0, 4), max_size=6),
)
def test_runs_give_what_single_steps_of_the_real_scheduler_give(
    requests, priorities, kv_tokens, limits, changes, probes
):
    fast, exact = book(requests, priorities), book(requests, priorities)
    replica = Replica(model(kv_tokens), limits, fast)
    oracle = ExactReplica(model(kv_tokens), limits, exact, block_size=1)
    assert play(replica, changes, probes) == play(oracle, changes, probes)
    assert fast.first == pytest.approx(exact.first, rel=1e-9)
    assert fast.done == pytest.approx(exact.done, rel=1e-9)
    assert replica.num_preemptions == oracle.num_preemptions
    assert replica.num_steps(1e9) == oracle.num_steps(1e9)
    assert replica.num_generated(1e9) == oracle.num_generated(1e9) == sum(fast.output)
    assert replica.busy_s(1e9) == pytest.approx(oracle.busy_s(1e9))
