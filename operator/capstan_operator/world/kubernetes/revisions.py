"""The ConfigMaps that write down what each revision of the engines is started with.

The current revision is made from the resource as it is now, so that a new image or node selector reaches the next pod.
An older one is started again only from what was written down when it was current, or not at all.
"""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from capstan_api import names
from capstan_operator.errors import ApiConflict, ApiNotFound, NameTaken, WorldError
from capstan_operator.world.kubernetes.access import CONFIG_MAPS
from capstan_operator.world.kubernetes.api import KubernetesApi, Manifest
from capstan_operator.world.kubernetes.children import LOOK_AGAIN_S, taken
from capstan_operator.world.kubernetes.engine_pod import POD_JSON
from capstan_operator.world.kubernetes.identity import Identity


class Revisions:
    """The revisions of one InferenceDeployment. Methods raise `ApiError`, and `NameTaken` for what is not its own."""

    def __init__(
        self,
        api: KubernetesApi,
        identity: Identity,
        *,
        is_new: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`is_new` says that there is no revision yet to be swept away."""
        self._api = api
        self._identity = identity
        self._clock = clock
        self._written: set[str] = set()
        self._pod_specs: dict[str, Mapping[str, Any]] = {}
        # What the last sweep left, which may be an earlier life's.
        self._left: set[str] = set()
        self._swept_at: float | None = clock() if is_new else None

    async def write(self, revision: str, config: Manifest) -> None:
        """Have the ConfigMap of the current revision."""
        if revision in self._written:
            return
        try:
            await self._api.create(CONFIG_MAPS, config)
        except ApiConflict:
            # Written before a restart, or by another of that name.
            await self._read(revision)
        self._written.add(revision)

    async def pod_spec(self, revision: str) -> Mapping[str, Any]:
        """The spec of the pods of a revision that was current once. Raises `WorldError` when it is forgotten."""
        if revision not in self._pod_specs:
            try:
                config = await self._read(revision)
            except ApiNotFound:
                raise WorldError(f"revision {revision} cannot be started again: its ConfigMap is gone") from None
            self._pod_specs[revision] = json.loads(config["data"][POD_JSON])
        return self._pod_specs[revision]

    async def sweep(self, keep: frozenset[str]) -> None:
        """Delete what belongs to other revisions. Looks when one that it knows may go, and now and then."""
        known, now = self._written | self._pod_specs.keys() | self._left, self._clock()
        if self._swept_at is not None and now - self._swept_at < LOOK_AGAIN_S and known <= keep:
            return
        selector, found = f"{self._identity.selector},{names.LABEL_REVISION}", set()
        for metadata in await self._api.list_metadata(CONFIG_MAPS, self._identity.namespace, selector):
            revision = metadata["labels"][names.LABEL_REVISION]
            if not self._identity.owns({"metadata": metadata}):
                continue
            if revision in keep:
                found.add(revision)
            else:
                await self._api.delete(CONFIG_MAPS, self._identity.namespace, metadata["name"], uid=metadata["uid"])
        # One that somebody has deleted is written again when it is needed next.
        self._written &= found
        self._pod_specs = {revision: spec for revision, spec in self._pod_specs.items() if revision in keep}
        self._left, self._swept_at = found, now

    async def _read(self, revision: str) -> Manifest:
        config = await self._api.get(CONFIG_MAPS, self._identity.namespace, self._identity.revision(revision))
        if not self._identity.owns(config):
            raise NameTaken(taken(CONFIG_MAPS.kind, config))
        return config
