"""The addresses of a run's cluster, and the link by which the host reaches its pods and services.

Every run takes a numbered slot of private addresses that no route of the host touches. The host gets one veth and two
routes; packet-filter rules are made inside the run's network namespace only. Pods reach the host at `host_ip`; they
reach nothing beyond it, for the host does not forward.
"""

import ipaddress
import json
from dataclasses import dataclass

from cluster.gobuild import cache_folder, exclusive
from cluster.run import Run, StartFailed, link_name, subprocess_or_fail

NUM_SLOTS = 64
BRIDGE = "cni0"


@dataclass(frozen=True)
class Addresses:
    """All addresses of one slot: 10.(64+slot).0.0/16 in four parts."""

    slot: int

    @property
    def _prefix(self) -> str:
        return f"10.{64 + self.slot}"

    @property
    def everything(self) -> ipaddress.IPv4Network:
        return ipaddress.IPv4Network(f"{self._prefix}.0.0/16")

    @property
    def pods(self) -> str:
        return f"{self._prefix}.0.0/24"

    @property
    def node_ip(self) -> str:
        """The bridge's own address, hence the pods' gateway, the API server and the name server."""
        return f"{self._prefix}.0.1"

    @property
    def services(self) -> str:
        return f"{self._prefix}.128.0/20"

    @property
    def kubernetes_service_ip(self) -> str:
        return f"{self._prefix}.128.1"

    @property
    def host_ip(self) -> str:
        return f"{self._prefix}.64.1"

    @property
    def gateway_ip(self) -> str:
        """The namespace's end of the link."""
        return f"{self._prefix}.64.2"


def connect(run: Run) -> Addresses:
    """Lay the link and the bridge, and return the addresses taken."""
    inside_link = "uplink"
    with exclusive(cache_folder() / "clusters" / "network.lock"):
        addresses = _free_slot()
        link = link_name(run.record)
        _ip("link", "add", link, "type", "veth", "peer", "name", inside_link, "netns", str(run.init_pid))
        _ip("address", "add", f"{addresses.host_ip}/30", "dev", link)
        _ip("link", "set", link, "up")
        run.inside("ip", "link", "set", "lo", "up")
        run.inside("ip", "address", "add", f"{addresses.gateway_ip}/30", "dev", inside_link)
        run.inside("ip", "link", "set", inside_link, "up")
        for network in (addresses.pods, addresses.services):
            _ip("route", "add", network, "via", addresses.gateway_ip)
    run.inside("ip", "route", "add", "default", "via", addresses.host_ip)
    run.inside("ip", "link", "add", BRIDGE, "type", "bridge")
    run.inside("ip", "address", "add", f"{addresses.node_ip}/24", "dev", BRIDGE)
    run.inside("ip", "link", "set", BRIDGE, "up")
    # One writes the namespace's own values: /proc/sys/net belongs to the network namespace of the writer.
    run.inside("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
    run.inside("sh", "-c", "f=/proc/sys/net/bridge/bridge-nf-call-iptables; test ! -e $f || echo 1 > $f")
    return addresses


def _free_slot() -> Addresses:
    routes = json.loads(subprocess_or_fail(("ip", "-json", "route", "show")))
    taken = [ipaddress.IPv4Network(route["dst"]) for route in routes if route["dst"] != "default"]
    for slot in range(NUM_SLOTS):
        addresses = Addresses(slot)
        if not any(addresses.everything.overlaps(network) for network in taken):
            return addresses
    raise StartFailed("every slot of 10.64.0.0/10 overlaps a route of this machine (`ip route`): run `clean` first")


def _ip(*arguments: str) -> None:
    subprocess_or_fail(("ip", *arguments))
