"""New limits are tried on one replica: who has them, what becomes of them, and when they are tried again."""

from itertools import pairwise
from random import Random
from typing import Any

import pytest
from worlds import NOW, deployment, engine_metrics, limits_state, replica, samples

from capstan_api.limits import BatchLimits
from capstan_operator.decide import Memory
from capstan_operator.decide.limits.canary import CanaryMemory
from capstan_operator.decide.limits.memory import LimitsMemory
from capstan_operator.decide.limits.trials import Fleet, Outcome, Verdict
from capstan_operator.decide.seen.engines import Engines
from capstan_operator.decide.seen.observation import Phase, Replica
from capstan_operator.decide.seen.tracks import Tracks

WEB = deployment(scaling={"maxReplicas": 8})
OLD = BatchLimits(max_sequences=32, max_batched_tokens=512)
NEW = BatchLimits(max_sequences=32, max_batched_tokens=563)


class House:
    """Replicas that answer `rate` requests a second each; of those of replica `i`, `late[i]` are late by TPOT."""

    def __init__(self, late: list[float], rate: float = 4.0, step_s: tuple[float, ...] = (), seed: int = 0) -> None:
        self.late, self.rate, self.now = late, rate, NOW
        self.step_s = step_s or (0.02,) * len(late)
        self.replicas = [replica(WEB, i, limits=limits_state(WEB, OLD)) for i in range(len(late))]
        self.canary = CanaryMemory()
        self.verdicts: list[Verdict] = []
        self.begun_at: list[float] = []
        self._counts = [[0.0, 0.0] for _ in late]
        self._due = [0.0 for _ in late]
        self._random = Random(seed)
        self.silent: set[str] = set()
        self._tracks = Tracks()

    def id(self, index: int) -> str:
        return self.replicas[index].id

    @property
    def on_trial(self) -> str | None:
        return self.canary.trial.replica if self.canary.trial is not None else None

    def become(self, index: int, **fields: Any) -> None:
        self.replicas[index] = self.replicas[index].changed(**fields)

    def fleet(self) -> Fleet:
        told = [self._told(i) for i, each in enumerate(self.replicas) if each.id not in self.silent]
        self._tracks = self._tracks.after(self.replicas, Engines.of(told)).tracks
        return Fleet(replicas=tuple(self.replicas), tracks=self._tracks, max_age_s=10.0, answer_s=2.0, allowed=0.05)

    def _told(self, index: int) -> Replica:
        """The replica with what its engine tells now."""
        total, late = self._counts[index]
        metrics = engine_metrics(
            self.now,
            busy_seconds=self.now - NOW,
            slo_total=total,
            slo_good=total - late,
            ttft_good=total,
            tpot_good=total - late,
            samples=samples(1, start=int((self.now - NOW) / self.step_s[index])),
        )
        return self.replicas[index].changed(metrics=metrics)

    def pass_(self, seconds: int, *, wanted: BatchLimits | None = None) -> "House":
        """So many turns of a second, in each of which `wanted` is asked for."""
        for _ in range(seconds):
            self.now += 1
            for i, counts in enumerate(self._counts):
                self._due[i] += self.rate
                while self._due[i] >= 1:
                    self._due[i] -= 1
                    counts[0] += 1
                    counts[1] += self._random.random() < self.late[i]
            fleet = self.fleet()
            self.canary, verdict = self.canary.watched(fleet, self.now).followed(fleet, self.now)
            if verdict is not None:
                self.verdicts.append(verdict)
            if wanted is not None and self.canary.trial is None and not self.canary.refuses(wanted, OLD, self.now):
                self._begin(wanted, fleet)
            self._obey()
        return self

    def _begin(self, wanted: BatchLimits, fleet: Fleet) -> None:
        begun = self.canary.begin(wanted, OLD, fleet, self.now)
        if begun is not None:
            self.canary = begun
            self.begun_at.append(self.now)

    def _obey(self) -> None:
        """Every engine takes the limits that it is told."""
        for i, each in enumerate(self.replicas):
            limits = self.canary.trial.limits if self.canary.trial and each.id == self.on_trial else OLD
            self.become(i, limits=limits_state(WEB, limits))

    def until_tried(self) -> "House":
        for _ in range(120):
            if self.on_trial is not None:
                return self
            self.pass_(1, wanted=NEW)
        raise AssertionError("nothing was tried")

    def until_verdict(self) -> Verdict:
        num = len(self.verdicts)
        for _ in range(200):
            if len(self.verdicts) > num:
                return self.verdicts[-1]
            self.pass_(1)
        raise AssertionError("the trial has no end")


def test_limits_that_harm_nobody_are_kept_with_what_was_measured() -> None:
    verdict = House([0.01, 0.01, 0.01]).until_tried().until_verdict()
    assert verdict.outcome is Outcome.KEPT
    assert verdict.canary.requests >= 60
    assert verdict.peers.requests >= 60
    assert "requests on its peers missed" in verdict.because


def test_limits_that_make_the_canary_slower_than_its_peers_are_taken_back() -> None:
    house = House([0.01, 0.01, 0.01]).until_tried()
    index = next(i for i in range(3) if house.id(i) == house.on_trial)
    house.late[index] = 0.4
    verdict = house.until_verdict()
    assert verdict.outcome is Outcome.REVERTED
    assert f"requests on {verdict.trial.replica} missed" in verdict.because
    assert "not again for 60 s" in verdict.because


def test_what_a_trial_spoilt_is_no_excuse_for_the_next_one() -> None:
    house = House([0.01, 0.01, 0.01], step_s=(0.04, 0.02, 0.02)).until_tried()
    house.late[0] = 0.4
    assert house.until_verdict().outcome is Outcome.REVERTED
    assert house.canary.refuses(OLD, NEW, house.now), "its answers have to run out first"
    assert not house.canary.marks
    house.late[0] = 0.01
    house.until_tried()
    assert house.canary.trial is not None
    assert house.canary.trial.before.share(1) < 0.1
    house.late[0] = 0.4
    assert house.until_verdict().outcome is Outcome.REVERTED


def test_what_is_late_everywhere_is_not_the_new_limits_fault() -> None:
    house = House([0.01, 0.01, 0.01]).until_tried()
    house.late = [0.4, 0.4, 0.4]
    assert house.until_verdict().outcome is Outcome.KEPT


def test_a_replica_that_was_as_slow_before_is_not_blamed_on_the_limits() -> None:
    house = House([0.3, 0.01, 0.01], step_s=(0.04, 0.02, 0.02)).pass_(40).until_tried()
    assert house.on_trial == house.id(0)
    assert house.until_verdict().outcome is Outcome.KEPT


def test_the_replica_whose_steps_take_longest_is_the_canary() -> None:
    for slowest in range(3):
        step_s = tuple(0.04 if i == slowest else 0.02 for i in range(3))
        house = House([0.0] * 3, step_s=step_s).until_tried()
        assert house.on_trial == house.id(slowest)


def test_a_step_that_was_taken_back_is_tried_ever_more_rarely() -> None:
    house = House([0.01] * 3)
    for _ in range(2000):
        index = next((i for i in range(3) if house.id(i) == house.on_trial), None)
        house.late = [0.5 if i == index else 0.01 for i in range(3)]
        house.pass_(1, wanted=NEW)
    assert {v.outcome for v in house.verdicts} == {Outcome.REVERTED}
    waits = [b - a for a, b in pairwise(house.begun_at)]
    assert len(waits) >= 3
    assert all(later > 1.6 * sooner for sooner, later in pairwise(waits))


def test_what_goes_further_than_a_refused_step_is_refused_too_and_what_goes_less_far_is_not() -> None:
    canary = CanaryMemory().reverted(NEW, OLD, NOW)
    further = NEW.model_copy(update={"max_batched_tokens": 620})
    less = NEW.model_copy(update={"max_batched_tokens": 540})
    fewer = OLD.model_copy(update={"max_sequences": 20})
    assert canary.refuses(NEW, OLD, NOW + 59)
    assert canary.refuses(further, OLD, NOW + 59)
    assert not canary.refuses(less, OLD, NOW + 59)
    assert not canary.refuses(fewer, OLD, NOW + 59), "another limit, in another direction"
    assert not canary.refuses(NEW, OLD, NOW + 60)


def test_refusals_stay_few_however_much_is_taken_back() -> None:
    canary = CanaryMemory()
    for i in range(200):
        old = BatchLimits(max_sequences=4 + i % 7, max_batched_tokens=64 + 13 * i % 900)
        new = BatchLimits(max_sequences=4 + i % 5, max_batched_tokens=64 + 17 * i % 900)
        canary = canary.reverted(new, old, NOW + i)
    assert len(canary.refusals) <= 4


@pytest.mark.parametrize(
    ("fields", "because"),
    [
        ({"phase": Phase.DRAINING}, "it is draining"),
        ({"phase": Phase.FAILED}, "it is failed"),
        ({"restarts": 1}, "it has restarted"),
        ({"created_at": NOW + 5}, "it has restarted"),
    ],
)
def test_a_canary_that_is_lost_ends_its_trial_without_a_verdict(fields: dict[str, Any], because: str) -> None:
    house = House([0.0] * 3).until_tried().pass_(3)
    index = next(i for i in range(3) if house.id(i) == house.on_trial)
    house.become(index, **fields)
    verdict = house.pass_(1).verdicts[-1]
    assert (verdict.outcome, verdict.because) == (Outcome.ENDED, because)
    assert not house.canary.refusals, "nothing was learnt of the step"
    assert house.canary.refuses(NEW, OLD, house.now), "but it is not tried at once"


def test_a_canary_that_vanishes_or_falls_silent_ends_its_trial() -> None:
    house = House([0.0] * 3).until_tried().pass_(3)
    house.replicas = [r for r in house.replicas if r.id != house.on_trial]
    assert house.pass_(1).verdicts[-1].because == "it is gone"

    house = House([0.0] * 3).until_tried().pass_(3)
    assert house.on_trial is not None
    house.silent.add(house.on_trial)
    assert house.until_verdict().because == "it tells nothing any more"


def test_without_peers_there_is_no_trial_and_the_loss_of_all_peers_ends_one() -> None:
    alone = House([0.0]).pass_(60)
    assert alone.canary.begin(NEW, OLD, alone.fleet(), alone.now) is None

    house = House([0.0] * 2).until_tried()
    index = next(i for i in range(2) if house.id(i) != house.on_trial)
    house.become(index, phase=Phase.DRAINING)
    assert house.pass_(1).verdicts[-1].because == "nobody else serves"


def test_an_engine_that_does_not_take_the_limits_proves_nothing() -> None:
    house = House([0.0] * 3).until_tried()
    house._obey = lambda: None  # type: ignore[method-assign]
    for i in range(3):
        house.become(i, limits=limits_state(WEB, OLD))
    assert house.until_verdict().because == "it did not take them"


def test_too_few_requests_are_no_verdict() -> None:
    assert House([0.0] * 3, rate=0.1).until_tried().until_verdict().because == "too few requests came to tell"


def test_an_operator_that_was_away_trusts_no_trial() -> None:
    house = House([0.0] * 3).until_tried()
    house.now += 60
    assert "nobody looked for" in house.pass_(1).verdicts[-1].because


@pytest.mark.parametrize("late", [0.0, 0.02, 0.05, 0.1])
def test_noise_alone_rarely_takes_anything_back(late: float) -> None:
    """Harmless limits on trial, answers late alike everywhere: two verdicts in a hundred may be wrong by chance."""
    verdicts = []
    for seed in range(20):
        house = House([late] * (2 + seed % 5), seed=seed)
        for _ in range(10):
            house.canary = house.canary.changed(refusals=(), paused_until=0.0)
            house.until_tried().until_verdict()
        verdicts += house.verdicts
    assert len(verdicts) == 200
    assert sum(v.outcome is Outcome.REVERTED for v in verdicts) <= 4


def test_what_is_only_compared_is_not_kept_over_a_restart() -> None:
    house = House([0.0] * 3).until_tried().pass_(8)
    memory = Memory(limits=LimitsMemory(limits=OLD, canary=house.canary))
    restored = Memory.restored(memory.durable()).limits.canary
    assert restored.trial == house.canary.trial
    assert (restored.marks, restored.begun) == ((), None)
    assert Memory.from_json(memory.to_json()) == memory
