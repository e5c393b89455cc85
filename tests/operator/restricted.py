"""Pod Security "restricted" as a function from a pod's spec to the list of its violations, none when it is accepted.

After https://kubernetes.io/docs/concepts/security/pod-security-standards/, plus what Capstan demands of itself: a root
file system that cannot be written, no token, no service variables.
"""

from collections.abc import Mapping
from typing import Any

_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
# Added to the standard's list with the image volumes themselves.
_VOLUMES |= {"image"}


def violations(spec: Mapping[str, Any]) -> list[str]:
    found = [f"{field} is set" for field in ("hostNetwork", "hostPID", "hostIPC") if spec.get(field)]
    pod = spec.get("securityContext", {})
    if spec.get("automountServiceAccountToken") is not False:
        found.append("a service account token is mounted")
    if spec.get("enableServiceLinks") is not False:
        found.append("service variables are set")
    for volume in spec.get("volumes", ()):
        kinds = set(volume) - {"name"}
        if not kinds <= _VOLUMES:
            found.append(f"volume {volume['name']} is {kinds}")
    for container in (*spec.get("initContainers", ()), *spec.get("containers", ())):
        found += [f"{container['name']}: {what}" for what in _of_container(container, pod)]
    return found


def _of_container(container: Mapping[str, Any], pod: Mapping[str, Any]) -> list[str]:
    own = container.get("securityContext", {})
    both = {**pod, **own}
    checks = {
        "may be root": both.get("runAsNonRoot") is True and both.get("runAsUser") not in (None, 0),
        "has no seccomp profile": both.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"),
        "may escalate": own.get("allowPrivilegeEscalation") is False,
        "keeps capabilities": own.get("capabilities", {}).get("drop") == ["ALL"] and not own["capabilities"].get("add"),
        "is privileged": not own.get("privileged"),
        "has a root file system that can be written": own.get("readOnlyRootFilesystem") is True,
        "uses host ports": all("hostPort" not in port for port in container.get("ports", ())),
        "has no memory limit": "memory" in container.get("resources", {}).get("limits", {}),
    }
    return [what for what, holds in checks.items() if not holds]
