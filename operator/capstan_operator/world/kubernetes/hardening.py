"""What no pod of ours may do: Pod Security "restricted", and beyond it a root file system that cannot be written.

Pure.
"""

from typing import Any

from capstan_operator.world.kubernetes.installation import Installation

USER = 65532
"""The user of both images; a number, because the kubelet cannot tell from a name that it is not root."""


def pod_hardening(installation: Installation, service_account: str) -> dict[str, Any]:
    """Fields of a pod's spec: no token, no privileges, no service variables."""
    return {
        "serviceAccountName": service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **({"imagePullSecrets": [{"name": n} for n in installation.pull_secrets]} if installation.pull_secrets else {}),
    }


def container_hardening(installation: Installation) -> dict[str, Any]:
    """Fields of a container."""
    return {
        "imagePullPolicy": installation.pull_policy,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        # The last line of the log says why it ended, without a file system to write to.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
