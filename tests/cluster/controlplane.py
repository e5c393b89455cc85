"""Starts etcd, the API server, the controller manager and the scheduler, and tells when they work.

The same code serves a run in namespaces of its own, where it listens on the node's address so that pods reach it, and
one without root, where it listens on loopback. It knows no nodes.
"""

import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.pki import Authority
from cluster.run import Daemon, Run

READY_WITHIN_S = 60.0


@dataclass(frozen=True)
class Endpoints:
    """Where the control plane listens and which ranges it hands out."""

    address: str
    api_port: int
    etcd_port: int
    etcd_peer_port: int
    controller_manager_port: int
    scheduler_port: int
    pods: str
    services: str
    kubernetes_service_ip: str

    @property
    def server(self) -> str:
        return f"https://{self.address}:{self.api_port}"

    @property
    def etcd(self) -> str:
        return f"http://127.0.0.1:{self.etcd_port}"


def free_ports(count: int) -> list[int]:
    """Distinct TCP ports that nobody listened on at the time of asking."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


class ControlPlane:
    """The four processes of one run. Every client certificate that a component needs is issued here."""

    def __init__(self, run: Run, programs: Mapping[str, Path], endpoints: Endpoints) -> None:
        self.run = run
        self.endpoints = endpoints
        self._programs = programs
        self.authority = Authority(run.folder / "pki")
        self._admin = self.authority.issue("admin", "admin", "system:masters")
        self.admin_kubeconfig = self.authority.kubeconfig(self._admin, endpoints.server)
        run.record.kubeconfig = str(self.admin_kubeconfig)
        run.record.save()

    def kubeconfig(self, name: str, user: str, group: str = "") -> Path:
        """A client certificate for `user` in `group`, as a kubeconfig."""
        return self.authority.kubeconfig(self.authority.issue(name, user, group), self.endpoints.server)

    def start(self) -> None:
        """Start everything and return once a fresh namespace gets its ServiceAccount.

        The API server waits for etcd by itself. The other two give up where it has not yet made their roles.
        """
        self._start_etcd()
        api_server = self._start_api_server()
        api_server.wait_until(lambda: self._answers("/readyz"), READY_WITHIN_S)
        self._start_controller_manager()
        self._start_scheduler()
        # Only a working controller manager makes this one, and no pod is admitted without it.
        default_account = "/api/v1/namespaces/default/serviceaccounts/default"
        self.run.daemons["kube-controller-manager"].wait_until(lambda: self._answers(default_account), READY_WITHIN_S)

    def _start_etcd(self) -> None:
        ends = self.endpoints
        peer = f"http://127.0.0.1:{ends.etcd_peer_port}"
        self.run.start(
            "etcd",
            str(self._programs["etcd"]),
            f"--data-dir={self.run.folder / 'etcd'}",
            f"--listen-client-urls={ends.etcd}",
            f"--advertise-client-urls={ends.etcd}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--log-level=warn",
            "--unsafe-no-fsync",
        )

    def _start_api_server(self) -> Daemon:
        ends, authority = self.endpoints, self.authority
        names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
        serving = authority.issue(
            "apiserver",
            "kube-apiserver",
            hosts=[*names, "localhost", "127.0.0.1", ends.address, ends.kubernetes_service_ip],
        )
        to_kubelet = authority.issue("apiserver-kubelet", "apiserver-kubelet", "system:masters")
        front_proxy = authority.issue("front-proxy", "front-proxy-client")
        self._tokens = authority.signing_key("service-accounts")
        return self.run.start(
            "kube-apiserver",
            str(self._programs["kube-apiserver"]),
            f"--etcd-servers={ends.etcd}",
            f"--bind-address={ends.address}",
            f"--advertise-address={ends.address}",
            f"--secure-port={ends.api_port}",
            f"--tls-cert-file={serving.certificate}",
            f"--tls-private-key-file={serving.key}",
            f"--client-ca-file={authority.pair.certificate}",
            f"--kubelet-client-certificate={to_kubelet.certificate}",
            f"--kubelet-client-key={to_kubelet.key}",
            f"--kubelet-certificate-authority={authority.pair.certificate}",
            "--kubelet-preferred-address-types=InternalIP,Hostname",
            f"--requestheader-client-ca-file={authority.pair.certificate}",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={front_proxy.certificate}",
            f"--proxy-client-key-file={front_proxy.key}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self._tokens.certificate}",
            f"--service-account-signing-key-file={self._tokens.key}",
            f"--service-cluster-ip-range={ends.services}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            # The default/kubernetes Service cannot point at loopback, and nothing but a pod would use it.
            f"--endpoint-reconciler-type={'none' if ends.address == '127.0.0.1' else 'lease'}",
            "--v=1",
        )

    def _start_controller_manager(self) -> None:
        ca = self.authority.pair
        self.run.start(
            "kube-controller-manager",
            str(self._programs["kube-controller-manager"]),
            *self._client_flags("kube-controller-manager", self.endpoints.controller_manager_port),
            f"--service-account-private-key-file={self._tokens.key}",
            f"--root-ca-file={ca.certificate}",
            f"--cluster-signing-cert-file={ca.certificate}",
            f"--cluster-signing-key-file={ca.key}",
            "--use-service-account-credentials",
            "--allocate-node-cidrs",
            f"--cluster-cidr={self.endpoints.pods}",
            "--controllers=*",
        )

    def _start_scheduler(self) -> None:
        self.run.start(
            "kube-scheduler",
            str(self._programs["kube-scheduler"]),
            *self._client_flags("kube-scheduler", self.endpoints.scheduler_port),
        )

    def _client_flags(self, name: str, port: int) -> tuple[str, ...]:
        kubeconfig = self.kubeconfig(name, f"system:{name}")
        return (
            f"--kubeconfig={kubeconfig}",
            f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            "--leader-elect=false",
            # Their own request limits would be what a campaign of thousands of pods measures.
            "--kube-api-qps=1000",
            "--kube-api-burst=1000",
        )

    def _answers(self, path: str) -> bool:
        trust = ssl.create_default_context(cafile=self.authority.pair.certificate)
        trust.load_cert_chain(self._admin.certificate, self._admin.key)
        try:
            with urllib.request.urlopen(f"{self.endpoints.server}{path}", timeout=5, context=trust) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False
