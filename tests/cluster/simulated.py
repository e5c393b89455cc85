"""Nodes and pods that exist only in the API: kwok plays the kubelet, so that a thousand pods cost no process.

Pods on such a node become Ready at once and run nothing. It needs neither root nor namespaces.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from cluster.controlplane import ControlPlane
from cluster.run import Run, subprocess_or_fail

STAGES = Path(__file__).parent / "stages.yaml"
NODE_ANNOTATION = "kwok.x-k8s.io/node"


def start(run: Run, programs: Mapping[str, Path], control_plane: ControlPlane, port: int) -> None:
    """Start kwok, which manages the nodes that carry its annotation and leaves every other alone."""
    run.start(
        "kwok",
        str(programs["kwok"]),
        f"--kubeconfig={control_plane.kubeconfig('kwok', 'kwok', 'system:masters')}",
        f"--manage-nodes-with-annotation-selector={NODE_ANNOTATION}=fake",
        f"--server-address=127.0.0.1:{port}",
        f"--config={STAGES}",
        "--node-lease-duration-seconds=40",
        "--v=WARN",
    )


def add_nodes(kubectl: Path, kubeconfig: Path, count: int, pods_per_node: int = 2000) -> None:
    """Create `count` simulated nodes with more CPU and memory than any test asks for."""
    capacity = {"cpu": "1000", "memory": "4Ti", "pods": str(pods_per_node), "ephemeral-storage": "10Ti"}
    nodes = [
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": f"simulated-{number}",
                "annotations": {NODE_ANNOTATION: "fake"},
                "labels": {
                    "type": "kwok",
                    "kubernetes.io/os": "linux",
                    "kubernetes.io/hostname": f"simulated-{number}",
                },
            },
            "status": {"capacity": capacity, "allocatable": capacity},
        }
        for number in range(count)
    ]
    manifest = kubeconfig.parent / "simulated-nodes.json"
    manifest.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": nodes}))
    subprocess_or_fail((str(kubectl), f"--kubeconfig={kubeconfig}", "apply", "--server-side", f"--filename={manifest}"))
