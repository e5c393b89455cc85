"""The gateway's Deployment and ConfigMap, and the Services in front of gateway and engines. Pure.

The gateway's arguments are in no template: it takes a new configuration while it serves, so that only another image,
size or time to drain replaces its pods, one at a time.
"""

from typing import Any, Final

from capstan_api import names
from capstan_api.engine_args import GatewayArgs
from capstan_api.v1alpha1 import InferenceDeployment
from capstan_operator.world.kubernetes.container import (
    GRACE_BEYOND_DRAIN_S,
    container,
    mounts,
    ports,
    probe,
    spread,
    volumes,
)
from capstan_operator.world.kubernetes.hardening import pod_hardening
from capstan_operator.world.kubernetes.identity import ANNOTATION_OWNER, Component, Identity
from capstan_operator.world.kubernetes.installation import Installation
from capstan_operator.world.kubernetes.quantities import cpu, memory

GATEWAY: Final = "gateway"
GATEWAY_JSON: Final = "gateway.json"
PORT_SERVICE: Final = 80
# Until every node has taken a leaving gateway out of the Service, and its successor is ready: a Service without a ready
# pod goes on sending requests to the leaving one.
_LEAVING_S: Final = 10


def placed(args: GatewayArgs) -> GatewayArgs:
    """The arguments with what only a world knows."""
    return args.model_copy(
        update={
            "host": "0.0.0.0",  # noqa: S104 - a pod has one address of its own, guarded by NetworkPolicy
            "port": names.PORT_GATEWAY,
            "admin_port": names.PORT_GATEWAY_ADMIN,
            "cpus": (),
        }
    )


def config(identity: Identity, args: GatewayArgs) -> dict[str, Any]:
    """What a gateway starts with; one that runs is told on its admin port."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": identity.metadata(identity.gateway, Component.GATEWAY),
        "data": {GATEWAY_JSON: placed(args).model_dump_json(indent=2)},
    }


def deployment(resource: InferenceDeployment, identity: Identity, installation: Installation) -> dict[str, Any]:
    """The gateways."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": identity.metadata(identity.gateway, Component.GATEWAY),
        "spec": {
            "replicas": resource.spec.routing.gateway_replicas,
            "selector": {"matchLabels": identity.match(Component.GATEWAY)},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "revisionHistoryLimit": 2,
            "template": {
                "metadata": {
                    "labels": identity.labels(Component.GATEWAY),
                    "annotations": {ANNOTATION_OWNER: identity.uid},
                },
                "spec": {
                    **pod_hardening(installation, identity.engine),
                    "terminationGracePeriodSeconds": (
                        resource.spec.disruption.drain_timeout_seconds + GRACE_BEYOND_DRAIN_S + _LEAVING_S
                    ),
                    "topologySpreadConstraints": [spread(identity, Component.GATEWAY)],
                    "volumes": volumes(identity.gateway, "64Mi"),
                    "containers": [_container(identity, installation)],
                },
            },
        },
    }


def _container(identity: Identity, installation: Installation) -> dict[str, Any]:
    amount = memory(installation.gateway_memory_mebibytes)
    image, module = installation.operator_image, "capstan_gateway"
    bare = container(GATEWAY, identity, installation, image=image, module=module, config=GATEWAY_JSON)
    return {
        **bare,
        "args": [*bare["args"], f"--max-body-mebibytes={installation.gateway_memory_mebibytes // 4}"],
        "ports": ports(names.PORT_GATEWAY, names.PORT_GATEWAY_ADMIN),
        # No limit on processors: a gateway that is throttled adds its wait to every token.
        "resources": {
            "requests": {"cpu": cpu(installation.gateway_cpu_millicores), "memory": amount},
            "limits": {"memory": amount},
        },
        # Ready without replicas too: holding requests until there are some is what it is for.
        "readinessProbe": probe("/readyz", period_s=1, failures=2),
        "livenessProbe": probe("/livez", period_s=10, failures=3),
        "lifecycle": {"preStop": {"sleep": {"seconds": _LEAVING_S}}},
        "volumeMounts": mounts(),
    }


def service(identity: Identity) -> dict[str, Any]:
    """The address that clients know."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": identity.metadata(identity.name, Component.GATEWAY),
        "spec": {
            "type": "ClusterIP",
            "selector": identity.match(Component.GATEWAY),
            "ports": [{"name": "http", "port": PORT_SERVICE, "targetPort": "http", "protocol": "TCP"}],
        },
    }


def engines_service(identity: Identity) -> dict[str, Any]:
    """The engines by name, for people and monitoring; requests reach them through the gateway only."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": identity.metadata(identity.engines, Component.ENGINE),
        "spec": {
            "clusterIP": "None",
            "selector": identity.match(Component.ENGINE),
            "ports": [{"name": "http", "port": names.PORT_ENGINE, "targetPort": "http", "protocol": "TCP"}],
        },
    }


def service_account(identity: Identity) -> dict[str, Any]:
    """An identity that may do nothing."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": identity.metadata(identity.engine, Component.ENGINE),
        "automountServiceAccountToken": False,
    }
