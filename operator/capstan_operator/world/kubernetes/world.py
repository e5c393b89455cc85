"""`KubernetesWorld`: one InferenceDeployment as pods, a gateway and what they need, in a cluster.

Decides nothing and keeps nothing that the API server does not: a replica is a pod, a drain is a deletion with a grace
period, a revision is a ConfigMap, and the owner reference is how all of it ends. What is read comes from the watches.
"""

import asyncio
import base64
import hashlib
import hmac
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from capstan_api import names
from capstan_api.engine_args import EngineArgs, GatewayArgs
from capstan_api.spec import Switch
from capstan_api.status import DecisionStatus, InferenceDeploymentStatus
from capstan_api.v1alpha1 import InferenceDeployment
from capstan_operator.bounded_http import BoundedHttp
from capstan_operator.decide import render
from capstan_operator.decide.observation import Phase
from capstan_operator.errors import AdminError, ApiConflict, ApiNotFound, Gone, NameTaken, WorldError
from capstan_operator.world.base import GatewayFacts, ReplicaFacts
from capstan_operator.world.kubernetes import engine_pod, gateway, network, optional, phases, sources
from capstan_operator.world.kubernetes.access import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    INFERENCE_DEPLOYMENTS,
    INFERENCE_POOLS,
    NETWORK_POLICIES,
    POD_MONITORS,
    PODS,
    SECRETS,
    SERVICE_ACCOUNTS,
    SERVICES,
)
from capstan_operator.world.kubernetes.api import KubernetesApi, Manifest
from capstan_operator.world.kubernetes.children import Children, ServedKinds, taken
from capstan_operator.world.kubernetes.events import Announcer
from capstan_operator.world.kubernetes.identity import Component, Identity
from capstan_operator.world.kubernetes.installation import Installation
from capstan_operator.world.kubernetes.patience import Patience
from capstan_operator.world.kubernetes.revisions import Revisions
from capstan_operator.world.kubernetes.store import Store

Step = Callable[[], Awaitable[object]]
_KILL_GRACE_S: Final = 1
# How long a pod may miss a Secret or ConfigMap before ours are applied again.
_DOUBT_S: Final = 30.0


@dataclass
class Cluster:
    """What the worlds of all InferenceDeployments share."""

    api: KubernetesApi
    store: Store
    installation: Installation
    key: bytes
    """The operator's own key, which the tokens of all admin ports are computed from."""
    http: BoundedHttp
    instance: str
    """Name of this operator process, as Events give it."""
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    kinds: ServedKinds = field(init=False)

    def __post_init__(self) -> None:
        self.kinds = ServedKinds(self.api, clock=self.clock)


class KubernetesWorld:
    """Implements `World`. Besides what `World` says, methods that write raise `NotLeader`."""

    def __init__(self, cluster: Cluster, deployment: InferenceDeployment) -> None:
        """The resource's namespace, name and uid must not change over the life of a world; its spec may."""
        metadata = deployment.metadata
        self.wake = asyncio.Event()
        self.identity = Identity(metadata.namespace, metadata.name, metadata.uid)
        self.admin_token = admin_token(cluster.key, self.identity)
        self._cluster = cluster
        self._api, self._store = cluster.api, cluster.store
        self._children = Children(cluster.api, self.identity, cluster.kinds, clock=cluster.clock)
        self._announcer = Announcer(
            cluster.api, self.identity, cluster.instance, clock=cluster.clock, wall=cluster.wall
        )
        self._deployment = deployment
        # Of the resource, as it was last read or written; a conflict leads from an old one to the right one.
        self._version = str((metadata.model_extra or {}).get("resourceVersion", "1"))
        self._patience = Patience(clock=cluster.clock)
        self._revisions = Revisions(cluster.api, self.identity, clock=cluster.clock)
        # Runs of gateway containers by the revision of the configuration that they are known to go by.
        self._configured: dict[str, str] = {}
        self._gateway_wanted = False
        # What was last compared with what is wanted, and when that has to be done again.
        self._surrounded_for: tuple[int, int, int] | None = None
        self._gateway_kept_for: tuple[int, str | None] | None = None
        self._look_again_at = 0.0
        # Pods whose end was asked for, with the grace that they were given.
        self._given_s: dict[str, int] = {}

    @property
    def endpoint(self) -> str | None:
        return f"http://{self.identity.service_host}"

    def model_directory(self, uri: str) -> Path:
        source = self._deployment.spec.model.source
        return sources.directory(source if uri == source.uri else source.model_copy(update={"uri": uri}))

    async def replicas(self) -> Sequence[ReplicaFacts]:
        now = self._cluster.wall()
        pods = self._pods(Component.ENGINE)
        return [phases.replica(pod, now=now, leaving=self._store.is_leaving(pod)) for pod in pods]

    async def gateways(self) -> Sequence[GatewayFacts]:
        facts = [phases.gateway(pod, self._configured_as(pod)) for pod in self._pods(Component.GATEWAY)]
        if not facts and (deployment := self._store.gateway(self.identity)) is not None:
            return [phases.unborn_gateway(deployment)]
        return facts

    async def prepare(self, deployment: InferenceDeployment, revisions: frozenset[str]) -> None:
        """One object that cannot be had does not keep the others away: the failures are raised together at the end."""
        self._deployment = deployment
        pods = self._pods(Component.ENGINE)
        running = {pod["metadata"]["labels"].get(names.LABEL_REVISION) for pod in pods}
        failures = await _attempt(
            [
                partial(self._patience, "surroundings", self._keep_surroundings),
                partial(self._patience, "gateway", self._keep_gateway),
                partial(self._bury, pods),
                partial(self._patience, "revisions", partial(self._revisions.sweep, revisions | running)),
            ]
        )
        if failures:
            raise WorldError("; ".join(failures))

    async def start_replica(self, replica_id: str, revision: str, args: EngineArgs, cpu_millicores: int) -> None:
        await self._patience("start", partial(self._start, replica_id, revision, args, cpu_millicores))

    async def drain_replica(self, replica_id: str, timeout_s: float) -> None:
        await self._end(replica_id, int(timeout_s) + engine_pod.GRACE_BEYOND_DRAIN_S)

    async def stop_replica(self, replica_id: str) -> None:
        await self._end(replica_id, _KILL_GRACE_S)

    async def ensure_gateway(self, revision: str, args: GatewayArgs) -> None:
        # The ConfigMap first: it is what the pods of the Deployment start with.
        config = gateway.config(self.identity, args)
        await self._patience("configuration", partial(self._children.keep, CONFIG_MAPS, config))
        self._gateway_wanted = True
        await self._patience("gateway", self._keep_gateway)
        for pod in self._pods(Component.GATEWAY):
            facts = phases.gateway(pod, self._configured_as(pod))
            if facts.phase is Phase.READY and facts.admin_url is not None and facts.revision != revision:
                await self._configure(facts.admin_url, gateway.placed(args))
                self._configured[phases.incarnation(pod, gateway.GATEWAY)] = revision
        alive = {phases.incarnation(pod, gateway.GATEWAY) for pod in self._pods(Component.GATEWAY)}
        self._configured = {run: known for run, known in self._configured.items() if run in alive}

    async def announce(self, decision: DecisionStatus) -> None:
        await self._announcer.announce(decision)

    async def write_status(self, status: InferenceDeploymentStatus) -> None:
        try:
            await self._write_status(status)
        except (ApiConflict, ApiNotFound):
            # Written by somebody else in between, a person most likely; or another resource of the same name.
            live = await self._read_resource()
            if live["metadata"]["uid"] != self.identity.uid:
                raise Gone(f"InferenceDeployment {self.identity.name} was deleted") from None
            self._version = live["metadata"]["resourceVersion"]
            await self._write_status(status)

    async def close(self, timeout_s: float | None = None) -> None:
        """Leaves everything running: what serves must outlive the operator, and the owner's deletion ends it."""

    async def _write_status(self, status: InferenceDeploymentStatus) -> None:
        manifest = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            # With the version, because an API server does not compare the uid of what is written to a status.
            "metadata": {
                "name": self.identity.name,
                "namespace": self.identity.namespace,
                "resourceVersion": self._version,
            },
            "status": status.model_dump(mode="json", by_alias=True, exclude_none=True),
        }
        answer = await self._api.apply(INFERENCE_DEPLOYMENTS, manifest, subresource="status")
        self._version = answer["metadata"]["resourceVersion"]

    async def _read_resource(self) -> Manifest:
        try:
            return await self._api.get(INFERENCE_DEPLOYMENTS, self.identity.namespace, self.identity.name)
        except ApiNotFound:
            raise Gone(f"InferenceDeployment {self.identity.name} was deleted") from None

    async def _start(self, replica_id: str, revision: str, args: EngineArgs, cpu_millicores: int) -> None:
        spec = await self._pod_spec(revision, args, cpu_millicores)
        manifest = engine_pod.pod(self.identity, replica_id, revision, spec)
        try:
            self._store.believe_created(PODS, await self._api.create(PODS, manifest))
        except ApiConflict:
            live = await self._api.get(PODS, self.identity.namespace, replica_id)
            if not self.identity.owns(live):
                raise NameTaken(taken("Pod", live)) from None
            self._store.believe_created(PODS, live)

    async def _keep_surroundings(self) -> None:
        """What stands around the pods; not even compared while neither the resource nor a pod gives reason to."""
        pods = self._pods(Component.ENGINE)
        if any(phases.needs_configuration(pod) for pod in pods):
            self._children.doubt(SECRETS, self.identity.admin_secret, older_than_s=_DOUBT_S)
        num_serving = sum(not self._store.is_leaving(pod) for pod in pods)
        occasion = (self._deployment.metadata.generation, num_serving, self._children.doubts)
        if occasion == self._surrounded_for and self._cluster.clock() < self._look_again_at:
            return
        failures = await _attempt(self._surroundings(num_serving))
        if failures:
            raise WorldError("; ".join(failures))
        self._surrounded_for = occasion
        self._look_again_at = self._cluster.clock() + self._children.look_again_s

    def _surroundings(self, num_serving: int) -> Iterable[Step]:
        """Everything to be had or to be rid of, one step each."""
        identity, spec, installation = self.identity, self._deployment.spec, self._cluster.installation
        keep, remove = self._children.keep, self._children.remove
        yield partial(keep, SERVICE_ACCOUNTS, gateway.service_account(identity))
        yield partial(self._children.keep_unread, SECRETS, admin_secret(identity, self.admin_token))
        yield partial(keep, SERVICES, gateway.service(identity))
        yield partial(keep, SERVICES, gateway.engines_service(identity))
        policy = network.engine_policy(
            identity,
            installation,
            source_ports=installation.source_ports(spec.model.source),
            scraped=spec.observability.pod_monitor is Switch.ENABLED,
            pooled=spec.routing.inference_pool is Switch.ENABLED,
        )
        yield partial(keep, NETWORK_POLICIES, policy)
        yield partial(keep, NETWORK_POLICIES, network.gateway_policy(identity, installation))
        for resource, switch, manifest in (
            (DISRUPTION_BUDGETS, spec.disruption.budget, optional.disruption_budget(identity, num_serving)),
            (POD_MONITORS, spec.observability.pod_monitor, optional.pod_monitor(identity)),
            (INFERENCE_POOLS, spec.routing.inference_pool, optional.inference_pool(identity)),
        ):
            wanted = switch is Switch.ENABLED
            yield partial(keep, resource, manifest) if wanted else partial(remove, resource, identity.name)

    async def _keep_gateway(self) -> None:
        """The Deployment of the gateways, once there is a configuration that they can start with."""
        live = self._store.gateway(self.identity)
        if live is None and not self._gateway_wanted:
            return
        occasion = (self._deployment.metadata.generation, (live or {}).get("metadata", {}).get("resourceVersion"))
        if live is not None and occasion == self._gateway_kept_for:
            return
        if live is None:
            # Not seen by the watch: never made, deleted by somebody, or made a moment ago.
            self._children.doubt(DEPLOYMENTS, self.identity.gateway, older_than_s=_DOUBT_S)
        wanted = gateway.deployment(self._deployment, self.identity, self._cluster.installation)
        answer = await self._children.keep(DEPLOYMENTS, wanted, live)
        if answer is not None:
            self._store.take(DEPLOYMENTS, answer)
        self._gateway_kept_for = occasion

    async def _bury(self, pods: Iterable[Manifest]) -> None:
        """Delete pods that will never run again: their ids are wanted, and their message was seen."""
        for pod in pods:
            if phases.is_over(pod) and not self._store.is_leaving(pod):
                await self._delete(pod, _KILL_GRACE_S)

    async def _pod_spec(self, revision: str, args: EngineArgs, cpu_millicores: int) -> Mapping[str, Any]:
        """The spec of the revision's pods, whose ConfigMap exists when this returns."""
        identity, installation = self.identity, self._cluster.installation
        if revision != render.revision(self._deployment):
            return await self._revisions.pod_spec(revision)
        spec = engine_pod.pod_spec(self._deployment, identity, installation, revision, cpu_millicores)
        source = self._deployment.spec.model.source
        # What was observed may be of an older source with the same address.
        args = args.model_copy(update={"model": sources.directory(source)})
        fetch = sources.fetch_args(source, installation)
        await self._revisions.write(revision, engine_pod.revision_config(identity, revision, args, spec, fetch))
        return spec

    async def _end(self, replica_id: str, grace_s: int) -> None:
        for pod in self._pods(Component.ENGINE):
            if pod["metadata"]["name"] == replica_id:
                await self._delete(pod, grace_s)

    async def _delete(self, pod: Manifest, grace_s: int) -> None:
        metadata = pod["metadata"]
        uid = metadata["uid"]
        # A second request may only bring the end forward.
        given_s = self._given_s.get(uid, metadata.get("deletionGracePeriodSeconds"))
        if given_s is not None and given_s <= grace_s and self._store.is_leaving(pod):
            return
        await self._api.delete(PODS, metadata["namespace"], metadata["name"], uid=uid, grace_period_s=grace_s)
        self._store.believe_deleted(uid)
        alive = {p["metadata"]["uid"] for p in self._pods(Component.ENGINE)}
        self._given_s = {u: s for u, s in self._given_s.items() if u in alive} | {uid: grace_s}

    async def _configure(self, admin_url: str, args: GatewayArgs) -> None:
        """Have a gateway go by these arguments; one that does already is not told again."""
        headers = {"Authorization": f"Bearer {self.admin_token}"}
        url = f"{admin_url}/admin/config"
        try:
            answer = await self._cluster.http.request("GET", url, headers=headers)
            if answer.status == 200 and _is(args, answer.body):
                return
            answer = await self._cluster.http.request("PUT", url, headers=headers, json=args.model_dump(mode="json"))
        except AdminError as error:
            raise WorldError(f"the gateway cannot be configured: {error}") from None
        if answer.status != 200:
            said = answer.body[:200].decode(errors="replace")
            raise WorldError(f"the gateway refuses its configuration with {answer.status}: {said}")

    def _configured_as(self, pod: Manifest) -> str:
        return self._configured.get(phases.incarnation(pod, gateway.GATEWAY), "")

    def _pods(self, component: Component) -> list[Manifest]:
        return self._store.pods(self.identity, component)


async def _attempt(steps: Iterable[Step]) -> list[str]:
    """Take every step, whatever became of those before; returns what went wrong."""
    failures = []
    for step in steps:
        try:
            await step()
        except WorldError as error:
            failures.append(str(error))
    return failures


def admin_token(key: bytes, identity: Identity) -> str:
    """The token of the admin ports of one InferenceDeployment: the same after a restart, and nowhere else."""
    message = f"{identity.namespace}/{identity.name}/{identity.uid}"
    return hmac.new(key, message.encode(), hashlib.sha256).hexdigest()


def admin_secret(identity: Identity, token: str) -> dict[str, Any]:
    """The Secret that brings the token to the pods.

    Its own type is a guard: a Secret of another type that has the name already cannot be turned into this one.
    """
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": identity.metadata(identity.admin_secret, Component.ENGINE),
        "type": f"{names.GROUP}/admin-token",
        "data": {"token": base64.b64encode(token.encode()).decode()},
    }


def _is(args: GatewayArgs, body: bytes) -> bool:
    try:
        return GatewayArgs.model_validate_json(body) == args
    except ValidationError:
        return False
