"""The embedded cluster runs real pods as a real one does, and leaves this machine as it found it."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import embedded, preflight
from cluster.archives import BUSYBOX_IMAGE
from cluster.cluster import Cluster, CommandFailed
from cluster.gobuild import Progress
from cluster.run import Record, StartFailed, cgroups_of, link_name, processes_of, records

pytestmark = pytest.mark.e2e

RESTRICTED = {
    "runAsNonRoot": True,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


def require_node() -> None:
    if lacking := preflight.for_real_node():
        pytest.skip(f"no embedded cluster: {'; '.join(lacking)}")


def remains(record: Record) -> list[str]:
    """What is left of a run, by kind."""
    left = {
        "processes": processes_of(Path(record.folder)),
        "cgroups": cgroups_of(record),
        "link": Path("/sys/class/net", link_name(record)).exists(),
        "folder": Path(record.folder).exists(),
        "record": record.path.exists(),
    }
    return [kind for kind, there in left.items() if there]


def traces() -> dict[str, set[str]]:
    """What any cluster could leave on this machine."""
    commands = {
        "rules": ("iptables-save",),
        "routes": ("ip", "route", "show"),
        "links": ("ip", "-oneline", "link", "show", "type", "veth"),
        "bridges": ("ip", "-oneline", "link", "show", "type", "bridge"),
        "namespaces": ("ip", "netns", "list"),
    }
    said = {
        kind: subprocess.run(it, capture_output=True, text=True, check=True).stdout for kind, it in commands.items()
    }
    mounts = Path("/proc/self/mountinfo").read_text().splitlines(keepends=True)
    # Whoever else works on this machine mounts what they like.
    said["mounts"] = "".join(line for line in mounts if "capstan" in line or "kubelet" in line or "netns" in line)
    said["forwarding"] = Path("/proc/sys/net/ipv4/ip_forward").read_text()
    # Counters in comments change by themselves.
    return {
        kind: {line for line in text.splitlines() if not line.startswith(("#", ":"))} for kind, text in said.items()
    }


def own_runs() -> set[str]:
    """The runs of this process: others may start and end theirs meanwhile."""
    return {record.id for record in records() if record.owner is not None and record.owner[0] == os.getpid()}


def pod(name: str, script: str, **spec: object) -> str:
    """A pod of the busybox image, under the restricted pod security standard, as JSON."""
    container: dict[str, object] = {
        "name": "main",
        "image": BUSYBOX_IMAGE,
        "command": ["sh", "-c", script],
        "securityContext": RESTRICTED,
    }
    container |= {key: spec.pop(key) for key in ("readinessProbe", "volumeMounts") if key in spec}
    # Nothing in it minds SIGTERM, and a namespace goes only when its pods have gone.
    spec = {"terminationGracePeriodSeconds": 1} | spec
    meta = {"name": name, "labels": {"app": name}}
    return json.dumps(
        {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"containers": [container], **spec}}
    )


@pytest.fixture(scope="module")
def web(cluster: Cluster) -> Iterator[str]:
    """A namespace with a pod `web` that says its name over HTTP, and a Service before it."""
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
    }
    probe = {"httpGet": {"path": "/index.html", "port": 8080}, "periodSeconds": 1}
    serve = "echo serving; mkdir /tmp/w; hostname > /tmp/w/index.html; exec httpd -f -p 8080 -h /tmp/w"
    with cluster.namespace() as namespace:
        cluster.kubectl("-n", namespace, "apply", "-f", "-", stdin=pod("web", serve, readinessProbe=probe))
        cluster.kubectl("-n", namespace, "apply", "-f", "-", stdin=json.dumps(service))
        cluster.kubectl("-n", namespace, "wait", "--for=condition=Ready", "pod/web", "--timeout=60s")
        yield namespace


@pytest.mark.needs_cluster("pods")
def test_a_restricted_pod_runs_and_its_log_can_be_read(cluster: Cluster, web: str) -> None:
    assert cluster.kubectl("-n", web, "logs", "web") == "serving\n"


@pytest.mark.needs_cluster("services")
def test_this_machine_reaches_a_service_by_its_address(cluster: Cluster, web: str) -> None:
    address = cluster.kubectl("-n", web, "get", "service", "web", "--output=jsonpath={.spec.clusterIP}")
    with urllib.request.urlopen(f"http://{address}/index.html", timeout=10) as response:
        assert response.read() == b"web\n"


@pytest.mark.needs_cluster("pods")
def test_a_pod_resolves_a_service_by_its_name(cluster: Cluster, web: str) -> None:
    said = cluster.kubectl("-n", web, "exec", "web", "--", "nslookup", f"web.{web}.svc.cluster.local")
    address = cluster.kubectl("-n", web, "get", "service", "web", "--output=jsonpath={.spec.clusterIP}")
    assert f"Address: {address}" in said


@pytest.mark.needs_cluster("pods", "image_loading")
def test_a_pod_reads_an_image_as_a_volume(cluster: Cluster, namespace: str) -> None:
    volumes = [{"name": "files", "image": {"reference": BUSYBOX_IMAGE, "pullPolicy": "Never"}}]
    mounts = [{"name": "files", "mountPath": "/files"}]
    manifest = pod("reader", "ls /files/bin", volumes=volumes, volumeMounts=mounts, restartPolicy="Never")
    cluster.kubectl("-n", namespace, "apply", "-f", "-", stdin=manifest)
    cluster.kubectl("-n", namespace, "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/reader", "--timeout=60s")
    assert "busybox" in cluster.kubectl("-n", namespace, "logs", "reader").split()


@pytest.mark.needs_cluster("pods")
def test_a_crashed_container_is_restarted_in_place(cluster: Cluster, namespace: str) -> None:
    cluster.kubectl("-n", namespace, "apply", "-f", "-", stdin=pod("crasher", "exit 3"))
    restarted = "--for=jsonpath={.status.containerStatuses[0].restartCount}=1"
    cluster.kubectl("-n", namespace, "wait", restarted, "pod/crasher", "--timeout=60s")


@pytest.mark.needs_cluster("faults")
def test_the_api_server_can_be_hung_and_go_on(cluster: Cluster) -> None:
    assert isinstance(cluster, embedded.EmbeddedCluster)
    api_server = cluster.run.daemons["kube-apiserver"]
    api_server.signal(signal.SIGSTOP)
    try:
        with pytest.raises(CommandFailed, match="took longer than 2 s"):
            cluster.kubectl("get", "--raw", "/readyz", timeout_s=2)
    finally:
        api_server.signal(signal.SIGCONT)
    assert cluster.kubectl("get", "--raw", "/readyz") == "ok"


@pytest.mark.needs_cluster("faults")
@pytest.mark.parametrize("hung", [False, True], ids=["awake", "hung"])
def test_the_api_server_can_be_killed_and_comes_back(cluster: Cluster, hung: bool) -> None:
    assert isinstance(cluster, embedded.EmbeddedCluster)
    api_server = cluster.run.daemons["kube-apiserver"]
    before = api_server.pid
    if hung:
        api_server.signal(signal.SIGSTOP)
    api_server.kill()
    assert not cluster.answers("/readyz")
    api_server.start()
    api_server.wait_until(lambda: cluster.answers("/readyz"), timeout_s=30)
    assert api_server.pid not in {0, before}


def test_a_cluster_that_ends_leaves_this_machine_as_it_was(progress: Progress) -> None:
    before = traces()
    require_node()
    made = embedded.start(progress)
    record = made.run.record
    made.kubectl("apply", "-f", "-", stdin=pod("web", "exec httpd -f -p 8080"))
    made.kubectl("wait", "--for=condition=Ready", "pod/web", "--timeout=60s")
    # What must go has to be there first, or this test could not fail.
    assert remains(record) == ["processes", "cgroups", "link", "folder", "record"]
    made.end()
    assert remains(record) == []
    assert traces() == before


def test_a_cluster_that_fails_to_start_leaves_nothing(
    progress: Progress, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    require_node()
    before, known = traces(), own_runs()
    broken = tmp_path / "kubelet"
    broken.write_text("#!/bin/sh\necho no such luck >&2; exit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    with pytest.raises(StartFailed, match="no such luck"):
        embedded.start(progress)
    assert own_runs() == known
    assert traces() == before


def test_a_killed_test_run_is_cleaned_up_by_the_next() -> None:
    require_node()
    before = traces()
    script = "from cluster import embedded; print(embedded.start(print).run.id, flush=True); input()"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    runner = subprocess.Popen(
        (sys.executable, "-c", script), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    with runner:
        assert runner.stdout is not None
        lines = iter(runner.stdout.readline, "")
        id_ = next(line for line in lines if len(line) == 7).strip()
        record = next(record for record in records() if record.id == id_)
        assert not record.orphaned
        runner.kill()
    assert processes_of(Path(record.folder))
    embedded.end_orphans(lambda _: None)
    assert remains(record) == []
    assert traces() == before
