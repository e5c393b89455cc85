"""Two resources that share a budget of accelerators, under the real law, in simulated time.

One replica here serves about ten requests a second within the thresholds; a cold start takes a minute.
"""

from collections.abc import Callable

import numpy as np
from scenes import poisson, resource, slo

from capstan_api.v1alpha1 import InferenceDeployment
from capstan_operator.budgets import AcceleratorBudget, Budgets
from capstan_sim.control_plane import ControlPlane
from capstan_sim.measure import attained, flips
from capstan_sim.policy import Objective
from capstan_sim.simulation import Record, simulate_together, turns
from capstan_sim.step_time import StepModel
from capstan_sim.what_if import LAW, WhatIf
from capstan_sim.workload import Workload

MODEL = StepModel(0.02, 6e-5, 4e-4, 3e-8, 0.0, 200_000)
OBJECTIVE = Objective(ttft_s=1.0, tpot_s=0.08, percent=99.0)
COLD_START_S = 60.0
BUDGET = 6


def sharing(name: str, max_replicas: int) -> InferenceDeployment:
    return resource(
        name,
        slo("chat", 1000, 80),
        variants=[{"name": "gpu", "resources": {"accelerator": {}}}],
        scaling={"minReplicas": 1, "maxReplicas": max_replicas},
    )


def arrivals(rate: Callable[[float], float], seconds: float, seed: int) -> Workload:
    """A Poisson process of `rate(t)` requests/s, with 500 prompt and 60 output tokens on average."""
    rng = np.random.default_rng(seed)
    times = poisson(rng, rate, seconds)
    prompts = np.maximum(1, (500 * rng.gamma(4.0, 0.25, len(times))).round())
    return Workload.of(times, prompts, np.maximum(1, rng.geometric(1 / 60, len(times))))


def play(workloads: dict[str, Workload], budget: AcceleratorBudget | None, max_replicas: int) -> dict[str, Record]:
    budgets = Budgets([budget] if budget is not None else [])
    simulations = []
    for name, workload in workloads.items():
        of = sharing(name, max_replicas)
        setting = WhatIf(workload, of, MODEL, COLD_START_S, BUDGET // 2).setting(LAW)
        simulations.append(turns(workload, setting, ControlPlane(of, budgets=budgets), ttft_s=(OBJECTIVE.ttft_s,)))
    return dict(zip(workloads, simulate_together(simulations), strict=True))


def good(records: dict[str, Record]) -> float:
    """Share of all requests."""
    return float(np.concatenate([attained(record, [OBJECTIVE]) for record in records.values()]).mean())


def in_use(records: dict[str, Record]) -> int:
    """Most pods that there were at the same time, leaving ones included."""
    pods = [pod for record in records.values() for pod in (*record.fleet.pods, *record.fleet.retired)]
    end = max(record.end_s for record in records.values())
    return max(sum(pod.created_at <= at < pod.retired_at for pod in pods) for at in np.arange(0.0, end, 1.0))


def test_a_shared_budget_follows_the_load_and_attains_more_than_an_equal_split():
    # More than half of the budget can serve.
    busy = {
        "morning": arrivals(lambda at: 44.0 if at < 500 else 6.0, 1400.0, seed=1),
        "evening": arrivals(lambda at: 6.0 if at < 700 else 44.0, 1400.0, seed=2),
    }
    shared = play(busy, AcceleratorBudget(name="pool", accelerators=BUDGET), BUDGET)
    split = play(busy, None, BUDGET // 2)
    assert good(shared) > good(split) + 0.02
    assert in_use(shared) <= BUDGET
    assert shared["evening"].targets[-1][1] > BUDGET // 2


def test_two_that_both_want_more_than_there_is_do_not_swap_replicas():
    equal = {name: arrivals(lambda at: 38.0, 700.0, seed) for name, seed in (("a", 3), ("b", 4))}
    records = play(equal, AcceleratorBudget(name="pool", accelerators=BUDGET), BUDGET)
    assert in_use(records) <= BUDGET
    assert good(records) >= 0.85, "each swap costs a cold start and leaves a backlog"
    assert all(flips([replicas for _, replicas in record.targets]) <= 1 for record in records.values())
