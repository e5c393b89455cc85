"""Who may open a connection to whom: NetworkPolicies of engines and gateway. Pure.

Engines are reached by their own gateways and the operator only, and reach nothing, unless their model is fetched.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from capstan_api import names
from capstan_operator.world.kubernetes.identity import Component, Identity
from capstan_operator.world.kubernetes.installation import Installation

Peer = dict[str, Any]


def engine_policy(
    identity: Identity, installation: Installation, *, source_ports: Sequence[int], scraped: bool, pooled: bool
) -> dict[str, Any]:
    """`source_ports` lead out to where the model is fetched.

    `scraped` opens the API port, which also serves /metrics, to every Prometheus of the cluster, and `pooled` opens it
    to everybody: whose proxies and endpoint pickers serve an InferencePool cannot be known here.
    """
    ingress = [_from([_pods(identity, Component.GATEWAY)], names.PORT_ENGINE)]
    if pooled:
        ingress = [{"ports": [_port(names.PORT_ENGINE)]}]
    if installation.operator_namespace is not None:
        ingress.append(_from([_operator(installation)], names.PORT_ENGINE, names.PORT_ENGINE_ADMIN))
    if scraped:
        ingress.append(_from([_prometheus()], names.PORT_ENGINE))
    # Names have to be resolved before anything can be fetched.
    egress = (
        [{"ports": [_port(53, "UDP"), _port(53)]}, {"ports": [_port(p) for p in source_ports]}] if source_ports else []
    )
    return _policy(identity, identity.engine, Component.ENGINE, ingress, egress)


def gateway_policy(identity: Identity, installation: Installation) -> dict[str, Any]:
    ingress: list[dict[str, Any]] = [{"ports": [_port(names.PORT_GATEWAY)]}]
    if installation.operator_namespace is not None:
        ingress.append(_from([_operator(installation)], names.PORT_GATEWAY_ADMIN))
    egress = [{"to": [_pods(identity, Component.ENGINE)], "ports": [_port(names.PORT_ENGINE)]}]
    return _policy(identity, identity.gateway, Component.GATEWAY, ingress, egress)


def _policy(
    identity: Identity, name: str, component: Component, ingress: list[dict[str, Any]], egress: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": identity.metadata(name, component),
        "spec": {
            "podSelector": {"matchLabels": identity.match(component)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress,
            "egress": egress,
        },
    }


def _from(peers: Iterable[Peer], *ports: int) -> dict[str, Any]:
    return {"from": list(peers), "ports": [_port(port) for port in ports]}


def _port(number: int, protocol: str = "TCP") -> dict[str, Any]:
    return {"port": number, "protocol": protocol}


def _pods(identity: Identity, component: Component) -> Peer:
    return {"podSelector": {"matchLabels": identity.match(component)}}


def _operator(installation: Installation) -> Peer:
    return {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": installation.operator_namespace}},
        "podSelector": {"matchLabels": dict(installation.operator_labels)},
    }


def _prometheus() -> Peer:
    return {
        "namespaceSelector": {},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}},
    }
