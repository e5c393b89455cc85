"""The images of the Dockerfile run as the operator will run them: restricted, read-only, without a shell."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from capstan_api.engine_args import EngineArgs
from capstan_api.limits import Envelope
from cluster.cluster import Cluster, CommandFailed
from cluster.images import Image
from cluster.layout import Layout

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.needs_cluster("pods", "image_loading")]

READY_WITHIN_S = 120
TOKEN = "an-admin-token"


def pod(name: str, image: Image, args: list[str], *, memory: str = "2Gi", grace_s: int = 40) -> dict[str, Any]:
    """A pod under the `restricted` Pod Security Standard with the probes of an engine."""

    def probe(path: str, **rest: int) -> dict[str, Any]:
        return {"httpGet": {"path": path, "port": 8100}, "periodSeconds": 1, "timeoutSeconds": 2, **rest}

    container = {
        "name": "main",
        "image": image.name,
        "imagePullPolicy": "Never",
        "args": args,
        "env": [{"name": "CAPSTAN_ADMIN_TOKEN", "value": TOKEN}],
        "resources": {"requests": {"cpu": "100m", "memory": memory}, "limits": {"cpu": "1", "memory": memory}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "startupProbe": probe("/startupz", failureThreshold=300),
        "readinessProbe": probe("/readyz"),
        "livenessProbe": probe("/livez", failureThreshold=3),
        "volumeMounts": [
            {"name": "config", "mountPath": "/etc/capstan", "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": grace_s,
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "runAsGroup": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [
                {"name": "config", "configMap": {"name": "engine", "optional": True}},
                {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}},
            ],
        },
    }


def engine_config() -> dict[str, Any]:
    args = EngineArgs(
        model=Path("/models/capstan-tiny"),
        served_model_names=("tiny",),
        max_model_len=512,
        kv_cache_bytes=64 << 20,
        envelope=Envelope(min_sequences=1, max_sequences=4, min_batched_tokens=64, max_batched_tokens=256),
        host="0.0.0.0",
        drain_timeout_seconds=30,
    )
    data = {"engine.json": args.model_dump_json()}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "engine"}, "data": data}


class Pods:
    """One namespace that enforces the `restricted` standard, and the few things done to its pods."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._cluster, self._namespace = cluster, namespace
        cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
        self.apply(engine_config())

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self._cluster.kubectl("--namespace", self._namespace, *arguments, stdin=stdin)

    def apply(self, manifest: dict[str, Any]) -> None:
        self.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))

    def wait(self, name: str, condition: str) -> None:
        self.kubectl("wait", f"pod/{name}", f"--for={condition}", f"--timeout={READY_WITHIN_S}s")

    def python(self, name: str, program: str) -> str:
        """Run a Python program in the pod: there is no shell."""
        return self.kubectl("exec", name, "--", "python3", "-c", program)

    def status(self, name: str) -> dict[str, Any]:
        [status] = json.loads(self.kubectl("get", "pod", name, "-o", "json"))["status"]["containerStatuses"]
        return dict(status)


@pytest.fixture
def pods(cluster: Cluster, namespace: str) -> Iterator[Pods]:
    return Pods(cluster, namespace)


ENGINE = ["capstan_engine", "--config", "/etc/capstan/engine.json"]
COMPLETE = """
import json, urllib.request
body = json.dumps({"model": "tiny", "prompt": "The package", "max_tokens": 8}).encode()
request = urllib.request.Request("http://127.0.0.1:8100/v1/completions", body, {"content-type": "application/json"})
print(urllib.request.urlopen(request, timeout=60).status)
"""


def test_the_engine_serves_without_root_shell_or_a_writable_disk(pods: Pods, built: dict[str, Image]) -> None:
    pods.apply(pod("engine", built["capstan-engine"], ENGINE))
    pods.wait("engine", "condition=Ready")
    assert pods.python("engine", COMPLETE).strip() == "200"
    told = json.loads(pods.python("engine", "import os, json; print(json.dumps([os.getuid(), os.getgid()]))"))
    assert told == [65532, 65532]
    with pytest.raises(CommandFailed, match="sh"):
        pods.kubectl("exec", "engine", "--", "sh", "-c", "true")
    with pytest.raises(CommandFailed, match="Read-only file system"):
        pods.python("engine", "open('/opt/x', 'w')")


def test_the_engine_computes_with_kernels_that_were_compiled_for_the_image(pods: Pods, built: dict[str, Image]) -> None:
    pods.apply(pod("engine", built["capstan-engine"], ENGINE))
    pods.wait("engine", "condition=Ready")
    assert "the engine computes with /opt/capstan/" in pods.kubectl("logs", "engine")
    found = pods.python(
        "engine", "import shutil; print([p for p in ('c++', 'g++', 'cc', 'as', 'ld') if shutil.which(p)])"
    )
    assert found.strip() == "[]"


def test_a_deleted_engine_finishes_what_it_accepted_and_ends_with_0(pods: Pods, built: dict[str, Image]) -> None:
    pods.apply(pod("engine", built["capstan-engine"], ENGINE))
    pods.wait("engine", "condition=Ready")
    # The request is on its way when its own program signals the engine, which is the container's first process.
    program = COMPLETE.replace(
        '"max_tokens": 8', '"max_tokens": 400, "ignore_eos": true, "stream": true'.replace("true", "True")
    )
    program = program.replace(
        "print(urllib.request.urlopen(request, timeout=60).status)",
        "import os, signal\n"
        "answer = urllib.request.urlopen(request, timeout=60)\n"
        "answer.readline()\n"
        "os.kill(1, signal.SIGTERM)\n"
        "print(answer.read().decode().split('data: ')[-1].strip(), flush=True)\n",
    )
    assert pods.python("engine", program).strip() == "[DONE]"
    pods.wait("engine", "jsonpath={.status.phase}=Succeeded")
    assert pods.status("engine")["state"]["terminated"]["exitCode"] == 0


def test_an_engine_that_cannot_fit_says_what_would_where_kubectl_shows_it(pods: Pods, built: dict[str, Image]) -> None:
    pods.apply(pod("engine", built["capstan-engine"], ENGINE, memory="400Mi"))
    pods.wait("engine", "jsonpath={.status.phase}=Failed")
    ended = pods.status("engine")["state"]["terminated"]
    assert ended["exitCode"] == 2
    assert ended["message"].startswith("infeasible: ")
    assert "set resources.memoryMebibytes to at least" in ended["message"]
    assert "and there are 400" in ended["message"]


@pytest.mark.slow
def test_the_kubelet_ends_an_engine_whose_core_is_stuck(pods: Pods, built: dict[str, Image]) -> None:
    manifest = pod("engine", built["capstan-engine"], ENGINE, grace_s=1)
    manifest["spec"]["restartPolicy"] = "Always"
    pods.apply(manifest)
    pods.wait("engine", "condition=Ready")
    # The core is the front end's only child.
    stop = "import os, signal; os.kill(int(open('/proc/1/task/1/children').read().split()[0]), signal.SIGSTOP)"
    pods.python("engine", stop)
    pods.wait("engine", "jsonpath={.status.containerStatuses[0].restartCount}=1")
    pods.wait("engine", "condition=Ready")


@pytest.mark.parametrize(
    "module", ["capstan_gateway", "capstan_operator", "capstan_fetch", "capstan_cli"], ids=lambda m: m[8:]
)
def test_the_light_image_runs_each_of_its_parts(pods: Pods, built: dict[str, Image], module: str) -> None:
    name = module.replace("_", "-")
    manifest = pod(name, built["capstan"], [module, "--help"], memory="256Mi")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        del manifest["spec"]["containers"][0][probe]
    pods.apply(manifest)
    pods.wait(name, "jsonpath={.status.phase}=Succeeded")
    assert "usage" in pods.kubectl("logs", name).lower()


def test_images_hold_no_shell_no_installer_and_no_address_of_this_machine(built: dict[str, Image]) -> None:
    image = built["capstan"]
    archive = io.BytesIO()
    with image.in_place():
        image.write(archive, frozenset())
    archive.seek(0)
    names: set[str] = set()
    with tarfile.open(fileobj=archive) as outer:
        blobs = {member.name.rpartition("/")[2]: member for member in outer if member.name.startswith("blobs/")}
        manifest, config, *layers = (digest.removeprefix("sha256:") for digest in image.blobs)
        settings = outer.extractfile(blobs[config])
        assert settings is not None
        described = json.load(settings)
        for layer in layers:
            with tarfile.open(fileobj=outer.extractfile(blobs[layer])) as inner:
                names |= {name.removeprefix("./") for name in inner.getnames()}
    assert manifest in blobs
    assert described["config"]["User"] == "65532:65532"
    programs = {name.rpartition("/")[2] for name in names if "/bin/" in name or "/sbin/" in name}
    assert "python3" in programs
    assert not programs & {"sh", "bash", "dash", "busybox", "perl", "apt-get", "dpkg", "uv", "pip", "pip3"}
    assert not {name for name in names if name.endswith(("/pip", "/ensurepip/_bundled"))}
    assert not {name for name in names if name.endswith(("pip.conf", ".netrc", "uv.toml"))}
    assert not [line for line in described["config"]["Env"] if "://" in line]


def test_an_archive_leaves_out_what_the_node_has(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    layer = tmp_path / "layer.tar"
    layer.write_bytes(b"layer")
    layout.store("a", layer, {"os": "linux", "architecture": "amd64"})
    whole, thin = io.BytesIO(), io.BytesIO()
    layout.write_archive("a", "capstan.dev/a:1", whole)
    layout.write_archive("a", "capstan.dev/a:1", thin, without=layout.blobs("a"))
    assert len(members(whole)) == 5
    assert members(thin) == ["oci-layout", "index.json"]


def members(archive: io.BytesIO) -> list[str]:
    archive.seek(0)
    with tarfile.open(fileobj=archive) as opened:
        return opened.getnames()
