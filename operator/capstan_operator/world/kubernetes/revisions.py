"""The ConfigMaps that write down what each revision of the engines is started with.

The current revision is made from the resource as it is now, so that a new image or node selector reaches the next pod.
An older one is started again only from what was written down when it was current, or not at all.
"""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from capstan_api import names
from capstan_operator.errors import ApiConflict, NameTaken, WorldError
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
        # The revision of each ConfigMap, by its name.
        self._written: dict[str, str] = {}
        self._pod_specs: dict[str, Mapping[str, Any]] = {}
        # What the last sweep left, which may be an earlier life's.
        self._left: set[str] = set()
        self._swept_at: float | None = clock() if is_new else None

    async def write(self, revision: str, config: Manifest) -> None:
        """Have the ConfigMap of the current revision."""
        name = config["metadata"]["name"]
        if name in self._written:
            return
        try:
            await self._api.create(CONFIG_MAPS, config)
        except ApiConflict:
            # Written before a restart, or by another of that name.
            await self._read(name)
        self._written[name] = revision

    async def pod_spec(self, revision: str) -> Mapping[str, Any]:
        """The spec of the pods of a revision that was current once. Raises `WorldError` when it is forgotten."""
        if revision not in self._pod_specs:
            found = await self._list(f"{names.LABEL_REVISION}={revision}")
            if not found:
                raise WorldError(f"revision {revision} cannot be started again: its ConfigMap is gone")
            newest = max(found, key=lambda metadata: str(metadata["creationTimestamp"]))
            self._pod_specs[revision] = json.loads((await self._read(newest["name"]))["data"][POD_JSON])
        return self._pod_specs[revision]

    async def sweep(self, keep: frozenset[str]) -> None:
        """Delete what belongs to other revisions. Looks when one that it knows may go, and now and then."""
        known, now = {*self._written.values(), *self._pod_specs, *self._left}, self._clock()
        if self._swept_at is not None and now - self._swept_at < LOOK_AGAIN_S and known <= keep:
            return
        found: dict[str, str] = {}
        for metadata in await self._list(names.LABEL_REVISION):
            revision = metadata["labels"][names.LABEL_REVISION]
            if revision in keep:
                found[metadata["name"]] = revision
            else:
                await self._api.delete(CONFIG_MAPS, self._identity.namespace, metadata["name"], uid=metadata["uid"])
        # One that somebody has deleted is written again when it is needed next.
        self._written = {name: revision for name, revision in self._written.items() if name in found}
        self._pod_specs = {revision: spec for revision, spec in self._pod_specs.items() if revision in keep}
        self._left, self._swept_at = set(found.values()), now

    async def _list(self, label: str) -> list[Manifest]:
        """Metadata of our own with this label."""
        selector = f"{self._identity.selector},{label}"
        listed = await self._api.list_metadata(CONFIG_MAPS, self._identity.namespace, selector)
        return [metadata for metadata in listed if self._identity.owns({"metadata": metadata})]

    async def _read(self, name: str) -> Manifest:
        config = await self._api.get(CONFIG_MAPS, self._identity.namespace, name)
        if not self._identity.owns(config):
            raise NameTaken(taken(CONFIG_MAPS.kind, config))
        return config
