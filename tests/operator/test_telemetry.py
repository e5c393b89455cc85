"""The operator's series: those of the catalogue and no others, and an end to those of a resource that is gone."""

import dataclasses
from pathlib import Path

import pytest
from prometheus_client import disable_created_metrics
from prometheus_client.parser import text_string_to_metric_families
from worlds import NOW, observation

from capstan_api.manifest import InvalidResource
from capstan_api.metrics import Operator, catalogue
from capstan_api.status import InferenceDeploymentStatus
from capstan_api.v1alpha1 import InferenceDeployment, load, parse
from capstan_operator.budgets import AcceleratorBudget
from capstan_operator.decide import decide
from capstan_operator.decide.memory import Memory
from capstan_operator.decide.seen.observation import Allowance
from capstan_operator.invalid import not_understood
from capstan_operator.reconcile import Turn
from capstan_operator.telemetry import Telemetry
from capstan_operator.world.kubernetes.access import Verb
from capstan_operator.world.kubernetes.api import Call
from capstan_operator.world.kubernetes.store import Key

DEPLOYMENT = load(Path(__file__).parents[2] / "crds/examples/quickstart.yaml")
KEY = Key("default", "quickstart")
STATUS = InferenceDeploymentStatus.model_validate(
    {
        "desiredReplicas": 3,
        "readyReplicas": 2,
        "startingReplicas": 1,
        "effectiveBatchLimits": {"maxSequences": 16, "maxBatchedTokens": 512, "appliedReplicas": 2},
        "slos": [{"name": "interactive", "attainmentPercent": "99.5", "errorBudgetRemainingPercent": "-12.5"}],
        "conditions": [
            {
                "type": "Ready",
                "status": "False",
                "reason": "R",
                "message": "m",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
        ],
        "startup": {"phases": [{"name": "Loading", "p50Seconds": 3, "p90Seconds": 9}]},
        "usage": {"replicaHours": "1.25", "acceleratorHours": "2.5"},
        "decisionHistory": [
            {
                "time": f"2026-01-01T00:0{n}:00Z",
                "action": action,
                "reason": "R",
                "message": f"told {n}",
                "inputsHash": "x",
            }
            for n, action in ((3, "SetLimits"), (2, "ScaleUp"), (1, "ScaleUp"))
        ],
    }
)


def turn(error: str | None = None) -> Turn:
    return Turn(0.0, DEPLOYMENT, Memory(), status=STATUS, error=error, seconds=0.01)


def page(telemetry: Telemetry) -> dict[tuple[str, ...], float]:
    """Value by (name, label, value, ...), labels sorted."""
    families = text_string_to_metric_families(telemetry.page().decode())
    return {
        (sample.name, *(part for label in sorted(sample.labels.items()) for part in label)): sample.value
        for family in families
        for sample in family.samples
    }


def telemetry(*, leads: bool = True) -> Telemetry:
    budgets = [AcceleratorBudget(name="pool", accelerators=16)]
    return Telemetry(ages=lambda: {"pods": 2.5}, is_leader=lambda: leads, budgets=budgets)


def of(name: str, **labels: str) -> tuple[str, ...]:
    labels |= {"namespace": "default", "deployment": "quickstart"}
    return (name, *(part for label in sorted(labels.items()) for part in label))


def test_what_a_turn_said_is_exposed() -> None:
    subject = telemetry()
    subject.turned(KEY, turn())
    samples = page(subject)
    assert samples[of("capstan_desired_replicas")] == 3
    assert samples[of("capstan_unready_replicas", phase="starting")] == 1
    assert samples[of("capstan_batch_limit", limit="max_sequences")] == 16
    assert samples[of("capstan_batch_limit_bound", limit="max_sequences", bound="max")] == 32
    assert samples[of("capstan_slo_attainment_ratio", slo_class="interactive")] == 0.995
    assert samples[of("capstan_error_budget_remaining_ratio", slo_class="interactive")] == -0.125
    assert samples[of("capstan_slo_objective_ratio", slo_class="interactive")] == 0.95
    assert samples[of("capstan_condition", type="Ready", status="False")] == 1
    assert samples[of("capstan_condition", type="Ready", status="True")] == 0
    assert samples[of("capstan_startup_seconds", phase="Loading", quantile="0.9")] == 9
    assert samples[of("capstan_replica_hours_total")] == 1.25
    assert samples[of("capstan_accelerator_hours_total")] == 2.5


def test_a_resource_that_was_never_understood_has_the_condition_that_an_alert_waits_for() -> None:
    subject, told = telemetry(), of("capstan_condition", type="ConfigurationValid", status="False")
    broken = {"metadata": {"name": KEY.name, "namespace": KEY.namespace}, "status": {"desiredReplicas": 2}}
    subject.not_understood(KEY, not_understood(broken, InvalidResource("spec.slos: required"), NOW))
    assert page(subject)[told] == 1
    assert page(subject)[of("capstan_desired_replicas")] == 2
    subject.turned(KEY, turn())
    assert told not in page(subject), "the loop that has begun says what holds now"
    assert of("capstan_batch_limit_bound", limit="max_sequences", bound="max") in page(subject)


def test_only_the_newest_of_the_rare_decisions_is_told_with_its_sentence() -> None:
    subject = telemetry()
    subject.turned(KEY, turn())
    told = {key: value for key, value in page(subject).items() if key[0] == "capstan_decision_info"}
    assert told == {of("capstan_decision_info", action="ScaleUp", reason="R", message="told 2"): 1767225720.0}


def sharing(left: int, **scaling: object) -> Turn:
    """A turn of a resource that begins with three replicas of four accelerators, of which a budget leaves some."""
    document = DEPLOYMENT.document()
    document["spec"]["variants"] = [{"name": "gpu", "resources": {"accelerator": {"count": 4}}}]
    document["spec"]["scaling"] = {"minReplicas": 3, "maxReplicas": 8, **scaling}
    deployment: InferenceDeployment = parse(document)
    allowance = Allowance(budget="pool", replicas=left, most=4)
    seen = observation(deployment).changed(allowance=allowance)
    decision = decide(deployment, seen, Memory(), NOW)
    return dataclasses.replace(turn(), deployment=deployment, observation=seen, decision=decision)


@pytest.mark.parametrize(
    ("made", "asked", "held", "withheld"),
    [
        (sharing(left=1), 12, 4, 8),
        (sharing(left=4), 12, 12, 0),
        # A person's number is had, whatever the share.
        (sharing(left=1, mode="Manual", replicas=2), 8, 8, 0),
    ],
    ids=["withheld", "enough", "by hand"],
)
def test_what_a_resource_has_at_a_budget_is_told_in_accelerators(
    made: Turn, asked: int, held: int, withheld: int
) -> None:
    subject = telemetry()
    subject.turned(KEY, made)
    samples = page(subject)
    figures = [samples[of(f"capstan_accelerators_{what}", budget="pool")] for what in ("asked", "held", "withheld")]
    assert figures == [asked, held, withheld]
    assert samples["capstan_accelerator_budget", "budget", "pool"] == 16
    # It leaves the budget: nothing of it is told any more.
    subject.turned(KEY, dataclasses.replace(made, observation=observation(DEPLOYMENT)))
    assert not [key for key in page(subject) if key[0].startswith("capstan_accelerators_")]


def test_nothing_is_left_of_a_resource_that_is_gone() -> None:
    subject = telemetry()
    subject.turned(KEY, turn())
    subject.gone(KEY)
    assert not [key for key in page(subject) if "quickstart" in key]


def test_the_process_counts_turns_requests_and_the_age_of_its_watches() -> None:
    subject = telemetry()
    subject.turned(KEY, turn())
    subject.turned(KEY, turn("it failed"))
    subject.called(Call(Verb.PATCH, "services", 200, 0.01))
    subject.called(Call(Verb.GET, "pods", 0, 5.0))
    subject.paced(2.0, 7)
    for allowed, warnings, times in ((True, (), 1), (True, ("slow",), 2), (False, ("slow",), 3)):
        for _ in range(times):
            subject.reviewed({"allowed": allowed, **({"warnings": warnings} if warnings else {})})
    samples = page(subject)
    assert samples["capstan_operator_turns_total", "outcome", "ok"] == 1
    assert samples["capstan_operator_turns_total", "outcome", "error"] == 1
    sent = "capstan_operator_api_requests_total"
    assert samples[sent, "code", "200", "resource", "services", "verb", "patch"] == 1
    assert samples[sent, "code", "error", "resource", "pods", "verb", "get"] == 1
    assert samples["capstan_operator_watch_age_seconds", "resource", "pods"] == 2.5
    assert samples["capstan_operator_turn_interval_seconds",] == 2
    reviews = "capstan_operator_admission_reviews_total"
    assert [samples[reviews, "verdict", verdict] for verdict in ("passed", "warned", "refused")] == [1, 2, 3]
    assert samples["capstan_operator_objects",] == 7
    assert samples["capstan_operator_is_leader",] == 1
    assert page(telemetry(leads=False))["capstan_operator_is_leader",] == 0


def test_the_catalogue_is_what_is_exposed() -> None:
    disable_created_metrics()
    subject = telemetry()
    subject.turned(KEY, sharing(left=1))
    subject.called(Call(Verb.PATCH, "services", 200, 0.01))
    families = text_string_to_metric_families(subject.page().decode())
    exposed = {family.name for family in families if family.samples}
    declared = {metric.name.removesuffix("_total") for metric in catalogue(Operator)}
    assert exposed == declared
