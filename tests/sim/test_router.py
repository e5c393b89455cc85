"""Requests go where the gateway's own rule would send them."""

from enum import IntEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan_api.limits import BatchLimits
from capstan_gateway.routing import Candidate, choose
from capstan_sim.book import Book
from capstan_sim.fleet import Fleet, Pod
from capstan_sim.router import Router, Rule
from capstan_sim.step_time import StepModel
from capstan_sim.workload import Workload

MODEL = StepModel(0.01, 1e-3, 1e-4, 0.0, 0.0, 100_000)
LIMITS = BatchLimits(max_sequences=64, max_batched_tokens=256)


def pods(number: int) -> list[Pod]:
    return [Pod(id=f"pod-{i}", number=i, model=MODEL, created_at=0.0) for i in range(number)]


class Stage(IntEnum):
    """How far a request has come when the next one arrives."""

    PROMPT = 0
    FIRST_TOKEN = 1
    END = 2


@given(
    st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 4999), st.sampled_from(Stage)), min_size=1, max_size=60),
    st.integers(1, 5),
)
def test_the_choice_is_the_gateways_for_a_prompt_that_nobody_knows(arriving, num_pods):
    prompts, cached, stages = zip(*arriving, strict=True)
    book = Book(Workload.of(list(map(float, range(len(prompts)))), prompts, [2] * len(prompts), cached))
    router, servers = Router(book), pods(num_pods)
    has: list[Pod] = []
    for request, stage in enumerate(stages):
        chosen = router.choose(servers)
        candidates = []
        for pod in servers:
            here = [r for r, of in enumerate(has) if of is pod and stages[r] < Stage.END]
            waiting = sum(book.prompt[r] - book.cached[r] for r in here if stages[r] < Stage.FIRST_TOKEN)
            candidates.append(Candidate(pod.id, len(here), waiting))
        best = choose(candidates, b"key", 0.0)
        assert best is not None
        loads = {candidate.id: candidate.load for candidate in candidates}
        assert chosen is not None
        assert loads[chosen.id] == loads[best.id] == chosen.work
        router.give(request, chosen)
        has.append(chosen)
        if stage >= Stage.FIRST_TOKEN:
            book.first_token(request, float(request))
        if stage is Stage.END:
            book.finished(request, float(request))


def test_a_long_prompt_keeps_others_away_until_its_first_token():
    """By the number of requests the third would go to the pod that computes the long prompt."""
    workload = Workload.of([0.0, 0.001, 0.002], [4000, 10, 10], [2000, 2000, 2000])
    expected = {Rule.GATEWAY: [1, 2, 2], Rule.OUTSTANDING: [1, 2, 1]}
    for rule, numbers in expected.items():
        fleet = Fleet(Book(workload), MODEL, LIMITS, cold_start_s=1.0, rule=rule)
        for _ in range(2):
            fleet.launch(ready=True)
        fleet.run(0.01)
        assert fleet.book.pod == numbers


@pytest.mark.parametrize("rule", Rule)
def test_what_a_lost_replica_had_is_counted_where_it_is_computed_again(rule):
    book = Book(Workload.of([0.0], [300], [20]))
    router, (lost, other) = Router(book, rule), pods(2)
    router.give(0, lost)
    before = lost.work
    book.first_token(0, 1.0)
    assert router.choose([other]) is other
    book.lost(0)
    router.give(0, other)
    assert other.work == before
    book.first_token(0, 2.0)
    book.finished(0, 3.0)
    router.choose([other])
    assert other.work == 0
