"""One InferenceDeployment on an API server in a few lines, as one life of the operator sees it, and the next."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any
from zlib import crc32

import pytest
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from capstan_api import names
from capstan_api.status import InferenceDeploymentStatus
from capstan_api.v1alpha1 import InferenceDeployment, parse
from capstan_operator.bounded_http import BoundedHttp
from capstan_operator.decide import render
from capstan_operator.settings import OperatorSettings
from capstan_operator.world.kubernetes.access import (
    DEPLOYMENTS,
    INFERENCE_DEPLOYMENTS,
    PODS,
)
from capstan_operator.world.kubernetes.api import KubernetesApi
from capstan_operator.world.kubernetes.cluster import Cluster
from capstan_operator.world.kubernetes.installation import Installation
from capstan_operator.world.kubernetes.store import Store
from capstan_operator.world.kubernetes.world import KubernetesWorld
from fake_kubernetes import FakeKubernetes

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
        status = InferenceDeploymentStatus(observed_generation=deployment.metadata.generation)
        known = deployment.model_copy(update={"status": status})
        return House(self.server, cluster, KubernetesWorld(cluster, known), self.clock, self.client)

    async def start(self, ordinal: int = 0, deployment: InferenceDeployment | None = None) -> str:
        deployment = deployment or resource()
        revision = render.revision(deployment)
        replica_id = f"llama-{revision}-{ordinal}"
        args = render.engine_args(deployment, self.world.model_directory(deployment.spec.model.source.uri))
        await self.world.start_replica(replica_id, revision, args, 1000)
        return replica_id

    async def turn(self, deployment: InferenceDeployment | None = None, *, wanted: int = 1) -> None:
        """What every turn of the loop does when nothing is to be decided."""
        deployment = deployment or resource()
        await self.world.prepare(deployment, frozenset({render.revision(deployment)}), wanted)
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
