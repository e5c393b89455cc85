"""Batch limits on trial in a simulated fleet under the real law: what the model gets wrong stays on one replica."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scenes import resource, slo

from capstan_api.limits import BatchLimits
from capstan_api.v1alpha1 import InferenceDeployment
from capstan_operator.decide import Decision, Memory, Observation, render
from capstan_operator.decide.actions import SetLimits
from capstan_operator.decide.limits.memory import LimitsMemory
from capstan_operator.decide.limits.trials import Outcome
from capstan_operator.decide.seen.observation import Phase
from capstan_sim.control_plane import ControlPlane, objectives
from capstan_sim.events import Event, blind_spans, prepare
from capstan_sim.measure import attained, flips
from capstan_sim.policy import Setting
from capstan_sim.router import Rule
from capstan_sim.simulation import Record, simulate
from capstan_sim.step_time import StepModel
from capstan_sim.workload import Workload


@dataclass(frozen=True, slots=True)
class Stepped(StepModel):
    """Hardware whose steps take much longer beyond 600 prefill tokens, which no model can tell before it has tried."""

    def seconds(self, prefill_tokens: float, sequences: float, context: float, pairs: float) -> float:
        cliff_s = 0.08 if prefill_tokens > 600 else 0.0
        return StepModel.seconds(self, prefill_tokens, sequences, context, pairs) + cliff_s


LINEAR = StepModel(0.02, 6e-5, 4e-4, 3e-8, 0.0, 200_000)
STEPPED = Stepped(0.02, 6e-5, 4e-4, 3e-8, 0.0, 200_000)


@dataclass
class Played:
    record: Record
    turns: list[tuple[Observation, Decision]]

    @property
    def budgets(self) -> list[tuple[float, int]]:
        """Every change of the token budget of all, with its moment."""
        changes: list[tuple[float, int]] = []
        for at, limits in self.record.limits:
            if not changes or changes[-1][1] != limits.max_batched_tokens:
                changes.append((at, limits.max_batched_tokens))
        return changes

    @property
    def told(self) -> list[tuple[float, str, str, str]]:
        """Changes of limits: moment, reason, before and after."""
        start = self.turns[0][0].at
        return [
            (seen.at - start, change.reason, change.from_value, change.to_value)
            for seen, decision in self.turns
            for change in decision.changes
            if change.action == "SetLimits"
        ]

    def verdicts(self, outcome: Outcome) -> list[tuple[float, str, str, str]]:
        return [each for each in self.told if each[1] == outcome]


def load(rate: float, seconds: float, *, prompt: int = 1200, seed: int = 5) -> Workload:
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.exponential(1 / rate, int(1.5 * rate * seconds) + 50))
    times = times[times < seconds]
    prompts = np.maximum(1, (prompt * rng.gamma(4.0, 0.25, len(times))).astype(int))
    return Workload.of(times, prompts, np.maximum(1, rng.geometric(1 / 60, len(times))))


def tried(replicas: int, **scaling: Any) -> InferenceDeployment:
    return resource(
        "tried",
        slo("chat", 1500, 80, percentile=95),
        scaling={"minReplicas": replicas, "maxReplicas": replicas, **scaling},
        disruption={"drainTimeoutSeconds": 600},
    )


def play(
    workload: Workload,
    model: StepModel,
    replicas: int,
    *events: str,
    limits: BatchLimits | None = None,
    cold_start_s: float = 20.0,
    rule: Rule = Rule.GATEWAY,
    **scaling,
) -> Played:
    turns: list[tuple[Observation, Decision]] = []
    of = tried(replicas, **scaling)
    control = ControlPlane(of, on_turn=lambda *turn: turns.append(turn))
    if limits is not None:
        control.memory = Memory(limits=LimitsMemory(limits=limits))
    top = render.envelope(of).top
    setting = Setting(
        model, objectives(of)[0], 1200.0, 60.0, of.spec.scaling.max_replicas, cold_start_s, replicas, top, rule
    )
    befalling = [Event.parse(event) for event in events]
    record = simulate(
        workload,
        setting,
        control,
        ttft_s=rule.told(objective.ttft_s for objective in objectives(of)),
        prepare=lambda fleet: prepare(fleet, befalling),
        blind=blind_spans(befalling),
    )
    return Played(record, turns)


def good(played: Played, start: float, stop: float) -> float:
    at = np.array(played.record.book.arrival)
    chosen = (at >= start) & (at < stop)
    objective = objectives(tried(1))
    return float(attained(played.record, objective)[chosen].mean())


def test_a_step_that_is_slower_than_the_model_says_is_reverted_and_only_one_replica_ever_had_it():
    begin = BatchLimits(max_sequences=64, max_batched_tokens=400)
    played = play(load(12.0, 400.0), STEPPED, 3, limits=begin)

    reverted = played.verdicts(Outcome.REVERTED)
    assert reverted
    assert good(played, 0, 400) >= 0.98
    assert max(budget for at, budget in played.budgets if at > 0) <= 600
    for at, _, tried, _ in reverted:
        again = [then for then, reason, _, to in played.told if reason == Outcome.TRIED and to == tried and then > at]
        assert all(then >= at + 60 for then in again), "not at once"
    for _, decision in played.turns:
        trial = decision.memory.limits.canary.trial
        if trial is not None:
            given = [a for a in decision.actions if isinstance(a, SetLimits) and a.limits == trial.limits]
            assert {action.id for action in given} <= {trial.replica}


def test_a_slower_replica_is_the_one_that_limits_are_tried_on():
    begin = BatchLimits(max_sequences=64, max_batched_tokens=400)
    # The gateway's rule would spare the slow one, so that it could bear what is tried.
    events, rule = ("reclaim@3", "slow-steps@3:100=1.5"), Rule.OUTSTANDING
    played = play(load(13.0, 300.0), LINEAR, 3, *events, limits=begin, rule=rule)

    slow = next(pod.id for pod in played.record.fleet.pods if pod.model != LINEAR)
    trials = [decision.memory.limits.canary.trial for _, decision in played.turns]
    # It must have been there for a while, to be compared with itself.
    tried = {trial.replica for trial in trials if trial is not None and trial.since > played.turns[0][0].at + 60}
    assert tried == {slow}
    assert played.verdicts(Outcome.REVERTED)
    # What all were given the slowest one could bear too.
    assert good(played, 50, 300) >= 0.95


def test_noise_of_a_constant_load_leaves_the_limits_alone():
    played = play(load(11.0, 1000.0), LINEAR, 3)

    settled = [budget for at, budget in played.budgets if at > 400]
    assert flips(settled) == 0
    assert len(settled) <= 2
    assert not [each for each in played.verdicts(Outcome.REVERTED) if each[0] > 400]


def test_one_replica_alone_has_nobody_to_be_compared_with_and_moves_at_once():
    begin = BatchLimits(max_sequences=64, max_batched_tokens=200)
    played = play(load(4.0, 120.0), LINEAR, 1, limits=begin)

    assert not played.verdicts(Outcome.TRIED)
    assert max(budget for _, budget in played.budgets) > 500


def test_while_replicas_warm_up_nothing_is_loosened_and_answers_keep_their_pace():
    rate_s = 200.0
    calm, surge = load(6.0, rate_s), load(30.0, 150.0, seed=6)
    workload = Workload.of(
        np.concatenate([calm.arrival, rate_s + surge.arrival]),
        np.concatenate([calm.prompt, surge.prompt]),
        np.concatenate([calm.output, surge.output]),
    )
    played = play(workload, LINEAR, 2, cold_start_s=90.0, minReplicas=2, maxReplicas=8)

    start = played.turns[0][0].at
    warming = [
        (seen, decision)
        for seen, decision in played.turns
        if seen.at - start > rate_s and seen.with_phase(Phase.STARTING) and len(seen.with_phase(Phase.READY)) == 2
    ]
    assert len(warming) > 30
    budgets = [decision.memory.limits.limits.max_batched_tokens for _, decision in warming]
    assert all(later <= sooner for sooner, later in pairwise(budgets)), budgets
    assert not any(decision.memory.limits.canary.trial for _, decision in warming[1:])
    # Though the queue has lost the TTFT of many, their prompts do not slow those that are answered.
    assert any(d.signals.prefill_backlog * LINEAR.prefill_token_s / 2 > 1.6 for _, d in warming)
    book = played.record.book
    pace = [
        (book.done[i] - book.first[i]) / (book.output[i] - 1)
        for i in range(len(book))
        if book.output[i] > 20 and rate_s + 40 < book.first[i] < rate_s + 85
    ]
    assert len(pace) > 100
    assert np.mean(np.array(pace) <= 0.08) >= 0.95
