"""On a real node: models that are not part of the engine's image, from an image volume, a claim and a hub.

The hub is this machine, which pods reach by an address that no other cluster has; so these tests need the embedded one.
"""

import hashlib
import json
import tarfile
import tempfile
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from capstan_api import names
from cluster.embedded import EmbeddedCluster
from cluster.gobuild import Progress
from cluster.images import Image
from cluster.installation import ROOT, Deployed
from cluster.layout import Layout
from cluster.operator_process import OperatorProcess, operator, until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.needs_cluster("pods", "services", "image_loading", "faults"),
]

MODEL = ROOT / "runtime_image/models/capstan-tiny-draft"
FILES = {path.name: path.read_bytes() for path in MODEL.iterdir() if path.suffix in (".json", ".jinja", ".safetensors")}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CLAIM = "models"
WITHIN_S = 180.0


class Hub:
    """A repository `capstan/tiny` with one commit."""

    def __init__(self) -> None:
        self.downloads: list[str] = []

    async def revision(self, _: web.Request) -> web.Response:
        siblings = [
            {"rfilename": name, "size": len(content), "blobId": _blob(content)} for name, content in FILES.items()
        ]
        return web.json_response({"id": "capstan/tiny", "sha": COMMIT, "siblings": siblings})

    async def file(self, request: web.Request) -> web.Response:
        name = request.match_info["path"]
        self.downloads.append(name)
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{_blob(FILES[name])}"'}
        return web.Response(body=FILES[name], headers=headers)


@pytest.fixture
async def hub(cluster: EmbeddedCluster) -> AsyncIterator[tuple[Hub, str]]:
    made, app = Hub(), web.Application()
    app.router.add_get("/api/models/{owner}/{name}/revision/{revision:.*}", made.revision)
    app.router.add_get("/{owner}/{name}/resolve/{revision}/{path:.*}", made.file)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, cluster.host_ip, 0).start()
    yield made, f"http://{cluster.host_ip}:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.fixture
async def running(
    cluster: EmbeddedCluster, built: dict[str, Image], namespace: str, hub: tuple[Hub, str], tmp_path: Path
) -> AsyncIterator[OperatorProcess]:
    """An operator for the namespace, which enforces Pod Security, that fetches from the hub of this machine."""
    cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    cluster.kubectl("apply", "-f", str(ROOT / "crds/inferencedeployments.yaml"))
    images = {"engine": built["capstan-engine"].name, "operator": built["capstan"].name}
    endpoint = {"huggingFace": {"url": hub[1], "allow_private": True}}
    async with operator(cluster.kubeconfig, tmp_path, [namespace], images=images, sourceEndpoints=endpoint) as process:
        yield process


async def test_a_model_in_an_image_is_mounted_and_served(
    cluster: EmbeddedCluster, namespace: str, running: OperatorProcess, tmp_path: Path, progress: Progress
) -> None:
    cluster.load_image(_image("capstan.dev/models/tiny:1", tmp_path))
    progress(await _serves(cluster, namespace, {"source": {"uri": "oci://capstan.dev/models/tiny:1"}}))


async def test_a_model_on_a_claim_is_mounted_and_served(
    cluster: EmbeddedCluster, namespace: str, running: OperatorProcess, progress: Progress
) -> None:
    with _claim(cluster, namespace) as folder:
        for name, content in FILES.items():
            path = folder / "llm" / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        progress(await _serves(cluster, namespace, {"source": {"uri": f"pvc://{CLAIM}/llm"}}))


async def test_a_model_is_fetched_once_for_all_replicas_that_share_a_cache(
    cluster: EmbeddedCluster, namespace: str, running: OperatorProcess, hub: tuple[Hub, str], progress: Progress
) -> None:
    with _claim(cluster, namespace):
        model = {"source": {"uri": "hf://capstan/tiny", "revision": "main"}, "cache": {"claimName": CLAIM}}
        progress(await _serves(cluster, namespace, model, replicas=2))
        served = Deployed(cluster, namespace, "llama")
        assert sorted(hub[0].downloads) == sorted(FILES)
        cached = next(c for c in served.status()["conditions"] if c["type"] == "ModelCached")
        assert cached["status"] == "True"


async def test_a_model_that_does_not_exist_is_said_so_in_a_condition(
    cluster: EmbeddedCluster, namespace: str, running: OperatorProcess
) -> None:
    _declare(cluster, namespace, {"source": {"uri": "hf://capstan/tiny", "digest": f"sha256:{'0' * 64}"}}, replicas=1)
    served = Deployed(cluster, namespace, "llama")

    async def is_said() -> object:
        conditions = {c["type"]: c for c in served.status().get("conditions", [])}
        cached = conditions.get("ModelCached", {})
        return (cached.get("status") == "False" and "digest" in cached.get("message", "")) or conditions

    await until("the fetcher's reason in the condition ModelCached", is_said, WITHIN_S)


async def _serves(cluster: EmbeddedCluster, namespace: str, model: dict[str, Any], replicas: int = 1) -> str:
    """Have it served by pods, and a completion from it; returns how long that took, for people."""
    _declare(cluster, namespace, model, replicas)
    served = Deployed(cluster, namespace, "llama")

    async def is_ready() -> object:
        status = served.status()
        return status.get("readyReplicas") == replicas or [c["message"] for c in status.get("conditions", [])]

    took_s = await until("all replicas are ready", is_ready, WITHIN_S)
    body = json.dumps({"model": "llama", "prompt": "Once", "max_tokens": 4}).encode()
    request = urllib.request.Request(f"{served.url()}/v1/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: ASYNC210 - nothing else runs in this loop
        assert json.load(answer)["usage"]["completion_tokens"] > 0
    return f"{model['source']['uri']}: {replicas} replica{'s' if replicas > 1 else ''} served after {took_s:.1f} s"


def _declare(cluster: EmbeddedCluster, namespace: str, model: dict[str, Any], replicas: int) -> None:
    resource = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": "llama", "namespace": namespace},
        "spec": {
            "model": {**model, "maxModelLength": 512},
            "variants": [{"name": "cpu", "resources": {"cpuMillicores": 200, "memoryMebibytes": 1500}}],
            "engine": {"kvCache": {"memoryMebibytes": 64}},
            "slos": [{"name": "interactive", "ttft": {"thresholdMilliseconds": 5000}}],
            "disruption": {"drainTimeoutSeconds": 1},
            "scaling": {"mode": "Manual", "replicas": replicas, "maxReplicas": replicas},
        },
    }
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(resource))


def _image(name: str, folder: Path) -> Path:
    """An archive of an image that has the model at its root."""
    layer, layout, archive = folder / "layer.tar", Layout(folder / "layout"), folder / "model.tar"
    layout.folder.mkdir()
    with tarfile.open(layer, "w") as tar:
        for path in MODEL.iterdir():
            tar.add(path, path.name)
    layout.store("model", layer, {"architecture": "amd64", "os": "linux", "config": {}})
    with archive.open("wb") as stream:
        layout.write_archive("model", name, stream)
    return archive


@contextmanager
def _claim(cluster: EmbeddedCluster, namespace: str) -> Iterator[Path]:
    """A claim that is bound to a folder of this machine, which the user of our images may write."""
    with tempfile.TemporaryDirectory(prefix="capstan-claim-") as name:
        folder = Path(name)
        folder.chmod(0o777)
        size = {"storage": "1Gi"}
        common = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
        claim = {"namespace": namespace, "name": CLAIM}
        volume_name = f"{namespace}-{CLAIM}"
        volume = {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": volume_name},
            "spec": {**common, "capacity": size, "hostPath": {"path": str(folder)}, "claimRef": claim},
        }
        wanted = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": claim,
            "spec": {**common, "resources": {"requests": size}, "volumeName": volume_name},
        }
        for manifest in (volume, wanted):
            cluster.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))
        yield folder
        cluster.kubectl("-n", namespace, "delete", names.PLURAL, "--all", "--wait=true")
        cluster.kubectl(
            "-n",
            namespace,
            "wait",
            "--for=delete",
            "pod",
            "--selector=app.kubernetes.io/component=engine",
            "--timeout=90s",
        )
        cluster.kubectl("delete", "pv", volume_name, "--wait=false")


def _blob(content: bytes) -> str:
    """The id that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
