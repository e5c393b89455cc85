"""The token of the admin ports, and the Secret that brings it to the pods. Pure.

The surprising idea: it is computed and never kept. An operator that starts again, or another one that takes over, knows
the same tokens without a right to read a single Secret.
"""

import base64
import hashlib
import hmac
from typing import Any

from capstan_api import names
from capstan_operator.world.kubernetes.identity import Component, Identity


def admin_token(key: bytes, identity: Identity) -> str:
    """The token of the admin ports of one InferenceDeployment: the same after a restart, and nowhere else."""
    message = f"{identity.namespace}/{identity.name}/{identity.uid}"
    return hmac.new(key, message.encode(), hashlib.sha256).hexdigest()


def admin_secret(identity: Identity, token: str) -> dict[str, Any]:
    """The Secret that brings the token to the pods.

    Its own type is a guard: a Secret of another type that has the name already cannot be turned into this one.
    """
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": identity.metadata(identity.admin_secret, Component.ENGINE),
        "type": f"{names.GROUP}/admin-token",
        "data": {"token": base64.b64encode(token.encode()).decode()},
    }
