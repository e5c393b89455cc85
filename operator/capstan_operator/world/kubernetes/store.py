"""What the watches have said, by resource: InferenceDeployments, their pods, and the gateways' Deployments.

Knows no HTTP; events are handed in by whoever watches. Times are seconds of one monotonic clock.

The surprising idea: it also believes what we have just done ourselves. A pod that was created is there before the watch
shows it, and one whose deletion was accepted is leaving whatever older events still say; so a second look never starts
or drains a replica twice. Such beliefs end after a while if no watch confirms them.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from capstan_api import names
from capstan_operator.world.kubernetes.access import DEPLOYMENTS, INFERENCE_DEPLOYMENTS, PODS, Resource
from capstan_operator.world.kubernetes.identity import Component, Identity

Manifest = Mapping[str, Any]
BELIEF_S: Final = 60.0
_OF_METADATA: Final = (
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "labels",
    "annotations",
    "ownerReferences",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
)
_OF_STATUS: Final = frozenset(
    ("phase", "reason", "message", "podIP", "conditions", "initContainerStatuses", "containerStatuses")
)


class Key(NamedTuple):
    """One InferenceDeployment by name; its uid says which one of that name."""

    namespace: str
    name: str


@dataclass
class _Shelf:
    """The objects of one resource by (namespace, name)."""

    resource: Resource
    objects: dict[Key, Manifest] = field(default_factory=dict)
    by_owner: dict[Key, set[Key]] = field(default_factory=dict)

    def put(self, manifest: Manifest, owner: Key) -> None:
        key = _key(manifest)
        self.drop(key)
        self.objects[key] = essence(manifest) if self.resource == PODS else manifest
        self.by_owner.setdefault(owner, set()).add(key)

    def drop(self, key: Key) -> None:
        """Whose it was is asked of what is held: somebody may have edited the label since."""
        held = self.objects.pop(key, None)
        owner = _concerns(self.resource, held) if held is not None else None
        if owner is not None:
            self.by_owner[owner].discard(key)
            if not self.by_owner[owner]:
                del self.by_owner[owner]


class Store:
    """The newest known state. `on_change` is called with the InferenceDeployment that an event concerns."""

    def __init__(
        self, on_change: Callable[[Key], None] = lambda _: None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._on_change = on_change
        self._clock = clock
        self._shelves = {resource: _Shelf(resource) for resource in (INFERENCE_DEPLOYMENTS, PODS, DEPLOYMENTS)}
        # uid -> until when an own deed is believed without the watch.
        self._created: dict[str, float] = {}
        self._deleted: dict[str, float] = {}

    def take(self, resource: Resource, manifest: Manifest, *, gone: bool = False) -> Key | None:
        """An event of a watch or an item of a list. Returns whom it concerns, None when nobody that we know."""
        key, owner = _key(manifest), _concerns(resource, manifest)
        if owner is None:
            return None
        uid = str(manifest["metadata"]["uid"])
        self._created.pop(uid, None)
        shelf = self._shelves[resource]
        held = shelf.objects.get(key)
        before = _concerns(resource, held) if held is not None else None
        if not gone:
            shelf.put(manifest, owner)
        else:
            self._deleted.pop(uid, None)
            # Another one may have taken the name since.
            if held is not None and held["metadata"]["uid"] == uid:
                shelf.drop(key)
        if before is not None and before != owner:
            self._on_change(before)
        self._on_change(owner)
        return owner

    def believe_created(self, resource: Resource, manifest: Manifest) -> None:
        """The API server has accepted this new object."""
        owner, uid = _concerns(resource, manifest), str(manifest["metadata"]["uid"])
        held = self._shelves[resource].objects.get(_key(manifest))
        if owner is None or (held is not None and held["metadata"]["uid"] == uid):
            return
        self._created[uid] = self._clock() + BELIEF_S
        self._shelves[resource].put(manifest, owner)

    def believe_deleted(self, uid: str) -> None:
        """The API server has accepted that the object goes."""
        now = self._clock()
        # What had gone before we asked is never announced again: such beliefs are swept away here.
        self._deleted = {other: until for other, until in self._deleted.items() if until > now} | {uid: now + BELIEF_S}

    def is_leaving(self, manifest: Manifest) -> bool:
        """Whether its deletion was asked for."""
        metadata = manifest["metadata"]
        return "deletionTimestamp" in metadata or self._deleted.get(metadata["uid"], 0.0) > self._clock()

    def deployment(self, key: Key) -> Manifest | None:
        """The InferenceDeployment as it was last seen."""
        return self._shelves[INFERENCE_DEPLOYMENTS].objects.get(key)

    def deployments(self) -> list[Key]:
        return list(self._shelves[INFERENCE_DEPLOYMENTS].objects)

    def manifests(self) -> list[Manifest]:
        """All InferenceDeployments as they were last seen."""
        return list(self._shelves[INFERENCE_DEPLOYMENTS].objects.values())

    def pods(self, identity: Identity, component: Component) -> list[Manifest]:
        """Pods of one component that this very InferenceDeployment controls, by name."""
        return [
            pod
            for pod in self._of(PODS, identity)
            if pod["metadata"]["labels"].get(names.LABEL_COMPONENT) == component and identity.owns(pod)
        ]

    def gateway(self, identity: Identity) -> Manifest | None:
        """The gateway's Deployment."""
        found = self._shelves[DEPLOYMENTS].objects.get(Key(identity.namespace, identity.gateway))
        return found if found is not None and identity.owns(found) else None

    def versions(self, resource: Resource) -> dict[Key, tuple[str, str]]:
        """(uid, resourceVersion) of all objects of a resource, to be compared with a fresh list."""
        return {
            key: (str(m["metadata"]["uid"]), str(m["metadata"].get("resourceVersion", "")))
            for key, m in self._shelves[resource].objects.items()
        }

    def forget(self, resource: Resource, key: Key, uid: str) -> None:
        """The object of this uid is gone, although no watch said so."""
        held = self._shelves[resource].objects.get(key)
        if held is not None and held["metadata"]["uid"] == uid:
            self.take(resource, held, gone=True)

    def _of(self, resource: Resource, identity: Identity) -> Iterable[Manifest]:
        shelf, now = self._shelves[resource], self._clock()
        owner = Key(identity.namespace, identity.name)
        for key in sorted(shelf.by_owner.get(owner, ())):
            manifest = shelf.objects[key]
            believed_until = self._created.get(manifest["metadata"]["uid"])
            if believed_until is not None and believed_until <= now:
                del self._created[manifest["metadata"]["uid"]]
                shelf.drop(key)
            else:
                yield manifest


def essence(pod: Manifest) -> Manifest:
    """What anybody here asks of a pod: without its spec, of which there may be ten thousand."""
    return {
        "metadata": {name: pod["metadata"][name] for name in _OF_METADATA if name in pod["metadata"]},
        "status": {name: value for name, value in pod.get("status", {}).items() if name in _OF_STATUS},
    }


def _key(manifest: Manifest) -> Key:
    return Key(manifest["metadata"]["namespace"], manifest["metadata"]["name"])


def _concerns(resource: Resource, manifest: Manifest) -> Key | None:
    if resource == INFERENCE_DEPLOYMENTS:
        return _key(manifest)
    name = manifest["metadata"].get("labels", {}).get(names.LABEL_DEPLOYMENT)
    return Key(manifest["metadata"]["namespace"], name) if name else None
