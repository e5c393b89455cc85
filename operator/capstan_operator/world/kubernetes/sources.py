"""From `spec.model.source` to the directory inside the engine's pod, and to the volume that holds it there.

Pure. The surprising idea: what is fetched lies in a directory named by the digest of where it comes from. On a shared
cache two sources can never overwrite each other, and another revision of the same model is another directory.
"""

import hashlib
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import unquote

from capstan_api.fetch_args import FetchArgs
from capstan_api.model import ModelSource, ModelSpec
from capstan_operator.errors import ModelNotFound
from capstan_operator.world.kubernetes.installation import Installation

MOUNT: Final = "/model"
"""Where a model that is not part of the image is mounted."""
VOLUME: Final = "model"
_BUNDLED: Final = "/models"


def directory(source: ModelSource) -> Path:
    """Where the engine finds the checkpoint. Raises `ModelNotFound` with the remedy."""
    kind, _, rest = source.uri.partition("://")
    match kind:
        case "bundled":
            return Path(_BUNDLED, rest)
        case "file":
            return Path(unquote(rest))
        case "oci":
            return Path(MOUNT)
        case "pvc":
            return Path(MOUNT, *_claim_path(source).parts)
        case "hf" | "s3":
            parts = (source.uri, source.revision or "", source.digest or "")
            return Path(MOUNT, hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16])
    raise ModelNotFound(f"spec.model.source.uri: {kind}:// is not a source that this operator knows")


def volume(model: ModelSpec) -> dict[str, Any] | None:
    """The pod's volume for the model, None when it is part of the image."""
    source = model.source
    kind, _, rest = source.uri.partition("://")
    match kind:
        case "pvc":
            claim = unquote(rest.partition("/")[0])
            return {"name": VOLUME, "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
        case "oci":
            return {"name": VOLUME, "image": {"reference": rest, "pullPolicy": "IfNotPresent"}}
        case "hf" | "s3" if model.cache is not None:
            return {"name": VOLUME, "persistentVolumeClaim": {"claimName": model.cache.claim_name}}
        case "hf" | "s3":
            return {"name": VOLUME, "emptyDir": {}}
    return None


def fetch_args(source: ModelSource, installation: Installation) -> FetchArgs | None:
    """The fetcher's configuration, None when there is nothing to fetch."""
    if not source.is_fetched:
        return None
    return FetchArgs(
        uri=source.uri,
        revision=source.revision,
        digest=source.digest,
        destination=directory(source),
        endpoint=installation.endpoint(source),
        host="0.0.0.0",  # noqa: S104 - a pod has one address of its own, guarded by NetworkPolicy
    )


def _claim_path(source: ModelSource) -> PurePosixPath:
    """The path inside the claim of `pvc://CLAIM/PATH`."""
    path = PurePosixPath(unquote(source.uri.removeprefix("pvc://").partition("/")[2]))
    if path.is_absolute() or ".." in path.parts:
        raise ModelNotFound(f"spec.model.source.uri: {source.uri} leaves its claim; name a directory inside of it")
    return path
