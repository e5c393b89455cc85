"""The Kubernetes world against a real API server: everything is accepted, nothing is written twice, all of it goes.

The operator's own roles are in force: it acts as a service account that has what `access.ACCESS` lists and no more, in
a namespace that enforces Pod Security "restricted". Pods run on simulated nodes.
"""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest

from capstan_api import names
from capstan_api.status import DecisionAction, DecisionStatus, InferenceDeploymentStatus
from capstan_api.v1alpha1 import InferenceDeployment
from capstan_operator.bounded_http import BoundedHttp
from capstan_operator.decide import render
from capstan_operator.decide.seen.observation import Phase
from capstan_operator.errors import ApiForbidden, Gone, NameTaken, WorldError
from capstan_operator.fleet import understood
from capstan_operator.settings import OperatorSettings
from capstan_operator.world.base import ReplicaFacts
from capstan_operator.world.kubernetes.access import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    INFERENCE_DEPLOYMENTS,
    PODS,
    Where,
    policy_rules,
)
from capstan_operator.world.kubernetes.api import Call, KubernetesApi
from capstan_operator.world.kubernetes.children import Children, ServedKinds
from capstan_operator.world.kubernetes.cluster import Cluster as SharedWorld
from capstan_operator.world.kubernetes.connection import connect
from capstan_operator.world.kubernetes.identity import Component, Identity
from capstan_operator.world.kubernetes.installation import Installation
from capstan_operator.world.kubernetes.resync import resync
from capstan_operator.world.kubernetes.store import Key, Store
from capstan_operator.world.kubernetes.world import KubernetesWorld
from cluster.embedded import EmbeddedCluster

pytestmark = pytest.mark.e2e

CRD = Path(__file__).parents[2] / "crds" / "inferencedeployments.yaml"
CHILDREN = "pods,services,poddisruptionbudgets,networkpolicies,configmaps,secrets,serviceaccounts,deployments"
WATCHED = {INFERENCE_DEPLOYMENTS: "", PODS: names.LABEL_DEPLOYMENT, DEPLOYMENTS: names.LABEL_DEPLOYMENT}
# The garbage collector notices a new kind within half a minute, and only then what it owns.
WITHIN_S = 120.0


@dataclass
class House:
    """One InferenceDeployment in a namespace, and one life of an operator that looks after it."""

    plane: EmbeddedCluster
    namespace: str
    api: KubernetesApi
    http: BoundedHttp
    calls: list[Call]
    store: Store = field(default_factory=Store)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self.plane.kubectl("-n", self.namespace, *arguments, stdin=stdin)

    def declare(self, **spec: Any) -> None:
        manifest = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": "llama"},
            "spec": {
                "model": {"source": {"uri": "bundled://capstan-tiny"}},
                "slos": [{"name": "interactive", "ttft": {"thresholdMilliseconds": 500}}],
                **spec,
            },
        }
        self.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))

    async def look(self) -> None:
        """What the watches do in the operator."""
        for resource, selector in WATCHED.items():
            await resync(self.api, self.store, resource, namespaces=[self.namespace], selector=selector)

    async def settle(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(WITHIN_S):
            await self.look()
            while not is_so():
                await asyncio.sleep(0.2)
                await self.look()

    @property
    def resource(self) -> InferenceDeployment:
        manifest = self.store.deployment(Key(self.namespace, "llama"))
        assert manifest is not None
        return understood(manifest)

    async def world(self) -> KubernetesWorld:
        await self.look()
        installation = Installation("capstan.dev/capstan-engine:test", "capstan.dev/capstan:test")
        shared = SharedWorld(self.api, self.store, installation, b"k" * 32, self.http, "operator-0")
        return KubernetesWorld(shared, self.resource)

    async def prepare(self, world: KubernetesWorld) -> None:
        resource = self.resource
        await world.prepare(resource, frozenset({render.revision(resource)}), 1)
        try:
            await world.ensure_gateway(render.gateway_revision(resource), render.gateway_args(resource))
        except WorldError as error:
            # No gateway answers at the address of a simulated pod: it is made and never told.
            if not str(error).startswith("the gateway "):
                raise

    async def start(self, world: KubernetesWorld, ordinal: int) -> str:
        resource = self.resource
        release = render.release(resource, world.model_directory(resource.spec.model.source.uri))
        replica_id = f"llama-{release.revision}-{ordinal}"
        await world.start_replica(replica_id, release.revision, release.args, release.cpu_millicores)
        return replica_id

    def reborn(self) -> Self:
        self.store = Store()
        self.calls.clear()
        return self

    @property
    def writes(self) -> list[tuple[str, str]]:
        return [(c.verb, c.resource) for c in self.calls if c.verb not in ("get", "list", "watch")]

    def versions(self) -> dict[str, str]:
        """Every object that was made, by name and resource version; status and the clock move none but pods'."""
        items = json.loads(self.kubectl("get", CHILDREN, "--output=json"))["items"]
        return {f"{i['kind']}/{i['metadata']['name']}": i["metadata"]["resourceVersion"] for i in items}


@pytest.fixture(scope="module")
def operator_kubeconfig(control_plane: EmbeddedCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Credentials with the rights of the table and no others."""
    control_plane.kubectl("apply", "-f", str(CRD))
    while not control_plane.answers(f"/apis/{names.API_VERSION}/{names.PLURAL}"):
        time.sleep(0.1)
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "capstan-world-test"},
        "rules": policy_rules(Where.WATCHED),
    }
    control_plane.kubectl("apply", "-f", "-", stdin=json.dumps(role))
    with control_plane.namespace() as namespace:
        control_plane.kubectl("-n", namespace, "create", "serviceaccount", "operator")
        binding = ("clusterrolebinding", "capstan-world-test")
        control_plane.kubectl(
            "create", *binding, "--clusterrole=capstan-world-test", f"--serviceaccount={namespace}:operator"
        )
        token = control_plane.kubectl("-n", namespace, "create", "token", "operator", "--duration=1h").strip()
        config = json.loads(control_plane.kubectl("config", "view", "--raw", "--flatten", "--output=json"))
        config["users"] = [{"name": config["contexts"][0]["context"]["user"], "user": {"token": token}}]
        path = tmp_path_factory.mktemp("operator") / "kubeconfig"
        path.write_text(json.dumps(config))
        yield path
        control_plane.kubectl("delete", *binding)
    control_plane.kubectl("delete", "clusterrole", "capstan-world-test")


@pytest.fixture
async def house(control_plane: EmbeddedCluster, operator_kubeconfig: Path) -> AsyncIterator[House]:
    calls: list[Call] = []
    client, http = await connect(operator_kubeconfig), BoundedHttp(OperatorSettings(http_timeout_s=0.2))
    namespace = f"capstan-test-{secrets.token_hex(4)}"
    control_plane.kubectl("create", "namespace", namespace)
    control_plane.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    house = House(control_plane, namespace, KubernetesApi(client, on_call=calls.append), http, calls)
    house.declare()
    yield house
    control_plane.kubectl("delete", "namespace", namespace, "--wait=false")
    await http.close()
    await client.close()


async def test_everything_is_accepted_and_a_restart_writes_only_the_token(house: House) -> None:
    world = await house.world()
    await world.write_status(InferenceDeploymentStatus(observed_generation=1))
    await house.prepare(world)
    for ordinal in range(2):
        await house.start(world, ordinal)
    await house.settle(lambda: ready(world) == 2 and len(gateways(world)) == 1)
    await house.prepare(world)
    assert {name.partition("/")[0] for name in house.versions()} >= {
        "Pod",
        "Service",
        "PodDisruptionBudget",
        "NetworkPolicy",
        "ConfigMap",
        "Secret",
        "ServiceAccount",
        "Deployment",
    }
    before = house.versions()
    again = house.reborn()
    world = await again.world()
    await again.prepare(world)
    assert again.writes == [("patch", "secrets")]
    assert again.versions() == before


async def test_only_our_fields_are_ours_and_others_keep_theirs(house: House) -> None:
    world = await house.world()
    await house.prepare(world)
    house.kubectl("annotate", "service", "llama", "example.com/theirs=1")
    house.kubectl("patch", "service", "llama", "--patch", '{"spec": {"ports": [{"port": 80, "targetPort": 81}]}}')
    world = await house.reborn().world()
    await house.prepare(world)
    service = json.loads(house.kubectl("get", "service", "llama", "--output=json", "--show-managed-fields"))
    assert service["spec"]["ports"][0]["targetPort"] == "http"
    assert service["metadata"]["annotations"]["example.com/theirs"] == "1"
    ours = [m for m in service["metadata"]["managedFields"] if m["manager"] == "capstan-operator"]
    assert [m["operation"] for m in ours] == ["Apply"]
    assert "f:clusterIP" not in ours[0]["fieldsV1"]["f:spec"]


async def test_a_field_that_is_no_longer_set_goes_though_the_object_was_made_by_a_creation(house: House) -> None:
    await house.look()
    identity = Identity(house.namespace, "llama", house.resource.metadata.uid)
    children = Children(house.api, identity, ServedKinds(house.api), is_new=True)
    settings = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": identity.metadata("llama-x", Component.ENGINE)}
    await children.keep(CONFIG_MAPS, {**settings, "data": {"kept": "1", "dropped": "1"}})
    assert house.writes == [("create", "configmaps")]
    house.kubectl("patch", "configmap", "llama-x", "--patch", '{"data": {"theirs": "1"}}')
    await children.keep(CONFIG_MAPS, {**settings, "data": {"kept": "2"}})
    assert json.loads(house.kubectl("get", "configmap", "llama-x", "--output=json"))["data"] == {
        "kept": "2",
        "theirs": "1",
    }


async def test_what_a_person_made_is_not_taken_by_a_creation(house: House) -> None:
    await house.look()
    identity = Identity(house.namespace, "llama", house.resource.metadata.uid)
    children = Children(house.api, identity, ServedKinds(house.api), is_new=True)
    house.kubectl("create", "configmap", "llama-x", "--from-literal=theirs=1")
    settings = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": identity.metadata("llama-x", Component.ENGINE)}
    with pytest.raises(NameTaken, match="was not made by Capstan"):
        await children.keep(CONFIG_MAPS, {**settings, "data": {"ours": "1"}})
    assert json.loads(house.kubectl("get", "configmap", "llama-x", "--output=json"))["data"] == {"theirs": "1"}


async def test_secrets_cannot_be_read_with_the_operators_rights(house: House) -> None:
    await house.prepare(await house.world())
    with pytest.raises(ApiForbidden):
        await house.api._exchange("GET", f"/api/v1/namespaces/{house.namespace}/secrets/llama-admin", "get", "secrets")


async def test_another_secret_of_the_name_is_not_taken_over(house: House) -> None:
    house.kubectl("create", "secret", "generic", "llama-admin", "--from-literal=token=theirs")
    with pytest.raises(WorldError, match="Secret llama-admin cannot be ours"):
        await house.prepare(await house.world())
    secret = json.loads(house.kubectl("get", "secret", "llama-admin", "--output=json"))
    assert "ownerReferences" not in secret["metadata"]


async def test_status_and_event_reach_the_resource(house: House) -> None:
    house.declare(scaling={"mode": "Manual", "replicas": 2, "maxReplicas": 2})
    world = await house.world()
    status = InferenceDeploymentStatus(replicas=2, ready_replicas=1, selector=world.identity.selector)
    await world.write_status(status)
    decision = DecisionStatus(
        time="2026-01-01T00:00:00Z",
        action=DecisionAction.SCALE_UP,
        reason="TtftAboveThreshold",
        message="One replica more.",
        inputs_hash="abc",
    )
    await world.announce(decision)
    scale = json.loads(house.kubectl("get", "infd", "llama", "--subresource=scale", "--output=json"))
    assert (scale["spec"], scale["status"]["selector"]) == ({"replicas": 2}, "capstan.dev/deployment=llama")
    assert "TtftAboveThreshold" in house.kubectl("get", "events.events.k8s.io")
    house.kubectl("delete", "infd", "llama")
    house.declare()
    with pytest.raises(Gone):
        await world.write_status(status)


async def test_a_pod_without_room_is_pending_and_says_why(house: House) -> None:
    house.declare(scheduling={"nodeSelector": {"pool": "nowhere"}})
    world = await house.world()
    await house.prepare(world)
    await house.start(world, 0)
    await house.settle(lambda: "Unschedulable" in facts(world)[0].message)
    (replica,) = facts(world)
    assert replica.phase is Phase.PENDING
    assert "node affinity/selector" in replica.message


async def test_everything_goes_with_the_resource_and_a_namesake_starts_anew(house: House) -> None:
    world = await house.world()
    await house.prepare(world)
    await house.start(world, 0)
    await house.settle(lambda: ready(world) == 1)
    house.kubectl("delete", "infd", "llama")
    house.declare()
    await house.look()
    world = await house.world()
    async with asyncio.timeout(WITHIN_S):
        while True:
            try:
                await house.prepare(world)
                await house.start(world, 0)
                break
            except WorldError:
                # Children of the first are still being collected.
                await asyncio.sleep(0.5)
                await house.look()
    owners = json.loads(house.kubectl("get", CHILDREN, "--output=json"))["items"]
    uids = {o["uid"] for i in owners for o in i["metadata"].get("ownerReferences", ()) if o["kind"] == names.KIND}
    assert uids == {world.identity.uid}
    house.kubectl("delete", "infd", "llama")
    await house.settle(lambda: not {n for n in house.versions() if "llama" in n})


async def test_a_drain_is_remembered_by_the_api_server(house: House) -> None:
    world = await house.world()
    await house.prepare(world)
    replica_id = await house.start(world, 0)
    # A finalizer of the test's own, because a simulated pod is gone at once.
    house.kubectl("patch", "pod", replica_id, "--patch", '{"metadata": {"finalizers": ["example.com/hold"]}}')
    await world.drain_replica(replica_id, 60)
    world = await house.reborn().world()
    assert [f.phase for f in facts(world)] == [Phase.DRAINING]
    pod = json.loads(house.kubectl("get", "pod", replica_id, "--output=json"))
    assert pod["metadata"]["deletionGracePeriodSeconds"] <= 70
    house.kubectl("patch", "pod", replica_id, "--patch", '{"metadata": {"finalizers": null}}')


def facts(world: KubernetesWorld) -> list[ReplicaFacts]:
    return asyncio_free(world.replicas())


def gateways(world: KubernetesWorld) -> list[Any]:
    return asyncio_free(world.gateways())


def ready(world: KubernetesWorld) -> int:
    return sum(f.phase is Phase.READY for f in facts(world))


def asyncio_free(looking: Any) -> Any:
    """The result of a coroutine that awaits nothing: looking at the world reads the store only."""
    try:
        looking.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits")
