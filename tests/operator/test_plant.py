"""The law drives a plant in simulated time: limits settle, replicas follow the load, nothing flaps."""

from itertools import pairwise

import pytest
from plant import Plant
from worlds import STEP_COSTS, deployment

from capstan_operator.decide import Decision
from capstan_operator.decide.actions import DrainReplica, SetLimits, StopReplica


def moves(values: list[int]) -> list[int]:
    return [b - a for a, b in pairwise(values) if b != a]


def renewals_only(decision: Decision) -> bool:
    return all(isinstance(action, SetLimits) and action.is_renewal for action in decision.actions)


def test_four_times_the_load_brings_a_second_replica_and_its_end_takes_it_back() -> None:
    plant = Plant(deployment(), lambda t: 12.0 if 60 <= t < 150 else 3.0, costs=STEP_COSTS).run(240)

    assert moves(plant.replicas) == [1, -1]
    up = plant.replicas.index(2)
    assert 60 <= up < 85, "within the time that rates take to be seen, and the scale-up window"
    down = up + plant.replicas[up:].index(1)
    assert 170 <= down < 210, "after the load has gone, and the scale-down window"
    late_in_the_peak = [latency for latency in plant.latencies if 110 <= latency[0] < 150]
    good = sum(ttft <= 1.0 and tpot <= 0.060 for _, ttft, tpot in late_in_the_peak)
    assert good >= 0.95 * len(late_in_the_peak)


def test_engines_that_tell_of_no_step_get_company_while_requests_queue() -> None:
    plant = Plant(deployment(), lambda t: 12.0 if t < 150 else 3.0, costs=STEP_COSTS)
    plant.tells_steps = False
    plant.run(200)

    assert plant.replicas[0] == 1
    assert max(plant.replicas) >= 2
    up = plant.replicas.index(2)
    assert plant.decisions[up].said.reason == "CapacityUnknown"
    assert all(move == 1 for move in moves(plant.replicas))
    assert plant.decisions[-1].signals.queue == 0


@pytest.mark.parametrize(("rate", "num_budgets"), [(1.0, 2), (4.0, 4), (12.0, 2)])
def test_limits_settle_under_constant_load(rate: float, num_budgets: int) -> None:
    plant = Plant(deployment(), lambda _: rate, costs=STEP_COSTS).run(260)

    assert len(set(plant.budgets)) >= num_budgets, "they had somewhere to go"
    assert len(set(plant.budgets[100:])) == 1
    assert len(set(plant.replicas[100:])) == 1
    assert all(renewals_only(decision) for decision in plant.decisions[100:])


def test_a_settled_budget_keeps_full_steps_within_the_threshold() -> None:
    plant = Plant(deployment(), lambda _: 4.0, costs=STEP_COSTS).run(120)

    a, b, c, _, _ = STEP_COSTS
    sequences = plant.decisions[-1].signals.decode_sequences
    full_step_s = a + c * sequences + b * (plant.budgets[-1] - sequences)
    assert 0.6 * 0.060 < full_step_s <= 0.060


def test_longer_prompts_shrink_the_budget_and_not_the_number_of_replicas_first() -> None:
    # Attention makes tokens of long prompts dearer.
    costs = (0.004, 0.0002, 0.001, 0.0, 4e-7)
    short = Plant(deployment(), lambda _: 2.0, costs=costs, prompt=100).run(120)
    long = Plant(deployment(), lambda _: 0.5, costs=costs, prompt=2000).run(120)

    assert long.budgets[-1] < short.budgets[-1]


def test_nothing_is_taken_away_while_the_operator_is_blind() -> None:
    plant = Plant(deployment(), lambda t: 12.0 if t < 100 else 0.2, costs=STEP_COSTS)
    plant.blind_from, plant.blind_until = plant.now + 95, plant.now + 200
    plant.run(200)
    assert plant.replicas[94] == 2

    blind = plant.decisions[95:200]
    assert not any(isinstance(action, (DrainReplica, StopReplica)) for d in blind for action in d.actions)
    assert {d.memory.replicas.wanted for d in blind} == {2}
    assert "gateway" in blind[-1].signals.blind

    plant.run(60)
    assert moves(plant.replicas[94:]) == [-1], "and its return is no reason for more than the one step that is due"


def test_an_idle_deployment_sleeps_and_one_request_wakes_it() -> None:
    sleepy = deployment(scaling={"minReplicas": 0, "idle": {"scaleToZeroAfterSeconds": 30}})
    plant = Plant(sleepy, lambda t: 4.0 if t < 40 or 120 <= t < 130 else 0.0, costs=STEP_COSTS).run(150)

    assert plant.replicas[60] == 1
    assert plant.replicas[110] == 0
    assert 1 in plant.replicas[118:125]
    woken = [ttft for arrival, ttft, _ in plant.latencies if 120 <= arrival < 130]
    assert len(woken) > 3, "what was held is answered"
    assert max(woken) < 6.0 + 4.0, "after the cold start and a turn or two"


def test_equal_runs_give_equal_decisions() -> None:
    def run() -> list[str]:
        plant = Plant(deployment(), lambda t: 3.0 + t / 10, costs=STEP_COSTS, seed=3).run(60)
        return [decision.to_json() for decision in plant.decisions]

    assert run() == run()
