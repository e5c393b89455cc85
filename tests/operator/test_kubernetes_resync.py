"""A watch that missed something: listing again finds what came, went and changed."""

from kubernetes_house import READY, House, resource

from capstan_api import names
from capstan_operator.decide.seen.observation import Phase
from capstan_operator.world.kubernetes.access import (
    INFERENCE_DEPLOYMENTS,
    PODS,
)
from capstan_operator.world.kubernetes.identity import Component
from capstan_operator.world.kubernetes.resync import resync
from capstan_operator.world.kubernetes.store import Key


async def test_gaps_of_a_watch_are_closed(house: House) -> None:
    lost, kept = await house.start(0), await house.start(1)
    house.server.on_event = lambda *_: None
    house.server.remove("pods", lost)
    house.set_status(kept, conditions=READY, containerStatuses=[{"name": "engine", "state": {"running": {}}}])
    await house.start(2)
    house.server.put("pods", {"metadata": {**house.world.identity.metadata("unseen", Component.ENGINE), "uid": "u"}})
    selector = names.LABEL_DEPLOYMENT
    assert await resync(house.cluster.api, house.cluster.store, PODS, selector=selector) == 3
    phases = {facts.id: facts.phase for facts in await house.world.replicas()}
    assert lost not in phases
    assert phases[kept] is Phase.READY
    assert "unseen" in phases
    assert await resync(house.cluster.api, house.cluster.store, PODS, namespaces=["default"], selector=selector) == 0


async def test_a_resource_that_was_made_anew_unseen_takes_the_place_of_the_old_one(house: House) -> None:
    house.server.on_event = lambda *_: None
    house.server.remove("inferencedeployments", "llama")
    house.server.put("inferencedeployments", resource(uid="uid-2").document())
    await resync(house.cluster.api, house.cluster.store, INFERENCE_DEPLOYMENTS)
    held = house.cluster.store.deployment(Key("default", "llama"))
    assert held is not None
    assert held["metadata"]["uid"] == "uid-2"
