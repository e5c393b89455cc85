"""What may be stored: what cannot be understood or started is refused, what is doubtful is warned of."""

from typing import Any

import pytest
from reviewing import STRICT, TOO_LONG, asking, manifest, store
from worlds import deployment, taught

from capstan_api.v1alpha1 import InferenceDeployment
from capstan_operator.admission import review
from capstan_operator.errors import BadReview
from capstan_operator.world.kubernetes.access import INFERENCE_DEPLOYMENTS
from capstan_operator.world.kubernetes.store import Store


def answer(document: dict[str, Any], known: Store | None = None) -> dict[str, Any]:
    made = review(document, known or Store(lambda _: None))
    assert (made["apiVersion"], made["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    response: dict[str, Any] = made["response"]
    assert response["uid"] == "705ab4f5"
    return response


def test_what_can_be_understood_and_started_passes_without_a_word() -> None:
    of = deployment()
    assert answer(asking(manifest(of)), store(of)) == {"uid": "705ab4f5", "allowed": True}


def test_what_cannot_be_understood_is_refused_in_the_words_of_the_condition() -> None:
    broken = manifest(deployment())
    broken["spec"]["scaling"]["minReplica"] = 1
    refused = answer(asking(broken))
    assert not refused["allowed"]
    assert refused["status"]["code"] == 422
    assert refused["status"]["message"].startswith("spec.scaling.minReplica: unknown field; did you mean minReplicas?")


def test_what_no_engine_could_start_with_is_refused_and_names_what_could() -> None:
    refused = answer(asking(manifest(deployment(model=TOO_LONG))), store(deployment()))
    assert not refused["allowed"]
    assert "maxModelLength 8192 fits" in refused["status"]["message"]


def test_what_was_learnt_under_another_load_only_warns() -> None:
    warned = answer(asking(manifest(deployment(slos=STRICT))), store(deployment()))
    assert warned["allowed"]
    [warning] = warned["warnings"]
    assert "one request alone takes 5 ms per token; 6 could be met" in warning


def test_a_model_that_may_have_changed_since_only_warns() -> None:
    loose = {"source": {"uri": "s3://bucket/model"}, "maxModelLength": 4096}
    warned = answer(
        asking(manifest(deployment(model={**loose, "maxModelLength": 10_000}))), store(deployment(model=loose))
    )
    assert warned["allowed"]
    assert "maxModelLength 8192 fits" in warned["warnings"][0]


def test_what_is_stored_already_may_still_be_changed_in_other_ways() -> None:
    stored, known = manifest(deployment(model=TOO_LONG)), store(deployment())
    scaled = manifest(deployment(model=TOO_LONG, scaling={"maxReplicas": 3}))
    warned = answer(asking(scaled, stored), known)
    assert warned["allowed"]
    assert "maxModelLength 8192 fits" in warned["warnings"][0]
    longer = manifest(deployment(model={**TOO_LONG, "maxModelLength": 10_001}))
    assert not answer(asking(longer, stored), known)["allowed"]


def test_what_cannot_be_understood_as_it_is_stored_does_not_excuse_what_replaces_it() -> None:
    stored = {**manifest(deployment()), "spec": {"of": "another version"}}
    assert not answer(asking(manifest(deployment(model=TOO_LONG)), stored), store(deployment()))["allowed"]
    assert answer(asking(manifest(deployment()), stored), store(deployment()))["allowed"]


@pytest.mark.parametrize("operation", ["DELETE", "CONNECT"])
def test_nothing_else_than_writing_is_judged(operation: str) -> None:
    broken = {**manifest(deployment()), "spec": {}}
    assert answer(asking(broken, operation=operation))["allowed"]


def test_what_is_on_its_way_out_is_not_held_up() -> None:
    leaving = {**manifest(deployment()), "spec": {}}
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert answer(asking(leaving, manifest(deployment())))["allowed"]


def test_a_dry_run_is_judged_as_the_real_thing() -> None:
    assert not answer(asking({**manifest(deployment()), "spec": {}}, dryRun=True))["allowed"]


def test_the_resources_own_engines_are_asked_before_others() -> None:
    of = deployment(slos=STRICT)
    known, slow = store(of, "web"), taught((0.04, 0.0002, 0.001, 0.0, 0.0))
    other = store(of, "first", model=slow)
    [(key, lived)] = [(key, other.deployment(key)) for key in other.deployments()]
    known.take(INFERENCE_DEPLOYMENTS, dict(lived or {}), gone=False)
    own, foreign = manifest(of), manifest(of, "third", key.namespace)
    assert "5 ms per token" in answer(asking(own, own), known)["warnings"][0]
    assert "41 ms per token" in answer(asking(manifest(of, "first")), known)["warnings"][0]
    assert answer(asking(foreign), known)["warnings"]


def test_engines_of_another_model_precision_or_size_say_nothing_of_this_one() -> None:
    for other in (
        deployment(model={"source": {"uri": "bundled://other"}}),
        deployment(variants=[{"name": "default", "precision": "Float32"}]),
    ):
        assert answer(asking(manifest(deployment(model=TOO_LONG, slos=STRICT))), store(other)) == {
            "uid": "705ab4f5",
            "allowed": True,
        }
    slower = deployment(variants=[{"name": "default", "resources": {"cpuMillicores": 500}}])
    assert answer(asking(manifest(deployment(slos=STRICT))), store(slower))["allowed"]
    assert "warnings" not in answer(asking(manifest(deployment(slos=STRICT))), store(slower))


@pytest.mark.parametrize(("uri", "is_refused"), [("pvc://models/a", False), ("bundled://tiny", True)])
def test_a_claim_of_the_same_name_in_another_namespace_is_another_claim(uri: str, is_refused: bool) -> None:
    def of(length: int) -> InferenceDeployment:
        return deployment(model={"source": {"uri": uri}, "maxModelLength": length})

    elsewhere, here = store(of(4096), namespace="team-b"), store(of(4096))
    said = answer(asking(manifest(of(10_000))), elsewhere)
    assert said["allowed"] is not is_refused
    assert "warnings" not in said
    assert answer(asking(manifest(of(10_000))), here).get("warnings", ["refused"])


def test_engines_that_are_not_those_of_the_spec_have_no_say_in_the_pace() -> None:
    rolled_back = store(deployment(), revision="an-older-one")
    assert "warnings" not in answer(asking(manifest(deployment(slos=STRICT))), rolled_back)
    assert "warnings" in answer(asking(manifest(deployment(slos=STRICT))), store(deployment()))


def test_a_thousand_resources_of_the_model_cost_no_more_than_a_few() -> None:
    looked_at: list[str] = []

    class Counting(Store):
        def deployment(self, key: Any) -> Any:
            looked_at.append(key.name)
            return super().deployment(key)

    known = Counting(lambda _: None)
    for number in range(1000):
        known.take(INFERENCE_DEPLOYMENTS, manifest(deployment(), f"silent-{number}"), gone=False)
    assert answer(asking(manifest(deployment(model=TOO_LONG))), known)["allowed"]
    assert len(looked_at) <= 9


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        "review",
        {},
        {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"},
        {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": []},
        {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {"uid": 7}},
        {"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview", "request": {"uid": "7"}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"uid": "7"}},
    ],
)
def test_what_is_no_review_of_a_known_version_is_told_what_is(document: Any) -> None:
    with pytest.raises(BadReview, match=r"AdmissionReview of admission\.k8s\.io/v1"):
        review(document, Store(lambda _: None))


@pytest.mark.parametrize("broken", [None, [], "x", {"metadata": "x"}, {"metadata": {"name": 7}, "spec": []}])
def test_garbage_for_an_object_is_an_answer_and_no_exception(broken: Any) -> None:
    said = answer(asking(broken, manifest(deployment())), store(deployment()))
    assert said["allowed"] is not isinstance(broken, dict)
