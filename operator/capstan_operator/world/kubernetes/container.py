"""What the containers of engine, fetcher and gateway have in common, and their pods. Pure.

Ports, probes and mounts go by the same names in all of them, so that probes and Services need not know what they reach.
"""

from collections.abc import Mapping
from typing import Any, Final

from capstan_api import names
from capstan_operator.world.kubernetes.hardening import container_hardening
from capstan_operator.world.kubernetes.identity import Component, Identity
from capstan_operator.world.kubernetes.installation import Installation

CONFIG: Final = "/etc/capstan"
"""Where the ConfigMap is mounted."""
SCRATCH: Final = "/tmp"  # noqa: S108 - an emptyDir of the pod's own
# Beyond the drain itself: to close connections, to end the core, to write the last line.
GRACE_BEYOND_DRAIN_S: Final = 10


def container(
    name: str, identity: Identity, installation: Installation, *, image: str, module: str, config: str
) -> dict[str, Any]:
    """A container that runs `module` with the file `config` of its ConfigMap, and nothing else yet."""
    return {
        "name": name,
        "image": image,
        "args": [module, "--config", f"{CONFIG}/{config}"],
        **container_hardening(installation),
        "env": [
            {
                "name": names.ENV_ADMIN_TOKEN,
                "valueFrom": {"secretKeyRef": {"name": identity.admin_secret, "key": "token"}},
            }
        ],
    }


def ports(http: int, admin: int) -> list[dict[str, Any]]:
    return [port("http", http), port("admin", admin)]


def port(name: str, number: int) -> dict[str, Any]:
    return {"name": name, "containerPort": number, "protocol": "TCP"}


def mounts(*more: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Of the configuration, of what may be written, and `more`."""
    return [
        {"name": "config", "mountPath": CONFIG, "readOnly": True},
        {"name": "scratch", "mountPath": SCRATCH},
        *more,
    ]


def volumes(config: str, scratch: str, *more: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Behind those mounts: the ConfigMap `config`, a directory of the size `scratch`, and `more`."""
    return [
        {"name": "config", "configMap": {"name": config}},
        {"name": "scratch", "emptyDir": {"sizeLimit": scratch}},
        *more,
    ]


def probe(path: str, *, period_s: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": "http"},
        "periodSeconds": period_s,
        "timeoutSeconds": 5 if period_s >= 5 else period_s,
        "failureThreshold": failures,
    }


def spread(identity: Identity, component: Component) -> dict[str, Any]:
    """Pods on different nodes where that is possible, and together where it is not."""
    return {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": identity.match(component)},
    }
