"""The embedded provider: a Kubernetes of our own on this machine, with a real node or with simulated ones.

`start` either returns a cluster that works or leaves nothing behind. What each part needs is in its own module; here
is only their order, chosen so that what takes long (the API server, the first containers) starts first.
"""

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cluster import clients, network, simulated
from cluster.cluster import Capability, Cluster
from cluster.controlplane import ControlPlane, Endpoints, free_ports
from cluster.gobuild import Progress, build
from cluster.node import NODE_NAME, READY_WITHIN_S, Node
from cluster.run import Run, StartFailed, records

CONTROL_PLANE_PROJECTS = ("etcd", "kubernetes")
NODE_PROJECTS = (*CONTROL_PLANE_PROJECTS, "containerd", "coredns")
SIMULATED_PROJECTS = (*CONTROL_PLANE_PROJECTS, "kwok")
WITH_NODE = frozenset({Capability.PODS, Capability.SERVICES, Capability.IMAGE_LOADING, Capability.FAULTS})
WITH_SIMULATED_NODES = frozenset({Capability.SIMULATED_NODES, Capability.FAULTS})
NUM_SIMULATED_NODES = 10


@dataclass(frozen=True)
class EmbeddedCluster(Cluster):
    """`run.daemons` are its processes by name, for tests that break them; `host_ip` is this machine as pods see it."""

    is_temporary: ClassVar[bool] = True

    run: Run
    node: Node | None = None
    host_ip: str = "127.0.0.1"

    def load_image(self, archive: Path) -> None:
        if self.node is None:
            super().load_image(archive)
        else:
            self.node.import_images(archive)

    def share_blob(self, blob: Path, digest: str) -> bool:
        return self.node is not None and self.node.share_blob(blob, digest)

    def end(self) -> None:
        self.run.end()


def start(progress: Progress, *, owned: bool = True, simulate: bool = False) -> EmbeddedCluster:
    """A cluster with one Ready node, or with `simulate` one with simulated nodes, which needs no root.

    `owned`: it belongs to this process, and `clean` removes it should this process die without ending it.
    """
    programs = build(SIMULATED_PROJECTS if simulate else NODE_PROJECTS, progress) | _assets()
    found = clients.find(progress)
    end_orphans(progress)
    started_s = time.monotonic()
    run = Run.create("simulated" if simulate else "embedded", owned)
    try:
        cluster = _simulated(run, programs, found) if simulate else _with_node(run, programs, found)
    except BaseException:
        run.end()
        raise
    progress(f"{run.record.kind} cluster {run.id} is ready after {time.monotonic() - started_s:.1f} s")
    return cluster


def end_orphans(progress: Progress) -> None:
    """End the clusters of test runs that died before they could."""
    for record in records():
        if record.orphaned:
            Run(record).end()
            progress(f"ended {record.kind} cluster {record.id}, left by a test run that died")


def _assets() -> dict[str, Path]:
    """Programs that $KUBEBUILDER_ASSETS, the variable of Kubernetes' own envtest, offers in place of built ones."""
    folder = os.environ.get("KUBEBUILDER_ASSETS")
    if folder and not Path(folder).is_dir():
        raise StartFailed(f"KUBEBUILDER_ASSETS names {folder}, which is no folder")
    return {path.name: path for path in Path(folder).iterdir()} if folder else {}


def _with_node(run: Run, programs: dict[str, Path], found: clients.Clients) -> EmbeddedCluster:
    run.isolate()
    addresses = network.connect(run)
    endpoints = Endpoints(
        address=addresses.node_ip,
        # Nobody else is in this network namespace, so every port is free.
        api_port=6443,
        etcd_port=2379,
        etcd_peer_port=2380,
        controller_manager_port=10257,
        scheduler_port=10259,
        pods=addresses.pods,
        services=addresses.services,
        kubernetes_service_ip=addresses.kubernetes_service_ip,
    )
    control_plane = ControlPlane(run, programs, endpoints)
    node = Node(run, programs, control_plane, addresses)
    busybox = shutil.which("busybox")
    assert busybox is not None, "preflight saw busybox"
    node.prepare(Path(busybox))
    control_plane.start()
    node.start()
    cluster = EmbeddedCluster(
        "embedded", control_plane.admin_kubeconfig, WITH_NODE, found, run, node, addresses.host_ip
    )
    run.daemons["kubelet"].wait_until(lambda: _is_ready(cluster), READY_WITHIN_S)
    return cluster


def _simulated(run: Run, programs: dict[str, Path], found: clients.Clients) -> EmbeddedCluster:
    api, etcd, etcd_peer, controller_manager, scheduler, kwok = free_ports(6)
    endpoints = Endpoints(
        address="127.0.0.1",
        api_port=api,
        etcd_port=etcd,
        etcd_peer_port=etcd_peer,
        controller_manager_port=controller_manager,
        scheduler_port=scheduler,
        # What is sent to a simulated pod reaches nobody: these addresses are this machine's own.
        pods="127.64.0.0/16",
        services="10.96.0.0/16",
        kubernetes_service_ip="10.96.0.1",
    )
    control_plane = ControlPlane(run, programs, endpoints)
    control_plane.start()
    simulated.start(run, programs, control_plane, kwok)
    cluster = EmbeddedCluster("simulated", control_plane.admin_kubeconfig, WITH_SIMULATED_NODES, found, run)
    simulated.add_nodes(found.kubectl, cluster.kubeconfig, NUM_SIMULATED_NODES)
    cluster.kubectl("wait", "--for=condition=Ready", "node", "--all", "--timeout=60s")
    return cluster


def _is_ready(cluster: Cluster) -> bool:
    nodes = json.loads(cluster.kubectl("get", "nodes", "--output=json"))["items"]
    conditions = {
        c["type"]: c["status"] for n in nodes if n["metadata"]["name"] == NODE_NAME for c in n["status"]["conditions"]
    }
    return conditions.get("Ready") == "True"
