"""Each peer's law on hand-made observations, against its published formula."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan_api.limits import BatchLimits
from capstan_sim import policies
from capstan_sim.errors import SimulationError
from capstan_sim.policies.capacity import Capacity
from capstan_sim.policies.dynamo import Holt
from capstan_sim.policies.queueing import ReplicaQueue
from capstan_sim.policies.windows import DownWindow
from capstan_sim.policy import Objective, Observation, Policy, ReplicaLoad, Setting
from capstan_sim.simulation import TargetController, simulate
from capstan_sim.step_time import StepModel
from capstan_sim.workload import Workload

# 100 prompt and 100 output tokens: 150 of context; a step at batch n takes 10 ms + 0.25 n ms, and as much prefill.
MODEL = StepModel(0.010, 1e-4, 1e-4, 1e-6, 0.0, kv_tokens=30_000, num_gpus=1)
SETTING = Setting(
    model=MODEL,
    objective=Objective(ttft_s=1.0, tpot_s=0.05),
    mean_prompt=100.0,
    mean_output=100.0,
    max_replicas=20,
    cold_start_s=60.0,
    initial_replicas=4,
    limits=BatchLimits(max_sequences=256, max_batched_tokens=1024),
)
LARGEST_BATCH = 114


def load(running: int = 0, waiting: int = 0, kv_tokens: int = 0) -> ReplicaLoad:
    return ReplicaLoad(running, waiting, waiting_tokens=100 * waiting, kv_tokens=kv_tokens)


def observe(replicas: Sequence[ReplicaLoad], now: float = 1000.0, **changes: Any) -> Observation:
    """A fleet of ready replicas in which nothing happens, but for the changes."""
    values: dict[str, Any] = {
        "now": now,
        "ready": len(replicas),
        "starting": 0,
        "draining": 0,
        "target": len(replicas) + changes.get("starting", 0),
        "ttft_s": (),
        "tpot_s": (),
        "gateway_queue": 0,
        "replicas": replicas,
        "concurrency_6s": 0.0,
        "concurrency_60s": 0.0,
        "arrival_rate": 0.0,
        "prompt_token_rate_10s": 0.0,
        "arrivals": 0,
        "mean_prompt": 0.0,
        "mean_output": 0.0,
        "limits": SETTING.limits,
    }
    return Observation(**{**values, **changes})


def peer(name: str, **changes: Any) -> Policy:
    return policies.build(name, replace(SETTING, **changes))


def target(name: str, seen: Observation, **changes: Any) -> int:
    """The answer of a fresh policy whose down window holds nothing but `seen`: it is asked long after its start."""
    return peer(name, **changes).decide(seen).replicas


# The knob scales the target: 5 k requests waiting per pod.
@pytest.mark.parametrize(
    ("name", "waiting", "starting", "expected"),
    [
        ("hpa_queue", [10, 10, 10, 2], 0, 7),
        ("hpa_queue:0.5", [5, 5, 5, 2], 0, 7),
        ("hpa_queue", [5, 5, 5, 6], 0, 4),  # up to 10 % above the target is tolerated
        ("hpa_queue", [5, 5, 6, 7], 0, 5),
        ("hpa_queue", [10, 10], 2, 4),  # what starts counts as idle
        ("hpa_queue", [500], 0, 5),  # at most four more, or twice as many
        ("hpa_queue", [500] * 6, 0, 12),
        ("hpa_queue", [500] * 15, 0, 20),
        ("hpa_queue", [0, 0, 3, 3], 0, 2),
        ("hpa_queue", [0, 0], 0, 1),
    ],
)
def test_hpa_is_proportional_to_the_mean_with_tolerance_and_rate_limit(
    name: str, waiting: list[int], starting: int, expected: int
) -> None:
    assert target(name, observe([load(waiting=w) for w in waiting], starting=starting)) == expected


def test_hpa_falls_to_the_highest_advice_of_five_minutes() -> None:
    policy = peer("hpa_queue")
    busy, calm = [load(waiting=8)] * 4, [load(waiting=1)] * 4
    assert policy.decide(observe(calm, now=285.0)).replicas == 4, "the window is born full of the initial count"
    assert policy.decide(observe(busy, now=300.0)).replicas == 7
    assert policy.decide(observe(calm, now=600.0, target=7)).replicas == 7
    assert policy.decide(observe(calm, now=615.0, target=7)).replicas == 1


def test_hpa_on_concurrency_aims_at_seven_tenths_of_the_largest_batch() -> None:
    per_pod = 0.7 * LARGEST_BATCH
    replicas = [load(running=round(2 * per_pod) - 6, waiting=6)] * 3
    assert target("hpa_concurrency", observe(replicas)) == math.ceil(3 * round(2 * per_pod) / per_pod)
    assert target("hpa_concurrency:0.5", observe([load(running=40)] * 2)) == 2


def test_keda_scales_by_the_worst_share_of_the_objectives() -> None:
    fleet = [load(kv_tokens=6000)] * 2
    slow_start, slow_tokens = [0.1] * 90 + [1.2] * 10, [0.04] * 90 + [0.06] * 10
    assert target("keda_slo", observe(fleet, ttft_s=slow_start)) == math.ceil(2 * 1.2 / 0.8)
    assert target("keda_slo", observe(fleet, ttft_s=[0.1] * 20, tpot_s=slow_tokens)) == math.ceil(2 * 1.2 / 0.8)
    assert target("keda_slo", observe([load(kv_tokens=27_000)] * 2)) == math.ceil(2 * 0.9 / 0.8 / 0.8)
    assert target("keda_slo:0.5", observe(fleet, ttft_s=[0.6] * 20)) == 3
    assert target("keda_slo", observe(fleet, ttft_s=slow_start, starting=1)) == 3, "no rise while pods start"


def test_kpa_follows_the_stable_window_and_panics_above_twice_the_fleet() -> None:
    per_pod = 0.7 * LARGEST_BATCH
    policy = peer("kpa", initial_replicas=1)
    fleet = [load()] * 4
    calm = {"concurrency_60s": 2.5 * per_pod, "concurrency_6s": 2.5 * per_pod}
    assert policy.decide(observe(fleet, now=100.0, **calm)).replicas == 3
    assert policy.decide(observe(fleet, now=102.0, concurrency_60s=0.0, concurrency_6s=0.0)).replicas == 2, "halves"
    burst = {"concurrency_60s": 2.5 * per_pod, "concurrency_6s": 8.5 * per_pod}
    assert policy.decide(observe(fleet, now=104.0, **burst)).replicas == 9
    assert policy.decide(observe(fleet, now=164.0, **calm)).replicas == 9, "panic lasts a stable window"
    assert policy.decide(observe(fleet, now=166.0, **calm)).replicas == 3


def test_kpa_starts_in_panic_at_the_count_that_it_finds() -> None:
    policy = peer("kpa")
    assert policy.decide(observe([load()] * 4, now=2.0)).replicas == 4
    assert policy.decide(observe([load()] * 4, now=62.0)).replicas == 2


# KV threshold 24,000 tokens with 3,000 spare; queue threshold 5 with 3 spare.
@pytest.mark.parametrize(
    ("replicas", "starting", "expected"),
    [
        ([load(kv_tokens=22_000)] * 3, 0, 4),
        ([load(waiting=3)] * 3, 0, 4),
        ([load(kv_tokens=25_000), load(waiting=9)], 0, 3),
        ([load(kv_tokens=22_000)] * 3, 1, 4),  # waits for what starts
        ([load(kv_tokens=18_000)] * 3, 0, 3),  # 27,000 each over two would be too much
        ([load(kv_tokens=13_000)] * 3, 0, 2),
        ([load(kv_tokens=1_000)], 0, 1),
        ([load(kv_tokens=1_000), load(kv_tokens=25_000)], 0, 2),  # only one to shrink among
    ],
)
def test_llmd_saturation_moves_by_one_where_spare_runs_out_or_survivors_keep_it(
    replicas: list[ReplicaLoad], starting: int, expected: int
) -> None:
    assert target("llmd_saturation", observe(replicas, starting=starting)) == expected


def test_wva_tokens_sizes_by_tokens_held_and_queued() -> None:
    # Derived capacity: min(1024/2, 256) sequences of 150 tokens is above 0.8 of the cache, which binds.
    capacity = 24_000
    fleet = [load(kv_tokens=20_000, waiting=4)] * 4
    assert target("wva_tokens", observe(fleet)) == math.ceil(4 * 20_400 / 0.85 / capacity)
    assert target("wva_tokens:0.5", observe(fleet)) == math.ceil(4 * 20_400 / 0.85 / (capacity / 2))
    assert target("wva_tokens", observe(fleet, starting=1)) == 5, "what starts is counted"
    calm = [load(kv_tokens=7_000)] * 4
    assert target("wva_tokens", observe(calm)) == math.ceil(28_000 / 0.7 / capacity)
    assert target("wva_tokens", observe(calm, starting=1)) == 5, "nothing falls while pods start"
    assert target("wva_tokens", observe([load(kv_tokens=18_000)] * 4)) == 4, "between 70 and 85 % nothing moves"


def test_wva_tokens_takes_for_capacity_what_saturated_replicas_have_held() -> None:
    few = BatchLimits(max_sequences=256, max_batched_tokens=200)  # 100 sequences of 150 tokens
    policy = peer("wva_tokens", limits=few)
    assert policy.decide(observe([load(kv_tokens=15_000)] * 3, now=1000.0)).replicas == math.ceil(3 / 0.85)
    # Half of the fleet holds 5,000 tokens with a queue: that is its own capacity, and from now on everybody's.
    full = [load(kv_tokens=5_000, waiting=5)] * 2
    assert policy.decide(observe(full, now=1030.0)).replicas == math.ceil(2 * (5_000 + 500) / 0.85 / 5_000)
    later = observe([load(kv_tokens=6_000)] * 3, now=2000.0)
    assert policy.decide(later).replicas == math.ceil(18_000 / 0.85 / 5_000)
    # The mean of the last ten that were saturated; the median of the replicas that are there.
    policy.decide(observe([load(kv_tokens=9_000, waiting=5)] * 9, now=2030.0))
    capacity = (5_000 + 9 * 9_000) / 10
    mixed = [load(kv_tokens=12_000), load(kv_tokens=12_000), load(kv_tokens=500, waiting=5)]
    assert policy.decide(observe(mixed, now=3000.0)).replicas == math.ceil(25_000 / 0.85 / capacity)


def test_wva_tokens_counts_the_gateways_queue_with_its_answers() -> None:
    fleet = [load(kv_tokens=20_000)] * 4
    waiting = 100 * (SETTING.mean_prompt + SETTING.mean_output)
    seen = observe(fleet, gateway_queue=100)
    assert target("wva_tokens", seen) == math.ceil((80_000 + waiting) / 0.85 / 24_000)


def test_a_replica_of_one_slot_is_the_textbook_queue() -> None:
    setting = replace(SETTING, limits=BatchLimits(max_sequences=1, max_batched_tokens=1024))
    queue = ReplicaQueue(setting)
    iteration_s = 0.010 + 1e-4 * 200 / 101 + 1e-6 * 150
    service_s = iteration_s + (1e-4 + 1e-6) * 100 + 100 * (iteration_s + 1e-4 + 1e-6 * 150)
    rho, places = 0.7, 11
    weights = [rho**n for n in range(places + 1)]
    mean_waiting = sum((n - 1) * w for n, w in enumerate(weights) if n > 1) / sum(weights)
    throughput = rho / service_s * (1 - weights[-1] / sum(weights))
    busy = 1 - weights[0] / sum(weights)
    ttft_s, tpot_s = queue.means(rho / service_s)
    in_prefill_s = iteration_s - (1 - busy) * (1e-4 * 200 / 101 + 1e-6 * 150) + (1e-4 + 1e-6) * 100
    assert tpot_s == pytest.approx((service_s - in_prefill_s) / 100)
    assert ttft_s == pytest.approx(mean_waiting / throughput + in_prefill_s + tpot_s)


def test_wva_queueing_takes_the_largest_rate_within_the_means() -> None:
    queue = ReplicaQueue(SETTING)
    rate = queue.largest_rate()
    assert queue.means(rate)[1] <= SETTING.objective.tpot_s < queue.means(1.01 * rate)[1]
    assert target("wva_queueing", observe([load()] * 4, arrival_rate=4.5 * rate)) == 5
    assert target("wva_queueing:0.5", observe([load()] * 4, arrival_rate=4.5 * rate)) == 9
    # Requests twice as long as those of the trace are carried at about half of the rate.
    longer = observe([load()] * 4, arrival_rate=4.5 * rate, mean_prompt=200.0, mean_output=200.0)
    assert target("wva_queueing", longer) > 8


def test_dynamo_keeps_the_forecast_floor() -> None:
    capacity = Capacity(SETTING)
    rate = capacity.request_rate(LARGEST_BATCH)
    policy = peer("dynamo_planner")
    assert policy.decide(observe([load()] * 4, now=5.0)).replicas == 4, "nothing is forecast yet"
    assert policy.decide(observe([load()] * 4, now=180.0, arrivals=round(180 * 6.5 * rate))).replicas == 7


def test_dynamo_steps_by_one_and_only_when_nothing_moves() -> None:
    late = load(waiting=200, running=100, kv_tokens=15_000)
    calm = load(kv_tokens=1_000)

    def after_idle_floor(seen: Observation) -> int:
        policy = peer("dynamo_planner")
        policy.decide(observe([calm] * 4, now=180.0))
        return policy.decide(seen).replicas

    assert after_idle_floor(observe([late] * 3, now=185.0)) == 4
    assert after_idle_floor(observe([late, late, calm], now=185.0)) == 3, "one engine in time is enough to wait"
    assert after_idle_floor(observe([late] * 3, now=185.0, starting=1)) == 4
    assert after_idle_floor(observe([calm] * 3, now=185.0)) == 2
    assert after_idle_floor(observe([calm] * 3, now=185.0, draining=1)) == 3
    # 16,000 tokens each would be 24,000 on two: 44 ms a step, above 80 % of 50 ms.
    assert after_idle_floor(observe([load(kv_tokens=16_000)] * 3, now=185.0)) == 3


def test_dynamo_judges_tokens_with_the_prefill_that_rides_along() -> None:
    # 115 running requests of 100 tokens need 115 prompt tokens a step: with the context of 115, 50.4 ms for the next.
    for running, expected in ((115, 4), (40, 3)):
        policy = peer("dynamo_planner")
        fleet = [load(running=running, kv_tokens=115 * 150)] * 3
        policy.decide(observe(fleet, now=180.0))
        assert policy.decide(observe(fleet, now=185.0)).replicas == expected


def test_holt_extrapolates_a_line_and_holds_a_constant() -> None:
    constant, line = Holt(), Holt()
    assert [constant.forecast(3.0) for _ in range(5)] == pytest.approx([3.0] * 5)
    forecasts = [line.forecast(float(n)) for n in range(60)]
    assert forecasts[-1] == pytest.approx(60.0, abs=0.01)
    assert Holt().forecast(0.0) == 0.0


def test_aibrix_tolerates_a_tenth_doubles_halves_and_pauses_between_falls() -> None:
    half_full = 15_000
    policy = peer("aibrix_apa")

    def asked(kv_share: float, now: float, num: int = 4) -> int:
        fleet = [load(kv_tokens=round(kv_share * half_full))] * num
        return policy.decide(observe(fleet, now=now)).replicas

    assert asked(1.09, now=10.0) == 4
    assert asked(1.3, now=20.0) == math.ceil(4 * 1.3)
    assert asked(2.0, now=30.0, num=2) == 4
    assert asked(1.99, now=35.0, num=1) == 2
    assert asked(0.1, now=290.0) == 4, "no fall in the first five minutes"
    assert asked(0.1, now=300.0) == 2
    assert asked(0.1, now=590.0) == 4
    assert asked(0.8, now=600.0) == math.ceil(4 * 0.8)


def test_token_velocity_adds_the_time_of_prompts_and_outputs() -> None:
    prefill_velocity = 1024 / (0.010 + 1024 * 1e-4)
    decode_velocity = 160 / (0.010 + 160 * 2.5e-4)
    rates = {"prompt_token_rate_10s": 2.0 * prefill_velocity}

    def asked(name: str) -> int:
        policy, fleet = peer(name), [load()] * 4
        policy.decide(observe(fleet, now=1000.0, arrivals=500))
        policy.decide(observe(fleet, now=1005.0, arrivals=5000))
        # The output that these arrivals will need, 1.3 replicas' worth, of the last 10 s only.
        arrivals = 500 + 10 * 1.3 * decode_velocity / 100
        return policy.decide(observe(fleet, now=1010.0, target=1, arrivals=round(arrivals), **rates)).replicas

    assert asked("token_velocity") == math.ceil(3.3 / 0.8)
    assert asked("token_velocity:0.5") == math.ceil(3.3 / 0.4)


def test_chiron_climbs_by_a_tenth_and_halves() -> None:
    policy = peer("chiron")
    fleet = [load(running=80)] * 3

    def asked(tpot_s: float, now: float) -> tuple[int, int]:
        answer = policy.decide(observe(fleet, now=now, tpot_s=[tpot_s] * 10))
        assert answer.limits is not None
        return answer.limits.max_sequences, answer.replicas

    assert asked(0.06, 1000.0) == (128, math.ceil(240 / (2 / 3 * LARGEST_BATCH)))
    assert asked(0.06, 1015.0) == (64, math.ceil(240 / (2 / 3 * 64)))
    assert asked(0.048, 1030.0)[0] == 64
    assert asked(0.04, 1045.0)[0] == 70
    assert asked(0.04, 1060.0)[0] == 77
    for tick in range(10):
        lowest = asked(0.06, 1075.0 + 15 * tick)[0]
    assert lowest == 8


def test_the_largest_batch_is_the_last_one_in_time() -> None:
    capacity = Capacity(SETTING)
    assert capacity.largest_batch() == LARGEST_BATCH
    assert capacity.steady_step_s(LARGEST_BATCH) <= 0.05 < capacity.steady_step_s(LARGEST_BATCH + 1)
    assert capacity.largest_decode_batch() == 160
    assert Capacity(replace(SETTING, objective=Objective(0.001, 0.001))).largest_batch() == 1
    few = BatchLimits(max_sequences=16, max_batched_tokens=1024)
    assert Capacity(replace(SETTING, limits=few)).largest_batch() == 16


def test_a_prompt_waits_for_the_queue_in_steps_of_the_budget() -> None:
    capacity = Capacity(SETTING)
    full_s, rest_s = 0.010 + 1024 * 1e-4, 0.010 + 152 * 1e-4
    assert capacity.ttft_s(2100, 0) == pytest.approx(2 * full_s + rest_s)
    assert capacity.ttft_s(924, 0) == pytest.approx(full_s)


@given(st.lists(st.tuples(st.floats(0.1, 50), st.integers(1, 24), st.integers(1, 24)), min_size=1, max_size=60))
def test_a_down_window_is_the_maximum_of_its_entries(steps: list[tuple[float, int, int]]) -> None:
    window, entries, now = DownWindow(100.0, 7), [(0.0, 7)], 0.0
    for gap, advice, current in steps:
        now += gap
        entries.append((now, advice))
        highest = max(value for at, value in entries if at >= now - 100.0)
        expected = advice if advice >= current else min(current, highest)
        assert window.settle(now, advice, current) == expected


@pytest.mark.parametrize("name", [*policies.PEERS, "static:3"])
def test_every_peer_serves_a_short_day_within_its_bounds(name: str) -> None:
    times = [0.05 * n if n < 1200 else 60 + 0.5 * (n - 1200) for n in range(1500)]
    workload = Workload.of(times, [100] * 1500, [20] * 1500)
    setting = replace(SETTING, mean_output=20.0, max_replicas=6, cold_start_s=10.0)
    runs = [simulate(workload, setting, TargetController(policies.build(name, setting))) for _ in range(2)]
    assert len(runs[0].book.done_times) == 1500
    assert all(1 <= replicas <= 6 for _, replicas in runs[0].targets)
    assert runs[0].targets == runs[1].targets


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hpa", "unknown name 'hpa'; known are hpa_queue"),
        ("kpa:fast", r"number in \(0, 10\]"),
        ("kpa:0", r"number in \(0, 10\]"),
        ("kpa:nan", r"number in \(0, 10\]"),
        ("static", "integer from 1 to 20"),
        ("static:21", "integer from 1 to 20"),
        ("static:-1", "integer from 1 to 20"),
    ],
)
def test_a_wrong_name_says_what_may_be_written(text: str, message: str) -> None:
    with pytest.raises(SimulationError, match=message):
        policies.build(text, SETTING)
