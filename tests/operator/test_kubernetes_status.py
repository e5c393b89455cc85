"""What is said of a resource: its status, in this very resource and nowhere else, and events that repeat nothing."""

import pytest
from kubernetes_house import House, resource

from capstan_api.status import DecisionAction, DecisionStatus, InferenceDeploymentStatus
from capstan_operator.errors import Gone
from fake_kubernetes import refusal


async def test_status_goes_to_this_very_resource_and_holds_nothing_else(house: House) -> None:
    await house.world.write_status(InferenceDeploymentStatus(replicas=3))
    request = house.server.requests[-1]
    assert (request.verb, request.resource) == ("patch", "inferencedeployments/status")
    assert set(request.body) == {"apiVersion", "kind", "metadata", "status"}
    assert set(request.body["metadata"]) == {"name", "namespace", "resourceVersion"}
    assert house.server.find("inferencedeployments", "llama")["status"]["replicas"] == 3
    house.server.requests.clear()
    await house.world.write_status(InferenceDeploymentStatus(replicas=4))
    assert len(house.server.requests) == 1, "the version that a write leaves behind is known"


async def test_a_status_reaches_a_resource_that_somebody_has_edited(house: House) -> None:
    await house.world.write_status(InferenceDeploymentStatus(replicas=3))
    house.server.change("inferencedeployments", "llama", spec={"edited": True})
    await house.world.write_status(InferenceDeploymentStatus(replicas=4))
    live = house.server.find("inferencedeployments", "llama")
    assert (live["status"]["replicas"], live["spec"]) == (4, {"edited": True})


@pytest.mark.parametrize("made_anew", [True, False])
async def test_a_status_of_a_resource_that_is_gone_is_not_written(house: House, made_anew: bool) -> None:
    await house.world.write_status(InferenceDeploymentStatus(replicas=3))
    house.server.remove("inferencedeployments", "llama")
    if made_anew:
        house.server.put("inferencedeployments", resource(uid="uid-2").document())
    with pytest.raises(Gone):
        await house.world.write_status(InferenceDeploymentStatus(replicas=3))
    if made_anew:
        assert house.server.find("inferencedeployments", "llama")["status"]["replicas"] == 0


async def test_announcements_are_not_repeated_and_never_fail(house: House) -> None:
    decision = DecisionStatus(
        time="2026-01-01T00:00:00Z",
        action=DecisionAction.SCALE_UP,
        reason="TtftAboveThreshold",
        message="One replica more.",
        inputs_hash="abc",
    )
    for _ in range(3):
        await house.world.announce(decision)
    assert [r.resource for r in house.server.writes] == ["events"]
    (event,) = (manifest for (kind, _, _), manifest in house.server.objects.items() if kind == "events")
    assert (event["reason"], event["note"]) == ("TtftAboveThreshold", "One replica more.")
    assert event["regarding"]["uid"] == "uid-1"
    # Another life of the operator tells the same and finds it told.
    await house.reborn(resource()).world.announce(decision)
    house.server.faults.append(lambda _: refusal(500, "no"))
    for number in range(30):
        await house.world.announce(decision.model_copy(update={"message": f"{number}"}))
    assert len(house.server.writes) <= 11
