"""On a real node: models that are not part of the engine's image, from an image volume, a claim, a hub and a bucket.

Hub and bucket are on this machine, which pods reach by an address that no other cluster has; so these tests need the
embedded one.
"""

import json
import tarfile
import tempfile
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from capstan_api import names
from cluster.embedded import EmbeddedCluster
from cluster.gobuild import Progress
from cluster.images import Image
from cluster.installation import ROOT, Deployed
from cluster.layout import Layout
from cluster.operator_process import OperatorProcess, operator, until
from fetch.fake_bucket import KEY, KEY_ID, REGION, FakeBucket
from fetch.fake_hub import FakeHub, resolve_path

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.needs_cluster("pods", "services", "image_loading", "faults"),
]

MODEL = ROOT / "runtime_image/models/capstan-tiny-draft"
FILES = {path.name: path.read_bytes() for path in MODEL.iterdir() if path.suffix in (".json", ".jinja", ".safetensors")}
CLAIM = "models"
WITHIN_S = 180.0


@pytest.fixture
async def hub(cluster: EmbeddedCluster) -> AsyncIterator[FakeHub]:
    async with FakeHub(FILES, large=set(), address=cluster.host_ip).running() as made:
        yield made


@pytest.fixture
async def bucket(cluster: EmbeddedCluster) -> AsyncIterator[FakeBucket]:
    objects = {f"llm/tiny/{name}": content for name, content in FILES.items()}
    async with FakeBucket(objects, address=cluster.host_ip).running() as made:
        yield made


@pytest.fixture
async def running(
    cluster: EmbeddedCluster,
    built: dict[str, Image],
    namespace: str,
    hub: FakeHub,
    bucket: FakeBucket,
    tmp_path: Path,
) -> AsyncIterator[OperatorProcess]:
    """An operator for the namespace, which enforces Pod Security, that fetches from the servers of this machine."""
    cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    cluster.kubectl("apply", "-f", str(ROOT / "crds/inferencedeployments.yaml"))
    images = {"engine": built["capstan-engine"].name, "operator": built["capstan"].name}
    endpoints = {
        "huggingFace": {"url": hub.url, "allowPrivate": True},
        "s3": {"url": bucket.url, "allowPrivate": True},
    }
    async with operator(cluster.kubeconfig, tmp_path, [namespace], images=images, sourceEndpoints=endpoints) as process:
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
    cluster: EmbeddedCluster, namespace: str, running: OperatorProcess, hub: FakeHub, progress: Progress
) -> None:
    with _claim(cluster, namespace):
        model = {"source": {"uri": "hf://capstan/tiny", "revision": "main"}, "cache": {"claimName": CLAIM}}
        progress(await _serves(cluster, namespace, model, replicas=2))
        downloads = [request.path for request in hub.seen if "/resolve/" in request.path]
        assert sorted(downloads) == sorted(resolve_path(name) for name in FILES)
        _is_cached(Deployed(cluster, namespace, "llama"))


async def test_a_model_in_a_bucket_is_fetched_with_the_keys_of_a_secret(
    cluster: EmbeddedCluster, namespace: str, running: OperatorProcess, bucket: FakeBucket, progress: Progress
) -> None:
    keys = {"AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": KEY, "AWS_REGION": REGION}
    literals = [f"--from-literal={name}={value}" for name, value in keys.items()]
    cluster.kubectl("-n", namespace, "create", "secret", "generic", "bucket", *literals)
    source = {"uri": "s3://models/llm/tiny", "secretName": "bucket"}
    progress(await _serves(cluster, namespace, {"source": source}))
    # The server verifies every signature, and was asked for each object once.
    fetched = [request.path for request in bucket.seen if request.path.startswith("/models/llm/")]
    assert sorted(fetched) == sorted(f"/models/llm/tiny/{name}" for name in FILES)
    _is_cached(Deployed(cluster, namespace, "llama"))


async def test_a_bucket_that_refuses_is_said_so_with_the_remedy(
    cluster: EmbeddedCluster, namespace: str, running: OperatorProcess
) -> None:
    _declare(cluster, namespace, {"source": {"uri": "s3://models/llm/tiny"}}, replicas=1)
    await _is_not_cached(Deployed(cluster, namespace, "llama"), "spec.model.source.secretName")


async def test_a_model_that_does_not_exist_is_said_so_in_a_condition(
    cluster: EmbeddedCluster, namespace: str, running: OperatorProcess
) -> None:
    _declare(cluster, namespace, {"source": {"uri": "hf://capstan/tiny", "digest": f"sha256:{'0' * 64}"}}, replicas=1)
    await _is_not_cached(Deployed(cluster, namespace, "llama"), "digest")


def _is_cached(served: Deployed) -> None:
    cached = next(c for c in served.status()["conditions"] if c["type"] == "ModelCached")
    assert cached["status"] == "True"


async def _is_not_cached(served: Deployed, why: str) -> None:
    """Wait for the fetcher's reason in the condition."""

    async def is_said() -> object:
        conditions = {c["type"]: c for c in served.status().get("conditions", [])}
        cached = conditions.get("ModelCached", {})
        return (cached.get("status") == "False" and why in cached.get("message", "")) or conditions

    await until(f"{why} in the condition ModelCached", is_said, WITHIN_S)


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
