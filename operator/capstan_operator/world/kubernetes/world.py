"""`KubernetesWorld`: one InferenceDeployment as pods, a gateway and what they need, in a cluster.

Decides nothing and keeps nothing that the API server does not: a replica is a pod, a drain is a deletion with a grace
period, a revision is a ConfigMap, and the owner reference is how all of it ends. What is read comes from the watches.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from capstan_api import names
from capstan_api.engine_args import EngineArgs, GatewayArgs
from capstan_api.status import DecisionStatus, InferenceDeploymentStatus
from capstan_api.v1alpha1 import InferenceDeployment
from capstan_operator.decide import render
from capstan_operator.errors import ApiConflict, ApiNotFound, Gone, NameTaken
from capstan_operator.world.base import GatewayFacts, ReplicaFacts
from capstan_operator.world.kubernetes import engine_pod, phases, sources
from capstan_operator.world.kubernetes.access import INFERENCE_DEPLOYMENTS, PODS
from capstan_operator.world.kubernetes.api import Manifest
from capstan_operator.world.kubernetes.children import Children, taken
from capstan_operator.world.kubernetes.cluster import Cluster
from capstan_operator.world.kubernetes.container import GRACE_BEYOND_DRAIN_S
from capstan_operator.world.kubernetes.events import Announcer
from capstan_operator.world.kubernetes.gateways import Gateways
from capstan_operator.world.kubernetes.identity import Component, Identity
from capstan_operator.world.kubernetes.patience import Patience
from capstan_operator.world.kubernetes.revisions import Revisions
from capstan_operator.world.kubernetes.steps import take
from capstan_operator.world.kubernetes.surroundings import Surroundings
from capstan_operator.world.kubernetes.token import admin_token

_KILL_GRACE_S: Final = 1


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
        self._deployment = deployment
        # Of the resource, as it was last read or written; a conflict leads from an old one to the right one.
        self._version = str((metadata.model_extra or {}).get("resourceVersion", "1"))
        self._patience = Patience(clock=cluster.clock)
        # Its status is the first thing that is written for a resource.
        is_new = deployment.status.observed_generation == 0
        children = Children(cluster.api, self.identity, cluster.kinds, is_new=is_new, clock=cluster.clock)
        self._surroundings = Surroundings(cluster, self.identity, children, self.admin_token)
        self._gateways = Gateways(cluster, self.identity, children, self._patience, self.admin_token)
        self._revisions = Revisions(cluster.api, self.identity, is_new=is_new, clock=cluster.clock)
        self._announcer = Announcer(
            cluster.api, self.identity, cluster.instance, clock=cluster.clock, wall=cluster.wall
        )
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
        pods = self._pods()
        return [phases.replica(pod, now=now, leaving=self._store.is_leaving(pod)) for pod in pods]

    async def gateways(self) -> Sequence[GatewayFacts]:
        return self._gateways.facts()

    async def prepare(self, deployment: InferenceDeployment, revisions: frozenset[str], wanted: int) -> None:
        """One object that cannot be had does not keep the others away: the failures are raised together at the end."""
        self._deployment = deployment
        pods = self._pods()
        keep = revisions | {pod["metadata"]["labels"].get(names.LABEL_REVISION) for pod in pods}
        await take(
            [
                partial(self._patience, "surroundings", partial(self._surroundings.keep, deployment, pods, wanted)),
                partial(self._gateways.keep, deployment),
                partial(self._bury, pods),
                partial(self._patience, "revisions", partial(self._revisions.sweep, keep)),
            ]
        )

    async def start_replica(self, replica_id: str, revision: str, args: EngineArgs, cpu_millicores: int) -> None:
        await self._patience(replica_id, partial(self._start, replica_id, revision, args, cpu_millicores))

    async def drain_replica(self, replica_id: str, timeout_s: float) -> None:
        await self._end(replica_id, int(timeout_s) + GRACE_BEYOND_DRAIN_S)

    async def stop_replica(self, replica_id: str) -> None:
        await self._end(replica_id, _KILL_GRACE_S)

    async def ensure_gateway(self, revision: str, args: GatewayArgs) -> None:
        await self._gateways.ensure(self._deployment, revision, args)

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
        # What is refused to one replica is refused to all; that its name is taken concerns no other.
        make = partial(self._make, replica_id, revision, args, cpu_millicores)
        pod = await self._patience("start", make) or await self._api.get(PODS, self.identity.namespace, replica_id)
        if not self.identity.owns(pod):
            raise NameTaken(taken("Pod", pod))
        self._store.believe_created(PODS, pod)
        if not any(known["metadata"]["name"] == replica_id for known in self._pods()):
            labels = ", ".join(f"{key}={value}" for key, value in self.identity.match(Component.ENGINE).items())
            raise NameTaken(f"Pod {replica_id} is in the way without its labels, {labels}; put them back or delete it")

    async def _make(self, replica_id: str, revision: str, args: EngineArgs, cpu_millicores: int) -> Manifest | None:
        """The new pod; None when the name is taken."""
        spec = await self._pod_spec(revision, args, cpu_millicores)
        try:
            return await self._api.create(PODS, engine_pod.pod(self.identity, replica_id, revision, spec))
        except ApiConflict:
            return None

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
        for pod in self._pods():
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
        alive = {p["metadata"]["uid"] for p in self._pods()}
        self._given_s = {u: s for u, s in self._given_s.items() if u in alive} | {uid: grace_s}

    def _pods(self) -> list[Manifest]:
        return self._store.pods(self.identity, Component.ENGINE)
