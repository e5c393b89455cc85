"""What the campaigns share: how long they are, a plain way to the API server, and what an operated resource looks like.

A campaign has a short form, which is part of every run of the cluster tests, and a full one behind
CAPSTAN_CAMPAIGNS=full. The resource is in mode Manual: on simulated nodes nothing is ever measured, and a person's
number is what the operator must come to.
"""

import json
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp

from capstan_api import names
from capstan_operator.world.kubernetes.connection import connect
from cluster.embedded import EmbeddedCluster
from cluster.operator_process import until

VARIABLE: Final = "CAPSTAN_CAMPAIGNS"
ROOT: Final = Path(__file__).parents[2]
CRD: Final = ROOT / "crds" / "inferencedeployments.yaml"
RESOURCES: Final = f"/apis/{names.API_VERSION}"
MERGE: Final = "application/merge-patch+json"
CHILDREN: Final = (
    "/api/v1/{}/pods",
    "/api/v1/{}/services",
    "/api/v1/{}/configmaps",
    "/api/v1/{}/secrets",
    "/api/v1/{}/serviceaccounts",
    "/apis/apps/v1/{}/deployments",
    "/apis/policy/v1/{}/poddisruptionbudgets",
    "/apis/networking.k8s.io/v1/{}/networkpolicies",
)
# Of one resource: two Services, two policies, and the ConfigMaps of the gateway and of the one revision.
ONE_OF_EACH: Final = {
    "services": 2,
    "configmaps": 2,
    "secrets": 1,
    "serviceaccounts": 1,
    "deployments": 1,
    "poddisruptionbudgets": 1,
    "networkpolicies": 2,
}


def is_full() -> bool:
    """Whether the long form was asked for."""
    chosen = os.environ.get(VARIABLE, "short")
    assert chosen in ("short", "full"), f"{VARIABLE} is {chosen!r}: it must be short or full"
    return chosen == "full"


def resource(name: str, replicas: int = 1, **spec: Any) -> dict[str, Any]:
    """A resource whose replicas end as soon as they are told."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": name},
        "spec": {
            "model": {"source": {"uri": "bundled://capstan-tiny"}},
            "slos": [{"name": "interactive", "ttft": {"thresholdMilliseconds": 500}}],
            "scaling": {"mode": "Manual", "replicas": replicas, "maxReplicas": 10_000},
            "disruption": {"drainTimeoutSeconds": 0},
            **spec,
        },
    }


@dataclass
class Direct:
    """An administrator's own way to the API server, past every fault."""

    session: aiohttp.ClientSession
    host: str

    async def send(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json"
    ) -> tuple[int, dict[str, Any]]:
        """Status and answer, whatever they are."""
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": content_type}
        async with self.session.request(method, f"{self.host}{path}", data=data, headers=headers) as answer:
            return answer.status, await answer.json(content_type=None)

    async def must(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Any:
        """The answer to a request that has no reason to fail."""
        status, answer = await self.send(method, path, body, content_type)
        assert 200 <= status < 300, f"{method} {path}: {status} {answer.get('message')}"
        return answer

    async def items(self, path: str, selector: str = "") -> list[dict[str, Any]]:
        """The objects of a list."""
        answer = await self.must("GET", f"{path}?labelSelector={selector}" if selector else path)
        found: list[dict[str, Any]] = answer["items"]
        return found

    async def count(self, path: str) -> int:
        """How many objects a list has."""
        answer = await self.must("GET", f"{path}?limit=1")
        return len(answer["items"]) + int(answer["metadata"].get("remainingItemCount", 0))

    async def watch(self, path: str) -> AsyncIterator[dict[str, Any]]:
        """Events from now on, for as long as the API server keeps the stream."""
        forever = aiohttp.ClientTimeout()
        async with self.session.get(f"{self.host}{path}?watch=true", read_bufsize=4 << 20, timeout=forever) as answer:
            async for line in answer.content:
                yield json.loads(line)


@asynccontextmanager
async def direct(kubeconfig: Path) -> AsyncIterator[Direct]:
    client = await connect(kubeconfig)
    connector = aiohttp.TCPConnector(ssl=client.rest_client.ssl_context, limit=50)
    async with aiohttp.ClientSession(connector=connector) as session:
        yield Direct(session, client.configuration.host)
    await client.close()


@dataclass
class Site:
    """A namespace with resources in it."""

    api: Direct
    namespace: str
    resources: set[str] = field(default_factory=set)

    def path(self, name: str = "") -> str:
        base = f"{RESOURCES}/namespaces/{self.namespace}/{names.PLURAL}"
        return f"{base}/{name}" if name else base

    async def declare(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        self.resources.add(manifest["metadata"]["name"])
        made: dict[str, Any] = await self.api.must("POST", self.path(), manifest)
        return made

    async def edit(self, name: str, spec: Mapping[str, Any]) -> None:
        await self.api.must("PATCH", self.path(name), {"spec": spec}, MERGE)

    async def delete(self, name: str) -> None:
        self.resources.discard(name)
        await self.api.must("DELETE", self.path(name))

    async def live(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = await self.api.must("GET", self.path(name))
        return found

    async def children(self) -> dict[str, list[dict[str, Any]]]:
        """What exists in the namespace because of resources, by plural."""
        found = {}
        for form in CHILDREN:
            path = form.format(f"namespaces/{self.namespace}")
            found[path.rsplit("/", 1)[1]] = await self.api.items(path, names.LABEL_DEPLOYMENT)
        return found

    async def pods(self, name: str) -> list[dict[str, Any]]:
        """The engines of a resource, without those that are on their way out."""
        selector = f"{names.LABEL_DEPLOYMENT}={name},{names.LABEL_REVISION}"
        found = await self.api.items(f"/api/v1/namespaces/{self.namespace}/pods", selector)
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    async def is_converged(self, name: str, replicas: int) -> object:
        """True when the resource has exactly what it should have, else what is wrong first."""
        live, pods = await self.live(name), await self.pods(name)
        revisions = {pod["metadata"]["labels"][names.LABEL_REVISION] for pod in pods}
        ready = [p for p in pods if is_ready(p)]
        status, generation = live.get("status", {}), live["metadata"]["generation"]
        if len(pods) != replicas or len(ready) != replicas:
            return f"{len(ready)} ready of {len(pods)} pods, not {replicas}"
        if replicas and revisions != {status.get("revision")}:
            return f"revisions {revisions} beside {status.get('currentRevision')}"
        if (status.get("observedGeneration"), status.get("replicas")) != (generation, replicas):
            return f"status of generation {status.get('observedGeneration')}: {status.get('replicas')} replicas"
        uid, children = live["metadata"]["uid"], await self.children()
        counts = {
            plural: sum(1 for i in found if _belongs(i, name) and owner(i) == uid)
            for plural, found in children.items()
            if plural != "pods"
        }
        return True if counts == ONE_OF_EACH else f"children {counts}"

    async def is_empty(self) -> object:
        """True when nothing is left of any resource, whoever should have removed it."""
        left = Counter({plural: len(found) for plural, found in (await self.children()).items()})
        return True if not left.total() else f"left over: {dict(+left)}"


def is_ready(pod: Mapping[str, Any]) -> bool:
    """As its kubelet says."""
    conditions = pod.get("status", {}).get("conditions", ())
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def owner(item: Mapping[str, Any]) -> str:
    """The uid of the resource that controls an object, "" when none does."""
    owners = item["metadata"].get("ownerReferences", ())
    return next((o["uid"] for o in owners if o.get("controller") and o["kind"] == names.KIND), "")


def _belongs(item: Mapping[str, Any], name: str) -> bool:
    return bool(item["metadata"]["labels"][names.LABEL_DEPLOYMENT] == name)


@asynccontextmanager
async def site(plane: EmbeddedCluster, api: Direct, name: str) -> AsyncIterator[Site]:
    """A namespace of this name where the resource's kind is known; its contents go in the background."""
    await api.must("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    yield Site(api, name)
    await api.must("DELETE", f"/api/v1/namespaces/{name}")


async def until_collected(plane: EmbeddedCluster, api: Direct) -> None:
    """Return once the cluster collects what belongs to deleted resources.

    Its collector looks for new kinds every half minute; until it has found ours, what we own outlives us.
    """
    async with site(plane, api, "collected") as empty:
        uid = (await empty.declare(resource("owner", 0)))["metadata"]["uid"]
        owners = [{"apiVersion": names.API_VERSION, "kind": names.KIND, "name": "owner", "uid": uid}]
        path = f"/api/v1/namespaces/{empty.namespace}/configmaps"
        await api.must("POST", path, {"metadata": {"name": "child", "ownerReferences": owners}})
        await empty.delete("owner")

        async def is_gone() -> object:
            status, _ = await api.send("GET", f"{path}/child")
            return status == 404 or status

        await until("what was owned goes with its owner", is_gone, 120)


def install_kind(plane: EmbeddedCluster) -> None:
    """The CustomResourceDefinition as it is generated, served when this returns."""
    plane.kubectl("apply", "-f", str(CRD))
    while not plane.answers(f"{RESOURCES}/{names.PLURAL}"):
        time.sleep(0.1)
