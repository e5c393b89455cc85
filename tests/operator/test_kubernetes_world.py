"""The world in a cluster, against an API server in a few lines: what is written, when, and what is left alone."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any
from zlib import crc32

import pytest
from aiohttp import web
from fake_kubernetes import FakeKubernetes, Request, refusal
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from capstan_api import names
from capstan_api.engine_args import GatewayArgs
from capstan_api.status import DecisionAction, DecisionStatus, InferenceDeploymentStatus
from capstan_api.v1alpha1 import InferenceDeployment, parse
from capstan_operator.bounded_http import BoundedHttp
from capstan_operator.decide import render
from capstan_operator.decide.observation import Phase
from capstan_operator.errors import ApiForbidden, Gone, NameTaken, NotLeader, WorldError
from capstan_operator.settings import OperatorSettings
from capstan_operator.world.kubernetes.access import (
    ACCESS,
    CONFIG_MAPS,
    DEPLOYMENTS,
    INFERENCE_DEPLOYMENTS,
    PODS,
    Verb,
    Where,
    policy_rules,
)
from capstan_operator.world.kubernetes.api import KubernetesApi
from capstan_operator.world.kubernetes.children import LOOK_AGAIN_S
from capstan_operator.world.kubernetes.cluster import Cluster
from capstan_operator.world.kubernetes.identity import Component
from capstan_operator.world.kubernetes.installation import Installation
from capstan_operator.world.kubernetes.resync import resync
from capstan_operator.world.kubernetes.store import Key, Store
from capstan_operator.world.kubernetes.token import admin_token
from capstan_operator.world.kubernetes.world import KubernetesWorld

RESOURCES = {"pods": PODS, "deployments": DEPLOYMENTS, "inferencedeployments": INFERENCE_DEPLOYMENTS}
SPEC: dict[str, Any] = {
    "model": {"source": {"uri": "bundled://capstan-tiny"}},
    "slos": [{"name": "interactive", "ttft": {"thresholdMilliseconds": 500}}],
}
READY = [
    {"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:05Z"} for kind in ("PodScheduled", "Ready")
]


def resource(uid: str = "uid-1", **spec: Any) -> InferenceDeployment:
    return parse(
        {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            # Another spec is another generation, as an API server sees to it.
            "metadata": {
                "name": "llama",
                "namespace": "default",
                "uid": uid,
                "generation": 1 + crc32(json.dumps(spec).encode()),
            },
            "spec": {**SPEC, **spec},
        }
    )


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class House:
    """A cluster with one InferenceDeployment, as one life of the operator sees it."""

    server: FakeKubernetes
    cluster: Cluster
    world: KubernetesWorld
    clock: Clock
    client: ApiClient

    def reborn(self, deployment: InferenceDeployment) -> "House":
        """After a restart of the operator: nothing is remembered but what the API server lists."""
        store = Store(clock=self.clock)
        self.server.on_event = lambda kind, manifest, gone: store.take(RESOURCES[kind], manifest, gone=gone) and None
        for (kind, _, _), manifest in self.server.objects.items():
            if kind in RESOURCES:
                store.take(RESOURCES[kind], manifest)
        cluster = replace(self.cluster, store=store)
        self.server.requests.clear()
        return House(self.server, cluster, KubernetesWorld(cluster, deployment), self.clock, self.client)

    async def start(self, ordinal: int = 0, deployment: InferenceDeployment | None = None) -> str:
        deployment = deployment or resource()
        revision = render.revision(deployment)
        replica_id = f"llama-{revision}-{ordinal}"
        args = render.engine_args(deployment, self.world.model_directory(deployment.spec.model.source.uri))
        await self.world.start_replica(replica_id, revision, args, 1000)
        return replica_id

    async def turn(self, deployment: InferenceDeployment | None = None) -> None:
        """What every turn of the loop does when nothing is to be decided."""
        deployment = deployment or resource()
        await self.world.prepare(deployment, frozenset({render.revision(deployment)}))
        await self.world.ensure_gateway(render.gateway_revision(deployment), render.gateway_args(deployment))

    def set_status(self, pod: str, **status: Any) -> None:
        self.server.change("pods", pod, status=status)


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with FakeKubernetes() as server:
        client = ApiClient(Configuration(host=server.url))
        clock, http = Clock(), BoundedHttp(OperatorSettings())
        store = Store(clock=clock)
        server.on_event = lambda kind, manifest, gone: store.take(RESOURCES[kind], manifest, gone=gone) and None
        api = KubernetesApi(client, clock=clock)
        installation = Installation("registry/capstan-engine:1", "registry/capstan:1")
        cluster = Cluster(api, store, installation, b"key", http, "operator-0", clock)
        server.put("inferencedeployments", resource().document())
        server.requests.clear()
        yield House(server, cluster, KubernetesWorld(cluster, resource()), clock, client)
        await http.close()
        await client.close()


async def test_everything_that_is_needed_is_made_and_owned(house: House) -> None:
    await house.turn()
    await house.start()
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
        await one.world.prepare(new, revisions)
        replica = await one.start(ordinal=7, deployment=old)
        spec = one.server.find("pods", replica)["spec"]
        assert "nodeSelector" not in spec
        assert spec["volumes"][0]["configMap"]["name"] == f"llama-{render.revision(old)}"
        one.server.remove("pods", replica)


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


async def test_the_budget_follows_the_replicas_that_stay(house: House) -> None:
    for ordinal in range(3):
        await house.start(ordinal)
    await house.turn()
    assert house.server.find("poddisruptionbudgets", "llama")["spec"]["minAvailable"] == 2
    await house.world.drain_replica(f"llama-{render.revision(resource())}-2", 60)
    await house.turn()
    assert house.server.find("poddisruptionbudgets", "llama")["spec"]["minAvailable"] == 1


async def test_a_missing_token_is_written_again_when_a_pod_misses_it(house: House) -> None:
    await house.turn()
    replica = await house.start()
    house.server.remove("secrets", "llama-admin")
    missing = {"name": "engine", "state": {"waiting": {"reason": "CreateContainerConfigError"}}}
    house.set_status(replica, conditions=READY[:1], containerStatuses=[missing])
    house.clock.now += 31
    await house.turn()
    assert house.server.find("secrets", "llama-admin")


async def test_a_secret_of_another_type_is_refused_by_name(house: House) -> None:
    def immutable(request: Request) -> web.Response | None:
        return refusal(422, "type: field is immutable") if request.resource == "secrets" else None

    house.server.faults.append(immutable)
    with pytest.raises(WorldError, match="Secret llama-admin cannot be ours"):
        await house.turn()


async def test_the_token_is_the_same_after_a_restart_and_different_for_each_resource(house: House) -> None:
    again = house.reborn(resource())
    assert again.world.admin_token == house.world.admin_token
    other = KubernetesWorld(house.cluster, resource(uid="uid-2"))
    assert other.admin_token != house.world.admin_token
    assert admin_token(b"other key", house.world.identity) != house.world.admin_token


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


async def test_applied_fields_are_ours_only(house: House) -> None:
    await house.turn()
    await house.start()
    for request in house.server.writes:
        if request.verb == "patch":
            assert "status" not in request.body
            assert set(request.body["metadata"]) <= {"name", "namespace", "labels", "annotations", "ownerReferences"}


async def test_a_write_without_the_lease_ends_the_turn(house: House) -> None:
    async def shut() -> None:
        raise NotLeader("the lease is held by another")

    fenced = KubernetesApi(house.client, fence=shut, clock=house.clock)
    world = KubernetesWorld(replace(house.cluster, api=fenced), resource())
    with pytest.raises(NotLeader):
        await world.prepare(resource(), frozenset())
    assert house.server.writes == []


async def test_a_refusal_of_one_object_keeps_no_other_away(house: House) -> None:
    def no_monitors(request: Request) -> web.Response | None:
        return refusal(403, "podmonitors is forbidden") if request.resource == "podmonitors" else None

    house.server.faults.append(no_monitors)
    with pytest.raises(WorldError, match="podmonitors is forbidden"):
        await house.world.prepare(resource(), frozenset())
    assert house.server.find("services", "llama")
    assert house.server.find("poddisruptionbudgets", "llama")


async def test_what_is_refused_is_not_asked_for_at_every_turn(house: House) -> None:
    house.server.faults.append(lambda r: refusal(403, "exceeded quota") if r.verb == "create" else None)
    for _ in range(120):
        with pytest.raises(WorldError, match="exceeded quota"):
            await house.start()
        house.clock.now += 1
    assert 10 <= len(house.server.writes) <= 16
    house.server.faults.clear()
    house.clock.now += 30
    await house.start()
    assert len(await house.world.replicas()) == 1


async def test_an_api_server_that_is_away_is_not_asked_for_one_thing_after_the_other(house: House) -> None:
    house.server.faults.append(lambda _: refusal(503, "no leader in etcd"))
    with pytest.raises(WorldError, match="no leader in etcd"):
        await house.world.prepare(resource(), frozenset())
    assert len(house.server.requests) == 2, "the surroundings and the revisions, once each"


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


class FakeGateway:
    """The admin port of a gateway, as far as its configuration goes."""

    def __init__(self) -> None:
        self.args: dict[str, Any] = {}
        self.puts = 0

    async def config(self, request: web.Request) -> web.Response:
        assert request.headers["Authorization"].startswith("Bearer ")
        if request.method == "PUT":
            self.puts += 1
            self.args = await request.json()
        return web.json_response(self.args)


@pytest.fixture
async def gateway_pod(house: House, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[[int], FakeGateway]]:
    gateway = FakeGateway()
    app = web.Application()
    app.router.add_route("*", "/admin/config", gateway.config)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    monkeypatch.setattr(names, "PORT_GATEWAY_ADMIN", runner.addresses[0][1])

    def run(restarts: int) -> FakeGateway:
        template = house.server.find("deployments", "llama-gateway")["spec"]["template"]
        status = {
            "podIP": "127.0.0.1",
            "conditions": READY,
            "containerStatuses": [{"name": "gateway", "state": {"running": {}}, "restartCount": restarts}],
        }
        pod = {"metadata": {"name": "llama-gateway-x", "uid": "g", **template["metadata"]}, "status": status}
        house.server.put("pods", pod)
        return gateway

    yield run
    await runner.cleanup()


async def test_a_gateway_is_told_once_and_has_the_revision_then(
    house: House, gateway_pod: Callable[[int], FakeGateway]
) -> None:
    await house.turn()
    gateway = gateway_pod(0)
    revision = render.gateway_revision(resource())
    assert [facts.revision for facts in await house.world.gateways()] == [""]
    await house.turn()
    await house.turn()
    assert gateway.puts == 1
    assert GatewayArgs.model_validate(gateway.args).served_model_names == ("llama",)
    (facts,) = await house.world.gateways()
    assert (facts.revision, facts.phase) == (revision, Phase.READY)


async def test_a_gateway_that_goes_by_it_already_is_asked_and_not_told(
    house: House, gateway_pod: Callable[[int], FakeGateway]
) -> None:
    await house.turn()
    gateway = gateway_pod(0)
    await house.turn()
    again = house.reborn(resource())
    await again.turn()
    assert gateway.puts == 1
    assert [facts.revision for facts in await again.world.gateways()] == [render.gateway_revision(resource())]


async def test_a_gateway_that_started_again_is_asked_again(
    house: House, gateway_pod: Callable[[int], FakeGateway]
) -> None:
    await house.turn()
    gateway_pod(0)
    await house.turn()
    gateway = gateway_pod(1)
    assert [facts.revision for facts in await house.world.gateways()] == [""]
    gateway.args = {}
    await house.turn()
    assert gateway.puts == 2


async def test_a_new_configuration_reaches_the_gateway_without_a_new_template(
    house: House, gateway_pod: Callable[[int], FakeGateway]
) -> None:
    await house.turn()
    gateway = gateway_pod(0)
    await house.turn()
    template = json.dumps(house.server.find("deployments", "llama-gateway")["spec"])
    await house.turn(resource(routing={"hold": {"maxRequests": 7}}))
    assert gateway.args["max_held_requests"] == 7
    assert (
        json.loads(house.server.find("configmaps", "llama-gateway")["data"]["gateway.json"])["max_held_requests"] == 7
    )
    assert json.dumps(house.server.find("deployments", "llama-gateway")["spec"]) == template


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


async def test_the_roles_allow_everything_that_was_asked_for(house: House) -> None:
    await house.turn()
    replica = await house.start()
    await house.world.write_status(InferenceDeploymentStatus())
    await house.world.drain_replica(replica, 1)
    await house.turn(resource(disruption={"budget": "Disabled"}, observability={"podMonitor": "Disabled"}))
    await resync(house.cluster.api, house.cluster.store, PODS)
    granted = {
        (verb, group, name)
        for rule in policy_rules(Where.WATCHED)
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for name in rule["resources"]
    }
    asked = {(r.verb, r.group, r.resource) for r in house.server.requests if r.resource}
    assert asked <= granted
    assert len(asked) > 15


def test_the_roles_have_no_wildcard_and_secrets_cannot_be_read() -> None:
    for rule in (*policy_rules(Where.WATCHED), *policy_rules(Where.OWN)):
        assert "*" not in (*rule["verbs"], *rule["apiGroups"], *rule["resources"])
        if "secrets" in rule["resources"]:
            assert set(rule["verbs"]) == {"create", "patch"}
    for access in ACCESS:
        assert access.reason
        assert access.verbs <= set(Verb)


async def test_many_worlds_do_not_look_again_at_the_same_moment(house: House) -> None:
    worlds = [KubernetesWorld(house.cluster, resource(uid=f"uid-{n}")) for n in range(20)]
    waits = {world._surroundings._children.look_again_s for world in worlds}
    assert len(waits) > 10
    assert all(0.8 * LOOK_AGAIN_S <= wait <= LOOK_AGAIN_S for wait in waits)


async def test_a_forbidden_read_is_said_so(house: House) -> None:
    house.server.faults.append(lambda _: refusal(403, "cannot get configmaps"))
    with pytest.raises(ApiForbidden):
        await house.cluster.api.get(CONFIG_MAPS, "default", "x")
    await asyncio.sleep(0)
