"""What is made for a resource and put right again: when it is written, and what is left alone."""

import json
from dataclasses import replace

import pytest
from kubernetes_house import House, resource

from capstan_operator.decide import render
from capstan_operator.errors import WorldError
from capstan_operator.world.kubernetes.children import LOOK_AGAIN_S
from capstan_operator.world.kubernetes.store import Store
from capstan_operator.world.kubernetes.world import KubernetesWorld

APPLY = "application/apply-patch+yaml"


async def test_everything_that_is_needed_is_made_and_owned(house: House) -> None:
    await house.start()
    await house.turn()
    made = {(kind, name) for kind, _, name in house.server.objects if kind != "inferencedeployments"}
    revision = render.revision(resource())
    assert made == {
        ("pods", f"llama-{revision}-0"),
        ("configmaps", f"llama-{revision}"),
        ("configmaps", "llama-gateway"),
        ("secrets", "llama-admin"),
        ("deployments", "llama-gateway"),
        ("services", "llama"),
        ("services", "llama-engines"),
        ("serviceaccounts", "llama-engine"),
        ("poddisruptionbudgets", "llama"),
        ("networkpolicies", "llama-engine"),
        ("networkpolicies", "llama-gateway"),
        ("podmonitors", "llama"),
    }
    for (kind, _, name), manifest in house.server.objects.items():
        if kind != "inferencedeployments":
            assert manifest["metadata"]["ownerReferences"][0]["uid"] == "uid-1", (kind, name)


async def test_what_is_new_is_made_with_one_request_for_each_object_and_none_is_read(house: House) -> None:
    await house.start()
    await house.turn()
    objects = [kind for kind, _, _ in house.server.objects if kind != "inferencedeployments"]
    asked = [request.resource for request in house.server.requests if request.resource]
    assert sorted(asked) == sorted(objects)
    assert {request.verb for request in house.server.writes} == {"create", "patch"}


async def test_a_life_that_never_came_to_write_its_status_takes_nothing_that_is_not_its_own(house: House) -> None:
    await house.start()
    await house.turn()
    theirs = house.server.put("services", {"metadata": {"name": "llama"}, "spec": {"selector": {"app": "theirs"}}})
    again = KubernetesWorld(replace(house.cluster, store=Store(clock=house.clock)), resource())
    house.server.requests.clear()
    with pytest.raises(WorldError, match="Service llama was not made by Capstan"):
        await again.prepare(resource(), frozenset({render.revision(resource())}), 1)
    assert house.server.find("services", "llama") == theirs
    written = [r for r in house.server.writes if r.resource == "services" and r.verb == "patch"]
    assert written == []


async def test_what_was_created_counts_as_applied_before_it_is_applied(house: House) -> None:
    await house.turn()
    house.server.requests.clear()
    exposed = resource(routing={"inferencePool": "Enabled"})
    await house.turn(exposed)
    policy = [r for r in house.server.writes if r.name == "llama-engine" and r.resource == "networkpolicies"]
    assert [r.headers["Content-Type"] for r in policy] == ["application/merge-patch+json", APPLY]
    [entry] = house.server.find("networkpolicies", "llama-engine")["metadata"]["managedFields"]
    assert (entry["manager"], entry["operation"]) == ("capstan-operator", "Apply")
    house.server.requests.clear()
    await house.turn(resource())
    again = [r for r in house.server.writes if r.name == "llama-engine"]
    assert [r.headers["Content-Type"] for r in again] == [APPLY]


async def test_a_second_turn_asks_for_nothing_and_writes_nothing(house: House) -> None:
    await house.turn()
    await house.start()
    await house.turn()
    house.server.requests.clear()
    for _ in range(5):
        house.clock.now += 1
        await house.turn()
    assert house.server.requests == []


async def test_after_a_restart_it_reads_and_writes_only_the_token_that_it_cannot_read(house: House) -> None:
    await house.turn()
    await house.start()
    await house.turn()
    again = house.reborn(resource())
    await again.turn()
    await again.start()
    assert [(r.verb, r.resource) for r in again.server.writes] == [
        ("patch", "secrets"),
        ("create", "configmaps"),
        ("create", "pods"),
    ]
    assert len([key for key in again.server.objects if key[0] == "pods"]) == 1
    again.server.requests.clear()
    await again.turn()
    assert again.server.requests == []


@pytest.mark.parametrize(
    ("kind", "name"),
    [("services", "llama"), ("networkpolicies", "llama-engine"), ("configmaps", "llama-gateway")],
)
async def test_what_somebody_changes_is_put_right_at_the_next_look(house: House, kind: str, name: str) -> None:
    await house.turn()
    before = json.dumps(house.server.find(kind, name), sort_keys=True)
    field = "data" if kind == "configmaps" else "spec"
    house.server.change(kind, name, **{field: {"selector": {"somebody": "else"}}})
    house.clock.now += LOOK_AGAIN_S
    await house.turn()
    after = house.server.find(kind, name)
    assert after[field].items() >= json.loads(before)[field].items()


async def test_what_somebody_deletes_comes_back(house: House) -> None:
    await house.turn()
    house.server.remove("services", "llama")
    house.server.remove("deployments", "llama-gateway")
    house.clock.now += LOOK_AGAIN_S
    await house.turn()
    assert house.server.find("services", "llama")
    assert house.server.find("deployments", "llama-gateway")


async def test_a_gateway_that_somebody_scales_is_scaled_back_at_once(house: House) -> None:
    await house.turn()
    live = house.server.find("deployments", "llama-gateway")
    house.server.change("deployments", "llama-gateway", spec={**live["spec"], "replicas": 0})
    await house.turn()
    assert house.server.find("deployments", "llama-gateway")["spec"]["replicas"] == 1


@pytest.mark.parametrize("kind", ["services", "configmaps", "deployments"])
async def test_what_somebody_else_made_is_left_alone_and_named(house: House, kind: str) -> None:
    name = "llama" if kind == "services" else "llama-gateway"
    theirs = house.server.put(kind, {"metadata": {"name": name}, "data": {"mine": "yes"}})
    with pytest.raises(WorldError, match=f"{name} was not made by Capstan; remove it or rename"):
        await house.turn()
    assert house.server.find(kind, name) == theirs
    if kind == "services":
        assert house.server.find("networkpolicies", "llama-engine"), "the others are made nevertheless"


async def test_switches_take_away_what_they_gave(house: House) -> None:
    await house.turn()
    off = resource(disruption={"budget": "Disabled"}, observability={"podMonitor": "Disabled"})
    await house.turn(off)
    kinds = {kind for kind, _, _ in house.server.objects}
    assert not kinds & {"poddisruptionbudgets", "podmonitors"}
    house.server.requests.clear()
    await house.turn(off)
    assert house.server.requests == []


async def test_kinds_that_are_not_installed_are_done_without(house: House) -> None:
    house.server.kinds = frozenset()
    await house.turn(resource(routing={"inferencePool": "Enabled"}))
    assert not {kind for kind, _, _ in house.server.objects} & {"podmonitors", "inferencepools"}
    house.server.kinds = frozenset({"podmonitors", "inferencepools"})
    house.clock.now += LOOK_AGAIN_S
    await house.turn(resource(routing={"inferencePool": "Enabled"}))
    assert {kind for kind, _, _ in house.server.objects} >= {"podmonitors", "inferencepools"}


def least_available(house: House) -> int:
    least: int = house.server.find("poddisruptionbudgets", "llama")["spec"]["minAvailable"]
    return least


async def test_the_budget_follows_the_replicas_that_stay(house: House) -> None:
    for ordinal in range(3):
        await house.start(ordinal)
    await house.turn(wanted=3)
    assert least_available(house) == 2
    await house.world.drain_replica(f"llama-{render.revision(resource())}-2", 60)
    await house.turn(wanted=2)
    assert least_available(house) == 1


async def test_an_eviction_does_not_permit_the_next_one_before_its_successor_is_there(house: House) -> None:
    evicted, *_ = [await house.start(ordinal) for ordinal in range(3)]
    await house.turn(wanted=3)
    metadata = house.server.find("pods", evicted)["metadata"]
    house.server.change("pods", evicted, metadata={**metadata, "deletionTimestamp": "2026-01-01T00:01:00Z"})
    house.server.requests.clear()
    await house.turn(wanted=3)
    await house.start(3)
    await house.turn(wanted=3)
    assert least_available(house) == 2
    assert not [request for request in house.server.writes if request.resource == "poddisruptionbudgets"]


async def test_a_replica_that_cannot_be_made_keeps_no_other_on_its_node(house: House) -> None:
    for ordinal in range(2):
        await house.start(ordinal)
    await house.turn(wanted=9)
    assert least_available(house) == 1


async def test_applied_fields_are_ours_only(house: House) -> None:
    await house.start()
    await house.turn()
    await house.turn(resource(routing={"inferencePool": "Enabled"}))
    for request in house.server.writes:
        if request.headers.get("Content-Type") == APPLY:
            assert "status" not in request.body
            assert set(request.body["metadata"]) <= {"name", "namespace", "labels", "annotations", "ownerReferences"}


async def test_many_worlds_do_not_look_again_at_the_same_moment(house: House) -> None:
    worlds = [KubernetesWorld(house.cluster, resource(uid=f"uid-{n}")) for n in range(20)]
    waits = {world._surroundings._children.look_again_s for world in worlds}
    assert len(waits) > 10
    assert all(0.8 * LOOK_AGAIN_S <= wait <= LOOK_AGAIN_S for wait in waits)
