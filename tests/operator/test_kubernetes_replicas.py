"""Replicas as pods: started once, drained by a deletion, of the revision that they were made for."""

from dataclasses import replace
from typing import Any

import pytest
from kubernetes_house import House, resource

from capstan_api.fetch_args import FetchArgs, SourceEndpoint
from capstan_api.v1alpha1 import InferenceDeployment
from capstan_operator.decide import render
from capstan_operator.decide.seen.observation import Phase
from capstan_operator.errors import NameTaken, WorldError
from capstan_operator.world.kubernetes.access import PODS


async def test_children_of_an_earlier_resource_of_the_name_are_waited_for(house: House) -> None:
    await house.turn()
    pod = await house.start()
    again = house.reborn(resource(uid="uid-2"))
    assert await again.world.replicas() == []
    with pytest.raises(WorldError, match="belongs to another owner"):
        await again.turn(resource(uid="uid-2"))
    with pytest.raises(NameTaken, match="belongs to another owner"):
        await again.start(deployment=resource(uid="uid-2"))
    assert house.server.find("pods", pod)["metadata"]["ownerReferences"][0]["uid"] == "uid-1"


async def test_a_pod_of_another_owner_is_not_taken_for_the_replica(house: House) -> None:
    pod = await house.start()
    house.server.change("pods", pod, metadata={**house.server.find("pods", pod)["metadata"], "ownerReferences": []})
    with pytest.raises(NameTaken, match=f"Pod {pod} was not made by Capstan"):
        await house.reborn(resource()).start()


async def test_a_name_that_is_taken_keeps_no_other_replica_away(house: House) -> None:
    theirs = f"llama-{render.revision(resource())}-0"
    house.server.put("pods", {"metadata": {"name": theirs}})
    with pytest.raises(NameTaken, match=f"Pod {theirs} was not made by Capstan"):
        await house.start(0)
    other = await house.start(1)
    assert [facts.id for facts in await house.world.replicas()] == [other]


async def test_a_pod_without_its_labels_is_in_the_way_and_named(house: House) -> None:
    pod = await house.start()
    live = house.server.find("pods", pod)
    # As a person does who wants to look into it while another one serves: no watch shows it any more.
    house.server.change("pods", pod, metadata={**live["metadata"], "labels": {}})
    house.cluster.store.take(PODS, live, gone=True)
    assert await house.world.replicas() == []
    house.server.requests.clear()
    for _ in range(5):
        with pytest.raises(WorldError, match=f"Pod {pod} is in the way without its labels"):
            await house.start()
    assert len(house.server.writes) == 1, "it is not asked for in every turn"


async def test_a_replica_is_started_once_however_often_it_is_asked_for(house: House) -> None:
    first = await house.start()
    assert [facts.id for facts in await house.world.replicas()] == [first]
    await house.start()
    assert len([key for key in house.server.objects if key[0] == "pods"]) == 1


async def test_a_replica_is_there_before_any_watch_shows_it(house: House) -> None:
    house.server.on_event = lambda *_: None
    replica = await house.start()
    (facts,) = await house.world.replicas()
    assert (facts.id, facts.phase) == (replica, Phase.PENDING)


async def test_a_drain_is_a_deletion_with_grace_and_is_asked_for_once(house: House) -> None:
    replica = await house.start()
    await house.world.drain_replica(replica, 60)
    await house.world.drain_replica(replica, 60)
    deletes = [request for request in house.server.requests if request.verb == "delete"]
    assert len(deletes) == 1
    assert deletes[0].body["gracePeriodSeconds"] == 70
    assert deletes[0].body["preconditions"] == {"uid": house.server.find("pods", replica)["metadata"]["uid"]}
    (facts,) = await house.world.replicas()
    assert facts.phase is Phase.DRAINING


async def test_a_drain_survives_a_restart_and_a_stop_brings_its_end_forward(house: House) -> None:
    replica = await house.start()
    await house.world.drain_replica(replica, 60)
    again = house.reborn(resource())
    (facts,) = await again.world.replicas()
    assert facts.phase is Phase.DRAINING
    await again.world.drain_replica(replica, 60)
    assert again.server.writes == []
    await again.world.stop_replica(replica)
    assert [request.body["gracePeriodSeconds"] for request in again.server.writes] == [1]


async def test_a_pod_that_is_over_is_buried(house: House) -> None:
    await house.turn()
    replica = await house.start()
    house.set_status(replica, phase="Failed", reason="Evicted", message="The node was low on memory.")
    (facts,) = await house.world.replicas()
    assert (facts.phase, facts.message) == (Phase.DRAINING, "Evicted: The node was low on memory.")
    await house.turn()
    assert house.server.find("pods", replica)["metadata"]["deletionGracePeriodSeconds"] == 1


async def test_an_older_revision_is_started_as_it_was(house: House) -> None:
    old, new = (
        resource(),
        resource(
            scheduling={"nodeSelector": {"pool": "new"}}, model={"source": {"uri": "bundled://capstan-tiny-draft"}}
        ),
    )
    await house.turn(old)
    await house.start(deployment=old)
    revisions = frozenset({render.revision(old), render.revision(new)})
    for one in (house, house.reborn(new)):
        await one.world.prepare(new, revisions, 1)
        replica = await one.start(ordinal=7, deployment=old)
        spec = one.server.find("pods", replica)["spec"]
        assert "nodeSelector" not in spec
        assert spec["volumes"][0]["configMap"]["name"] == f"llama-{render.revision(old)}"
        one.server.remove("pods", replica)


async def test_a_mirror_that_is_declared_later_reaches_the_next_replica_and_no_older_one(house: House) -> None:
    fetched = resource(model={"source": {"uri": "hf://org/name"}})
    await house.turn(fetched)
    first = await house.start(0, fetched)
    mirror = SourceEndpoint(url="https://mirror.example")
    installation = replace(house.cluster.installation, hugging_face=mirror)
    mirrored = replace(house, cluster=replace(house.cluster, installation=installation)).reborn(fetched)
    await mirrored.turn(fetched)
    second = await mirrored.start(1, fetched)

    def fetches(pod: str) -> FetchArgs:
        name = house.server.find("pods", pod)["spec"]["volumes"][0]["configMap"]["name"]
        return FetchArgs.model_validate_json(house.server.find("configmaps", name)["data"]["fetch.json"])

    assert fetches(first).endpoint is None
    assert fetches(second).endpoint == mirror
    # Another revision is asked for, and this one is returned to: as it was last.
    other = resource(model={"source": {"uri": "hf://org/other"}})
    await mirrored.world.prepare(other, frozenset({render.revision(fetched), render.revision(other)}), 1)
    house.server.change("configmaps", f"llama-{render.revision(fetched)}", metadata=older(house, fetched))
    assert fetches(await mirrored.start(2, fetched)).endpoint == mirror
    for pod in (first, second, f"llama-{render.revision(fetched)}-2"):
        house.server.remove("pods", pod)
    await mirrored.turn(other)
    assert [name for kind, _, name in house.server.objects if kind == "configmaps"] == ["llama-gateway"]


def older(house: House, deployment: InferenceDeployment) -> dict[str, Any]:
    """Metadata of a revision's first ConfigMap, made an hour earlier than it was."""
    metadata = house.server.find("configmaps", f"llama-{render.revision(deployment)}")["metadata"]
    return {**metadata, "creationTimestamp": "2025-12-31T23:00:00Z"}


async def test_a_forgotten_revision_is_not_invented(house: House) -> None:
    old, new = resource(), resource(model={"source": {"uri": "bundled://capstan-tiny-draft"}})
    await house.turn(new)
    with pytest.raises(WorldError, match="its ConfigMap is gone"):
        await house.start(deployment=old)
    assert not [key for key in house.server.objects if key[0] == "pods"]


async def test_configuration_of_a_revision_goes_with_its_last_pod(house: House) -> None:
    old, new = resource(), resource(model={"source": {"uri": "bundled://capstan-tiny-draft"}})
    await house.turn(old)
    replica = await house.start(deployment=old)
    name = f"llama-{render.revision(old)}"
    await house.turn(new)
    assert house.server.find("configmaps", name), "a pod still runs with it"
    house.server.remove("pods", replica)
    await house.turn(new)
    assert ("configmaps", "default", name) not in house.server.objects
