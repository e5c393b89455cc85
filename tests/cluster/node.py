"""Starts containerd, the kubelet, kube-proxy and CoreDNS: one real node that runs real containers.

Every file is in the run's folder and every cgroup under the run's own. The settings that look odd are needed by a
machine where root is not almighty (no CAP_SYS_RESOURCE, cgroup v1, no loadable modules) and are harmless elsewhere.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import yaml

from cluster.archives import PAUSE_IMAGE, write_busybox_images
from cluster.controlplane import ControlPlane
from cluster.network import BRIDGE, Addresses
from cluster.run import Daemon, Run, StartFailed

NODE_NAME = "node1"
CLUSTER_DOMAIN = "cluster.local"
CNI_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"), Path("/usr/libexec/cni"))
READY_WITHIN_S = 60.0
_SHARE_ATTEMPTS = 5
# Each would probe the machine for a file system or a device that the node does not use.
SNAPSHOTTERS_OFF = ("blockfile", "btrfs", "devmapper", "erofs", "native", "zfs")


def cni_folder() -> Path | None:
    """Where the distribution keeps the CNI plugins."""
    return next((folder for folder in CNI_FOLDERS if (folder / "bridge").exists()), None)


class Node:
    """The node of one run."""

    def __init__(
        self, run: Run, programs: Mapping[str, Path], control_plane: ControlPlane, addresses: Addresses
    ) -> None:
        self._run = run
        self._programs = programs
        self._control_plane = control_plane
        self._addresses = addresses
        self._socket = run.folder / "containerd.sock"

    def prepare(self, busybox: Path) -> None:
        """Start containerd, which needs no API server, and give it the image that every pod begins with."""
        containerd = self._start_containerd()
        containerd.wait_until(lambda: self._ctr("version").returncode == 0, READY_WITHIN_S)
        images = self._run.folder / "busybox.tar"
        write_busybox_images(busybox, images)
        self.import_images(images)

    def start(self) -> None:
        """Start what registers the node; returns before it is Ready."""
        self._start_kubelet()
        self._start_kube_proxy()
        self._start_coredns()

    def import_images(self, archive: Path) -> None:
        """Make every image of a docker or OCI archive known to the node, under the names that it carries."""
        done = self._ctr("images", "import", "--no-unpack=false", str(archive))
        if done.returncode != 0:
            raise StartFailed(f"{archive} could not be imported: {done.stderr}")

    def share_blob(self, blob: Path, digest: str) -> bool:
        """Link a blob into containerd's store and make it known there; False on another file system.

        containerd takes a blob that it finds under the expected digest as ingested and reads none of it.
        """
        store = self._run.folder / "containerd" / "io.containerd.content.v1.content" / "blobs" / "sha256"
        store.mkdir(parents=True, exist_ok=True)
        # containerd may collect what nothing holds yet as garbage between two of these commands: then all over again.
        for _ in range(_SHARE_ATTEMPTS):
            try:
                os.link(blob, store / digest.removeprefix("sha256:"))
            except FileExistsError:
                pass
            except OSError:
                return False
            expected = (f"--expected-digest={digest}", f"--expected-size={blob.stat().st_size}")
            with blob.open("rb") as content:
                done = self._ctr("content", "ingest", *expected, digest, stdin=content)
            if done.returncode == 0 or "already exists" in done.stderr:
                done = self._ctr("content", "label", digest, "containerd.io/gc.root=shared")
            if done.returncode == 0:
                return True
        raise StartFailed(f"{blob} could not be shared with containerd: {done.stderr}")

    def _ctr(self, *arguments: str, stdin: IO[bytes] | None = None) -> "subprocess.CompletedProcess[str]":
        # It must see the mounts that containerd sees, so it runs where containerd runs.
        where = ("nsenter", "--target", str(self._run.init_pid), "--mount", "--net")
        command = (*where, str(self._programs["ctr"]), f"--address={self._socket}", "--namespace=k8s.io", *arguments)
        return subprocess.run(command, stdin=stdin, capture_output=True, text=True, check=False)

    def _start_containerd(self) -> Daemon:
        folder, runc, plugins = self._run.folder, shutil.which("runc"), cni_folder()
        assert runc is not None, "preflight saw runc"
        self._write_json("cni/10-bridge.conflist", self._cni())
        cri = "io.containerd.cri.v1"
        config = {
            "version": 3,
            "root": str(folder / "containerd"),
            "state": str(folder / "containerd-state"),
            "grpc": {"address": str(self._socket)},
            "disabled_plugins": [
                "io.containerd.internal.v1.opt",
                "io.containerd.nri.v1.nri",
                *(f"io.containerd.snapshotter.v1.{name}" for name in SNAPSHOTTERS_OFF),
            ],
            "plugins": {
                f"{cri}.images": {"snapshotter": "overlayfs", "pinned_images": {"sandbox": PAUSE_IMAGE}},
                f"{cri}.runtime": {
                    "disable_apparmor": True,
                    # Lowering a score below one's own needs CAP_SYS_RESOURCE.
                    "restrict_oom_score_adj": True,
                    "netns_mounts_under_state_dir": True,
                    "cni": {"bin_dirs": [str(plugins)], "conf_dir": str(folder / "cni")},
                    "containerd": {
                        "default_runtime_name": "runc",
                        "runtimes": {
                            "runc": {
                                "runtime_type": "io.containerd.runc.v2",
                                "options": {"BinaryName": runc, "SystemdCgroup": False},
                            }
                        },
                    },
                },
            },
        }
        path = folder / "containerd.toml"
        path.write_text(_toml(config))
        # containerd looks for its shim on its own PATH.
        shim_path = f"PATH={self._programs['containerd'].parent}:{os.environ['PATH']}"
        return self._run.start("containerd", "env", shim_path, str(self._programs["containerd"]), f"--config={path}")

    def _cni(self) -> dict[str, object]:
        """One bridge whose address is the node's, so that a pod's gateway is the node."""
        bridge = {
            "type": "bridge",
            "bridge": BRIDGE,
            "isGateway": True,
            "hairpinMode": True,
            "ipMasq": True,
            "ipam": {
                "type": "host-local",
                "dataDir": str(self._run.folder / "ipam"),
                "ranges": [[{"subnet": self._addresses.pods, "gateway": self._addresses.node_ip}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }
        loopback_and_ports = {"type": "portmap", "capabilities": {"portMappings": True}}
        return {"cniVersion": "0.4.0", "name": "bridge", "plugins": [bridge, loopback_and_ports]}

    def _start_kubelet(self) -> None:
        folder, authority = self._run.folder, self._control_plane.authority
        ip = self._addresses.node_ip
        serving = authority.issue("kubelet", f"system:node:{NODE_NAME}", "system:nodes", [ip, "127.0.0.1", NODE_NAME])
        resolver = folder / "resolv.conf"
        resolver.write_text("")
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": ip,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(authority.pair.certificate)},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(serving.certificate),
            "tlsPrivateKeyFile": str(serving.key),
            "containerRuntimeEndpoint": f"unix://{self._socket}",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self._run.cgroup}",
            "failCgroupV1": False,
            "failSwapOn": False,
            "oomScoreAdj": 0,
            "maxOpenFiles": 20000,
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "serializeImagePulls": False,
            "syncFrequency": "10s",
            "fileCheckFrequency": "2s",
            "nodeStatusUpdateFrequency": "4s",
            "maxPods": 60,
            "clusterDomain": CLUSTER_DOMAIN,
            "clusterDNS": [ip],
            "resolvConf": str(resolver),
            "podLogsDir": str(folder / "pod-logs"),
            # The first wait after a crash; the default of 10 s would be most of a test.
            "crashLoopBackOff": {"maxContainerRestartPeriod": "10s"},
            "featureGates": {"KubeletCrashLoopBackOffMax": True},
        }
        self._run.start(
            "kubelet",
            str(self._programs["kubelet"]),
            f"--config={self._write_yaml('kubelet.yaml', config)}",
            f"--kubeconfig={authority.kubeconfig(serving, self._control_plane.endpoints.server)}",
            f"--root-dir={folder / 'kubelet'}",
            f"--cert-dir={folder / 'pki'}",
            f"--hostname-override={NODE_NAME}",
            f"--node-ip={ip}",
        )

    def _start_kube_proxy(self) -> None:
        # Its conntrack settings are the whole machine's and not ours to write: zero leaves them alone.
        untouched = ("max-per-core=0", "min=0", "tcp-timeout-established=0s", "tcp-timeout-close-wait=0s")
        self._run.start(
            "kube-proxy",
            str(self._programs["kube-proxy"]),
            f"--kubeconfig={self._control_plane.kubeconfig('kube-proxy', 'system:kube-proxy')}",
            f"--hostname-override={NODE_NAME}",
            f"--cluster-cidr={self._addresses.pods}",
            "--proxy-mode=iptables",
            *(f"--conntrack-{setting}" for setting in untouched),
            "--metrics-bind-address=127.0.0.1:10249",
            "--healthz-bind-address=127.0.0.1:10256",
        )

    def _start_coredns(self) -> None:
        """A name server beside the pods, not among them: it needs no image and is there before the first of them."""
        kubeconfig = self._control_plane.kubeconfig("coredns", "coredns", "system:masters")
        corefile = self._run.folder / "Corefile"
        corefile.write_text(
            f"{CLUSTER_DOMAIN}:53 in-addr.arpa:53 {{\n"
            f"    bind {self._addresses.node_ip}\n"
            f"    kubernetes {CLUSTER_DOMAIN} in-addr.arpa {{\n"
            f"        kubeconfig {kubeconfig} test\n"
            "        pods insecure\n"
            "        ttl 2\n"
            "    }\n"
            "    errors\n"
            "}\n"
        )
        self._run.start("coredns", str(self._programs["coredns"]), f"-conf={corefile}")

    def _write_json(self, name: str, content: object) -> Path:
        path = self._run.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1))
        return path

    def _write_yaml(self, name: str, content: object) -> Path:
        path = self._run.folder / name
        path.write_text(yaml.safe_dump(content))
        return path


def _toml(config: Mapping[str, object]) -> str:
    """Nested mappings of strings, numbers, booleans and lists as TOML: JSON's notation is TOML's for all but tables."""

    def inline(value: object) -> str:
        if isinstance(value, Mapping):
            return "{" + ", ".join(f"{json.dumps(key)} = {inline(item)}" for key, item in value.items()) + "}"
        return json.dumps(value)

    return "".join(f"{key} = {inline(value)}\n" for key, value in config.items())
