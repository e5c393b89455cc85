"""What is written and what may wait: a deployment at rest writes nothing, whatever jitters and grows."""

from collections.abc import Iterable
from typing import Any

import pytest
from plant import Plant
from worlds import STEP_COSTS, deployment

from capstan_api.status import (
    Condition,
    ConditionStatus,
    ConditionType,
    InferenceDeploymentStatus,
    SloStatus,
    UsageStatus,
)
from capstan_operator.decide import Decision, Memory
from capstan_operator.decide.told.novelty import News, news

SLO = SloStatus(
    name="interactive",
    ttft_milliseconds=400,
    tpot_milliseconds=30,
    attainment_percent="99.10",
    error_budget_remaining_percent="80.00",
    requests=100,
)
FRESH = Condition(
    type=ConditionType.METRICS_FRESH,
    status=ConditionStatus.TRUE,
    reason="Fresh",
    message="gateway and replicas report",
    last_transition_time="2026-01-01T00:00:00Z",
)
BEFORE = InferenceDeploymentStatus(ready_replicas=1, slos=[SLO], conditions=[FRESH])


def changed(**fields: Any) -> InferenceDeploymentStatus:
    return BEFORE.model_copy(update=fields)


def slo(**fields: Any) -> InferenceDeploymentStatus:
    return changed(slos=[SLO.model_copy(update=fields)])


def condition(**fields: Any) -> InferenceDeploymentStatus:
    return changed(conditions=[FRESH.model_copy(update=fields)])


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (BEFORE, News.BOOKS),
        (changed(usage=UsageStatus(replica_hours="3.5")), News.BOOKS),
        (changed(memory="{}"), News.BOOKS),
        (slo(ttft_milliseconds=430, tpot_milliseconds=32, requests=140), News.BOOKS),
        (slo(attainment_percent="99.40"), News.BOOKS),
        (condition(message="gateway and 2 replicas report"), News.BOOKS),
        (slo(ttft_milliseconds=500), News.FIGURES),
        (slo(tpot_milliseconds=None), News.FIGURES),
        (slo(error_budget_remaining_percent="70.00"), News.FIGURES),
        (changed(slos=[]), News.FIGURES),
        (changed(ready_replicas=2), News.PROGRESS),
        (changed(desired_replicas=2), News.SUBSTANCE),
        (changed(stable_revision="0ldc0de0"), News.SUBSTANCE),
        (condition(status=ConditionStatus.FALSE), News.PROGRESS),
        (condition(observed_generation=2), News.PROGRESS),
        (changed(conditions=[]), News.PROGRESS),
        (changed(conditions=[FRESH, FRESH.model_copy(update={"type": ConditionType.READY})]), News.SUBSTANCE),
    ],
)
def test_the_table(after: InferenceDeploymentStatus, expected: News) -> None:
    assert news(BEFORE, after) is expected
    assert news(after, BEFORE) is expected


def test_a_sentence_about_what_is_not_as_it_should_be_goes_along() -> None:
    before = condition(status=ConditionStatus.FALSE, message="3.2 of 16.1 GB")
    after = condition(status=ConditionStatus.FALSE, message="3.3 of 16.1 GB")
    assert news(before, after) is News.FIGURES


def told(decisions: Iterable[Decision]) -> list[News]:
    """The news of each decision, when everything that is news is written at once."""
    found, written = [], None
    for decision in decisions:
        found.append(news(written, decision.status) if written is not None else News.SUBSTANCE)
        if found[-1] is not News.BOOKS:
            written = decision.status
    return found


def test_ten_idle_minutes_after_a_load_tell_nothing() -> None:
    plant = Plant(deployment(), lambda t: 6.0 if t < 60 else 0.0, costs=STEP_COSTS).run(800)
    found = told(plant.decisions)
    assert News.SUBSTANCE in found[:60]
    assert set(found[200:]) == {News.BOOKS}


def test_a_steady_load_changes_nothing_of_substance() -> None:
    plant = Plant(deployment(), lambda _: 4.0, costs=STEP_COSTS).run(300)
    found = told(plant.decisions)
    assert News.SUBSTANCE not in found[120:]


def test_an_operator_that_starts_again_beside_an_idle_deployment_has_nothing_to_tell() -> None:
    plant = Plant(deployment(), lambda t: 6.0 if t < 60 else 0.0, costs=STEP_COSTS).run(200)
    before = plant.decisions[-1].status

    plant.memory = Memory.restored(plant.memory.durable())
    after = [news(before, decision.status) for decision in plant.run(60).decisions[200:]]

    # In its first looks it has no rate yet; that is over long before figures may be written.
    assert set(after[3:]) == {News.BOOKS}
    assert News.SUBSTANCE not in after
