"""The control plane with simulated nodes: a real API, a real scheduler, and pods that cost nothing."""

import json

import pytest

from cluster.cluster import CommandFailed
from cluster.embedded import EmbeddedCluster

pytestmark = pytest.mark.e2e

NUM_PODS = 60
DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "many"},
    "spec": {
        "replicas": NUM_PODS,
        "selector": {"matchLabels": {"app": "many"}},
        "template": {
            "metadata": {"labels": {"app": "many"}},
            "spec": {"containers": [{"name": "main", "image": "capstan.dev/none:1"}]},
        },
    },
}


def test_pods_become_ready_and_go_although_nothing_runs(control_plane: EmbeddedCluster) -> None:
    with control_plane.namespace() as namespace:
        control_plane.kubectl("-n", namespace, "apply", "-f", "-", stdin=json.dumps(DEPLOYMENT))
        control_plane.kubectl("-n", namespace, "rollout", "status", "deployment/many", "--timeout=60s")
        pods = json.loads(control_plane.kubectl("-n", namespace, "get", "pods", "--output=json"))["items"]
        assert len({pod["status"]["podIP"] for pod in pods}) == NUM_PODS
        control_plane.kubectl("-n", namespace, "scale", "deployment/many", "--replicas=0")
        control_plane.kubectl("-n", namespace, "wait", "--for=delete", "pod", "--selector=app=many", "--timeout=60s")


def test_the_api_server_comes_back_with_what_it_knew_after_being_killed(control_plane: EmbeddedCluster) -> None:
    with control_plane.namespace() as namespace:
        api_server = control_plane.run.daemons["kube-apiserver"]
        api_server.kill()
        with pytest.raises(CommandFailed):
            control_plane.kubectl("get", "namespace", namespace, timeout_s=10)
        api_server.start()
        api_server.wait_until(lambda: control_plane.answers("/readyz"), timeout_s=60)
        assert namespace in control_plane.kubectl("get", "namespace", namespace)
