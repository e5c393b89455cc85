"""Keeps the objects of one InferenceDeployment as wanted: looked at seldom, written on difference only.

Decides nothing: what is wanted is handed in as manifests, and what nobody wants any more as names. In between looks it
trusts what it saw last, so that a deployment at rest costs one read per object every ten minutes and no write at all.

The surprising idea: it never takes what it has not looked at. Server-side apply would quietly adopt whatever has the
name, so what is there is read first, and what should not be there yet is created, which fails when it is. An object
that another owner or a person made is left alone and named in the error.
"""

import time
from collections.abc import Callable
from typing import Any, Final
from zlib import crc32

from capstan_operator.errors import ApiConflict, ApiInvalid, ApiNotFound, NameTaken
from capstan_operator.world.kubernetes.access import INFERENCE_POOLS, POD_MONITORS, Resource
from capstan_operator.world.kubernetes.api import KubernetesApi, Manifest
from capstan_operator.world.kubernetes.drift import ANNOTATION, is_as_wanted, stamped
from capstan_operator.world.kubernetes.identity import Identity, controller_uid

LOOK_AGAIN_S: Final = 600.0
_ABSENT: Final = ""
# No digest: whatever was seen counts no more.
_DOUBTED: Final = "?"
_ADDITIONS: Final = (POD_MONITORS, INFERENCE_POOLS)


class ServedKinds:
    """Which kinds of other projects this API server has; asked again now and then, because they can be installed."""

    def __init__(self, api: KubernetesApi, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._clock = clock
        self._known: dict[Resource, tuple[bool, float]] = {}

    async def has(self, resource: Resource) -> bool:
        if resource not in _ADDITIONS:
            return True
        served, until = self._known.get(resource, (False, 0.0))
        if self._clock() >= until:
            served = await self._api.serves(resource)
            self._known[resource] = (served, self._clock() + LOOK_AGAIN_S / 2)
        return served


class Children:
    """The objects of one InferenceDeployment. Methods raise `ApiError`, and `NameTaken` for what is not its own."""

    def __init__(
        self,
        api: KubernetesApi,
        identity: Identity,
        kinds: ServedKinds,
        *,
        is_new: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`is_new` says that nobody has made any of them yet; where that is wrong it costs a request, no more."""
        self._api = api
        self._identity = identity
        self._kinds = kinds
        self._is_new = is_new
        self._clock = clock
        # Objects of many deployments are not looked at in the same moment, for ever after a restart.
        self.look_again_s = LOOK_AGAIN_S * (0.8 + 0.2 * (crc32(identity.uid.encode()) % 100) / 100)
        # (plural, name) -> digest of what it was found or made to be, and when that was.
        self._seen: dict[tuple[str, str], tuple[str, float]] = {}
        # How often something was doubted: it changes when there is reason to look at once.
        self.doubts = 0

    async def keep(self, resource: Resource, manifest: Manifest, live: Manifest | None = None) -> Manifest | None:
        """Have it as wanted. `live` is what a watch shows and saves the look. Returns the object if it was written."""
        wanted = stamped(manifest)
        name, digest = wanted["metadata"]["name"], wanted["metadata"]["annotations"][ANNOTATION]
        key, answer = (resource.plural, name), None
        if live is None:
            if self._is_fresh(key, digest) or not await self._kinds.has(resource):
                return None
            if self._is_new and key not in self._seen:
                answer = await self._create(resource, wanted)
            live = answer or await self._look(resource, name)
        if answer is None:
            answer = await self._applied(resource, wanted, live)
        self._seen[key] = (digest, self._clock())
        return answer

    async def keep_unread(self, resource: Resource, manifest: Manifest) -> None:
        """Have it as wanted without ever reading it: applied once, and again after `doubt`."""
        name = manifest["metadata"]["name"]
        digest = stamped(manifest)["metadata"]["annotations"][ANNOTATION]
        if self._seen.get((resource.plural, name), (_ABSENT, 0.0))[0] == digest:
            return
        try:
            await self._api.apply(resource, manifest)
        except ApiInvalid as error:
            raise NameTaken(
                f"{resource.kind} {name} cannot be ours: {error}; if somebody else made it, remove or rename it"
            ) from None
        self._seen[resource.plural, name] = (digest, self._clock())

    async def remove(self, resource: Resource, name: str) -> None:
        """Have none of this name; one that is not ours is not touched."""
        key = (resource.plural, name)
        if self._is_fresh(key, _ABSENT) or not await self._kinds.has(resource):
            return
        live = await self._look(resource, name) if not self._is_new or key in self._seen else None
        if live is not None and self._identity.owns(live):
            metadata = live["metadata"]
            await self._api.delete(resource, self._identity.namespace, name, uid=metadata["uid"])
        self._seen[key] = (_ABSENT, self._clock())

    def doubt(self, resource: Resource, name: str, *, older_than_s: float = 0.0) -> None:
        """Look again, unless that was done just now."""
        digest, at = self._seen.get((resource.plural, name), (_DOUBTED, 0.0))
        if digest != _DOUBTED and self._clock() - at >= older_than_s:
            self._seen[resource.plural, name] = (_DOUBTED, at)
            self.doubts += 1

    async def _create(self, resource: Resource, wanted: Manifest) -> Manifest | None:
        """The object in one request; None when the name is taken, by whomever."""
        try:
            return await self._api.create(resource, wanted)
        except ApiConflict:
            return None

    async def _applied(self, resource: Resource, wanted: Manifest, live: Manifest | None) -> Manifest | None:
        """The object after what differs was written; None when nothing does."""
        if live is not None and is_as_wanted(live, wanted):
            return None
        if live is not None and "managedFields" not in live["metadata"]:
            # Watches leave them out.
            live = await self._look(resource, wanted["metadata"]["name"])
        if live is not None:
            self._must_own(resource, live)
            await self._api.take_over(resource, live)
        return await self._api.apply(resource, wanted)

    async def _look(self, resource: Resource, name: str) -> Manifest | None:
        try:
            return await self._api.get(resource, self._identity.namespace, name)
        except ApiNotFound:
            return None

    def _must_own(self, resource: Resource, live: Manifest) -> None:
        if self._identity.owns(live):
            return
        raise NameTaken(taken(resource.kind, live))

    def _is_fresh(self, key: tuple[str, str], digest: str) -> bool:
        seen = self._seen.get(key)
        return seen is not None and seen[0] == digest and self._clock() - seen[1] < self.look_again_s


def taken(kind: str, live: dict[str, Any] | Manifest) -> str:
    """Says to whom an object belongs that we need the name of."""
    name, other = live["metadata"]["name"], controller_uid(live)
    if other is None:
        return f"{kind} {name} was not made by Capstan; remove it or rename the InferenceDeployment"
    return f"{kind} {name} belongs to another owner ({other}), perhaps one that is being deleted; waiting for it to go"
