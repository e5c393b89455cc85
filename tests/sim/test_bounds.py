"""The bounds are bounds: below or above what they must be, and found where the answer is known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan_api.limits import BatchLimits
from capstan_sim import bounds, clairvoyant
from capstan_sim.bounds import Bound, Schedule, Trial
from capstan_sim.clairvoyant import Block
from capstan_sim.measure import Summary
from capstan_sim.policy import Objective, Setting
from capstan_sim.simulation import TargetController, simulate
from capstan_sim.step_time import StepModel
from capstan_sim.workload import Workload

MODEL = StepModel(0.010, 1e-3, 1e-3, 1e-6, 1e-8, kv_tokens=30_000, num_gpus=2)
LIMITS = BatchLimits(max_sequences=64, max_batched_tokens=512)
OBJECTIVE = Objective(ttft_s=2.0, tpot_s=0.6)
"""So loose in TPOT that only waiting is late: the number of replicas decides."""


def poisson(*spans: tuple[float, float]) -> Workload:
    """Equal requests at the rate of each span (seconds, requests/s), one span after the other."""
    rng = np.random.default_rng(7)
    times: list[float] = []
    start = 0.0
    for length_s, rate in spans:
        times += sorted(start + rng.uniform(0, length_s, int(length_s * rate)))
        start += length_s
    return Workload.of(times, [200] * len(times), [10] * len(times))


def trial(workload: Workload, cold_start_s: float = 20.0) -> Trial:
    setting = Setting(
        model=MODEL,
        objective=OBJECTIVE,
        mean_prompt=float(workload.prompt.mean()),
        mean_output=float(workload.output.mean()),
        max_replicas=12,
        cold_start_s=cold_start_s,
        initial_replicas=1,
        limits=LIMITS,
    )
    return Trial(workload, setting)


BUSY_THEN_CALM = poisson((100.0, 12.0), (300.0, 1.0))


def test_a_request_costs_its_prompt_its_tokens_and_its_share_of_the_base() -> None:
    workload = Workload.of([0.0, 1.0], [100, 1000], [11, 1])
    # (0.6 - 0.01) s of TPOT over 1.1055 ms per sequence would be 533; the cache holds 30,000 / 105.5.
    batch = math.floor(30_000 / 105.5)
    work_s = bounds.request_work_s(workload, MODEL, OBJECTIVE)
    assert work_s[0] == pytest.approx(0.1 + 1e-8 * 5000 + 10 * (1e-3 + 1e-6 * 105.5 + 0.010 / batch))
    assert work_s[1] == pytest.approx(1.0 + 1e-8 * 500_000)


def test_a_tight_objective_makes_the_batch_small_and_a_request_dear() -> None:
    workload = Workload.of([0.0], [100], [11])
    dear = bounds.request_work_s(workload, MODEL, Objective(2.0, 0.0132))
    assert dear[0] == pytest.approx(0.1 + 1e-8 * 5000 + 10 * (1e-3 + 1e-6 * 105.5 + 0.010 / 2))


def test_the_fluid_bound_leaves_out_the_dearest_hundredth_and_never_the_last_replica() -> None:
    short, long = [100] * 99, [5000]
    crowd = Workload.of([0.0] * 100, short + long, [1] * 100)
    hours = bounds.fluid_gpu_hours(crowd, MODEL, OBJECTIVE)
    assert hours == pytest.approx(99 * (0.1 + 1e-8 * 5000) * 2 / 3600)
    lonely = Workload.of([0.0, 3600.0], [100, 100], [1, 1])
    assert bounds.fluid_gpu_hours(lonely, MODEL, OBJECTIVE) == pytest.approx(2.0)


@settings(max_examples=50)
@given(
    needs=st.lists(st.floats(0, 9), min_size=1, max_size=200),
    safety=st.floats(0, 3),
    cold_start_s=st.floats(0, 60),
)
def test_staffing_orders_a_cold_start_ahead_and_not_more_than_that(
    needs: list[float], safety: float, cold_start_s: float
) -> None:
    demand = np.array(needs)
    setting = trial(BUSY_THEN_CALM, cold_start_s).setting
    schedule = clairvoyant.staffing(demand, safety, setting)
    wanted = np.clip(np.ceil(demand + safety * np.sqrt(demand)), 1, setting.max_replicas)
    for second, replicas in enumerate(wanted):
        ordered = [t for i, t in enumerate(schedule.targets) if second - cold_start_s - 5 < 5 * i <= second]
        assert min(ordered, default=schedule.targets[0]) >= replicas
    assert max(schedule.targets) <= max(wanted)


def test_demand_is_the_work_that_arrives_per_second() -> None:
    tried = trial(poisson((400.0, 6.0)))
    each_s = bounds.request_work_s(tried.workload, MODEL, OBJECTIVE)[0]
    for smooth_s in clairvoyant.SMOOTHINGS_S:
        smooth = clairvoyant.demand(tried, smooth_s)
        assert smooth.mean() == pytest.approx(6.0 * each_s, rel=0.05)
    assert clairvoyant.demand(tried, 60).std() < clairvoyant.demand(tried, 15).std()


def test_a_schedule_is_followed_tick_by_tick_from_the_start() -> None:
    tried = trial(BUSY_THEN_CALM)
    setting = bounds.replace(tried.setting, initial_replicas=3)
    record = simulate(tried.workload, setting, TargetController(Schedule([3, 3, 5, 2])))
    assert record.targets == [(0.0, 3), (10.0, 5), (15.0, 2)]


def test_a_block_loses_one_replica_and_never_the_last() -> None:
    block = Block(1, 3)
    assert block.left_out((3, 2, 1, 4)) == (3, 1, 1, 4)
    assert block.num_saved((3, 2, 1, 4)) == 1


def test_the_static_oracle_is_the_smallest_count_that_attains_the_share() -> None:
    tried = trial(BUSY_THEN_CALM)
    oracle = bounds.static_oracle(tried)
    assert oracle is not None
    (count,) = oracle.schedule.targets
    assert 1 < count < 12
    assert oracle.summary.attainment_percent >= 99
    assert oracle.summary.scale_events == 0
    assert oracle.summary.gpu_hours == pytest.approx(count * 2 * tried.workload.arrival[-1] / 3600)
    assert tried.run(Schedule([count - 1]), count - 1).attainment_percent < 99


@pytest.mark.parametrize("needed", range(1, 14))
@pytest.mark.parametrize("most", [None, 7])
def test_bisection_finds_every_count(needed: int, most: int | None) -> None:
    class Known(Trial):
        def bound(self, schedule: Schedule, limits: BatchLimits, origin: str) -> Bound | None:
            nobody = Bound(Summary(99.0, 1.0, 0, 0, 0), schedule, limits, origin, np.empty(0))
            return nobody if schedule.targets[0] >= needed else None

    tried = trial(BUSY_THEN_CALM)
    oracle = bounds.static_oracle(Known(tried.workload, tried.setting), most=most)
    assert (oracle.schedule.targets if oracle else None) == ((needed,) if needed <= (most or 12) else None)


@pytest.mark.parametrize("objective", [OBJECTIVE, Objective(2.0, 0.05)])
def test_a_trial_given_up_early_would_have_failed_to_the_end(objective: Objective) -> None:
    tried = trial(BUSY_THEN_CALM)
    tried.setting = bounds.replace(tried.setting, objective=objective)
    outcomes = set()
    for count in (1, 3, 5, 6, 7):
        found = tried.bound(Schedule([count]), LIMITS, "by hand")
        watched = tried.run(Schedule([count]), count)
        assert (found is not None) == (watched.attainment_percent >= 99)
        if found is not None:
            assert found.summary == watched
            assert len(found.late_at) == round(len(tried.workload) * (1 - watched.attainment_percent / 100))
            assert found.num_late(0.0, 150.0) + found.num_late(150.0, 1e9) == len(found.late_at)
        outcomes.add(found is not None)
    assert outcomes == {False, True}


def test_the_clairvoyant_lies_between_the_fluid_bound_and_the_static_oracle() -> None:
    tried = trial(BUSY_THEN_CALM)
    oracle = bounds.static_oracle(tried)
    lines: list[str] = []
    best = clairvoyant.clairvoyant(tried, limits=[LIMITS], progress=lines.append)
    assert best is not None
    assert oracle is not None
    fluid = bounds.fluid_gpu_hours(tried.workload, MODEL, OBJECTIVE)
    assert best.summary.attainment_percent >= 99
    assert fluid < best.summary.gpu_hours < 0.8 * oracle.summary.gpu_hours
    started_from = float(lines[0].partition(": ")[2].split()[0])
    assert best.summary.gpu_hours < started_from, "leaving replicas out pays"
    assert len(lines) > 1
    again = tried.bound(best.schedule, best.limits, "again")
    assert again is not None
    assert again.summary == best.summary, "the schedule that is handed out is the one that was measured"


def test_nobody_is_in_time_when_the_objective_is_shorter_than_a_step() -> None:
    tried = trial(poisson((30.0, 2.0)))
    tried.setting = bounds.replace(tried.setting, objective=Objective(0.001, 0.001))
    assert bounds.static_oracle(tried) is None
    assert clairvoyant.clairvoyant(tried, limits=[LIMITS]) is None


def test_no_policy_attains_more_than_all_replicas_ordered_at_the_start() -> None:
    from_idle = trial(poisson((120.0, 15.0)), cold_start_s=40.0)
    limit = bounds.causal_limit(from_idle).attainment_percent
    assert limit < 90, "the first requests meet one replica while the others start"
    assert from_idle.run(Schedule([1, 12]), 1).attainment_percent <= limit
    assert from_idle.run(Schedule([1, 1, 12]), 1).attainment_percent < limit
    assert from_idle.run(Schedule([12]), 12).attainment_percent > 99
