"""Closes the gaps of a watch: what was deleted while nobody watched is never announced.

Compares the store with a fresh list of names, uids and versions, and reads only what differs. What the list does not
have is forgotten if the store had it before the list was asked for; younger entries are none of the list's business.
"""

from collections.abc import Sequence

from capstan_operator.errors import ApiNotFound
from capstan_operator.world.kubernetes.access import Resource
from capstan_operator.world.kubernetes.api import KubernetesApi
from capstan_operator.world.kubernetes.store import Key, Store


async def resync(
    api: KubernetesApi, store: Store, resource: Resource, *, namespaces: Sequence[str] = (), selector: str = ""
) -> int:
    """Make the store agree with the API server; no namespaces means all. Returns how many entries were wrong."""
    before = store.versions(resource)
    listed: dict[Key, tuple[str, str]] = {}
    for namespace in namespaces or (None,):
        for metadata in await api.list_metadata(resource, namespace, selector):
            listed[Key(metadata["namespace"], metadata["name"])] = (metadata["uid"], metadata["resourceVersion"])
    wrong = 0
    for key, (uid, _) in before.items():
        if listed.get(key, ("", ""))[0] != uid:
            store.forget(resource, key, uid)
            wrong += 1
    now = store.versions(resource)
    for key, version in listed.items():
        held = now.get(key)
        # A version that has moved on since `before` comes from a watch that lives.
        if held == version or (held is not None and held != before.get(key)):
            continue
        try:
            store.take(resource, await api.get(resource, key.namespace, key.name))
            wrong += 1
        except ApiNotFound:
            continue
    return wrong
