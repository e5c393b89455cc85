"""The way to the API server: address, certificates and credentials, read from where a pod or a kubeconfig has them.

The official client is taken for it because it knows all of their forms, programs that issue tokens included.
"""

import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import yaml
from kubernetes.aio import config as kubernetes_config
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from capstan_operator.errors import WorldError

TOKEN_LASTS_S: Final = 60.0


async def connect(kubeconfig: Path | None = None) -> ApiClient:
    """A transport with the credentials of `kubeconfig`, of the file in KUBECONFIG, or of the pod that this runs in.

    Never those of a person's default context. They are read anew while it is used, because tokens expire. Raises
    `WorldError` with the remedy.
    """
    configuration = Configuration()
    path = kubeconfig or (Path(os.environ["KUBECONFIG"]) if os.environ.get("KUBECONFIG") else None)
    try:
        if path is not None:
            await _read(path, configuration)
            configuration.refresh_api_key_hook = _rereading(path)  # type: ignore[assignment]  # declared as None
        else:
            kubernetes_config.load_incluster_config(configuration)
        # Python 3.13 refuses certificate authorities without a key identifier, which many clusters have.
        configuration.disable_strict_ssl_verification = True
        return ApiClient(configuration)
    except (kubernetes_config.ConfigException, OSError) as error:
        where = f"{path} cannot be used" if path else "not in a cluster, and KUBECONFIG is not set"
        raise WorldError(f"no way to the API server: {where}: {error}") from None


async def _read(kubeconfig: Path, configuration: Configuration) -> None:
    """Raises `ConfigException`, whatever is wrong with the file: somebody may just be writing it."""
    try:
        await kubernetes_config.load_kube_config(
            config_file=str(kubeconfig), client_configuration=configuration, persist_config=False
        )
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise kubernetes_config.ConfigException(f"it is no kubeconfig: {' '.join(str(error).split())}") from None


def _rereading(kubeconfig: Path) -> Callable[[Configuration], Awaitable[None]]:
    """What the client calls before it uses a token: the file, or the program that it names, has the newest one."""
    read_at = time.monotonic()

    async def reread(configuration: Configuration) -> None:
        nonlocal read_at
        if time.monotonic() - read_at >= TOKEN_LASTS_S:
            read_at = time.monotonic()
            await _read(kubeconfig, configuration)

    return reread
