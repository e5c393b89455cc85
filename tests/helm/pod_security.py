"""The Pod Security Standard "restricted", and what Capstan asks beyond it, as a list of violations.

Source: the Kubernetes documentation, "Pod Security Standards", level restricted (which contains baseline).
"""

from collections.abc import Iterator
from typing import Any

# Volume types that "restricted" permits.
_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def violations(pod: dict[str, Any]) -> list[str]:
    """What a pod's spec does that it must not; empty when it is as restricted as it can be."""
    return [*_of_pod(pod), *(fault for container in _containers(pod) for fault in _of_container(pod, container))]


def _containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"], *pod.get("ephemeralContainers", [])]


def _of_pod(pod: dict[str, Any]) -> Iterator[str]:
    for key in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
        if pod.get(key):
            yield f"{key} is true"
    for volume in pod.get("volumes", []):
        if not set(volume) - {"name"} <= _VOLUMES:
            yield f"volume {volume['name']} is of a type that is not permitted"
        if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
            yield f"volume {volume['name']} has no sizeLimit"
    if pod.get("enableServiceLinks", True):
        yield "service variables are injected"


def _of_container(pod: dict[str, Any], container: dict[str, Any]) -> Iterator[str]:
    name, own, shared = container["name"], container.get("securityContext", {}), pod.get("securityContext", {})
    both = {**shared, **own}
    if own.get("privileged"):
        yield f"{name} is privileged"
    if own.get("allowPrivilegeEscalation", True):
        yield f"{name} may escalate its privileges"
    if both.get("runAsNonRoot") is not True or both.get("runAsUser", 1) == 0:
        yield f"{name} may run as root"
    if both.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield f"{name} has no seccomp profile"
    if "ALL" not in own.get("capabilities", {}).get("drop", []):
        yield f"{name} keeps capabilities"
    if set(own.get("capabilities", {}).get("add", [])) - {"NET_BIND_SERVICE"}:
        yield f"{name} adds capabilities"
    if own.get("readOnlyRootFilesystem") is not True:
        yield f"{name} can write to its root file system"
    if not isinstance(both.get("runAsUser"), int):
        yield f"{name} names no numeric user, so the kubelet cannot tell that it is not root"
    if any("hostPort" in port for port in container.get("ports", [])):
        yield f"{name} takes a port of the host"
    for amount, kind in (("memory", "requests"), ("cpu", "requests"), ("memory", "limits")):
        if amount not in container.get("resources", {}).get(kind, {}):
            yield f"{name} has no {kind[:-1]} of {amount}"
