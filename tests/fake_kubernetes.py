"""An API server in a few lines: objects in a dictionary behind HTTP, every request recorded, faults on demand.

Honest in what the operator relies on: uids, resource versions that move on change only, 409 for names that are taken
and for uids that do not match, deletion with grace, watches that go on from where a list ended, and who came to an
object by which operation, though not to which fields. It validates nothing, and merges maps but no lists; the real one
is asked in `tests/cluster`.
"""

import asyncio
import json
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any
from uuid import uuid4

from aiohttp import web

WATCHED = {"inferencedeployments": "capstan.dev", "pods": "", "deployments": "apps"}
"""What is watched, with its API group."""
_VERSIONS = {"": "v1", "apps": "v1", "capstan.dev": "v1alpha1"}


@dataclass(frozen=True)
class Request:
    """One request as it arrived. `verb` in the words of Kubernetes' authorization."""

    verb: str
    group: str
    resource: str
    name: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any


@dataclass
class FakeKubernetes:
    """Use `async with`. `on_event(resource, object, gone)` is what a watch would be told."""

    kinds: frozenset[str] = frozenset({"podmonitors", "inferencepools"})
    on_event: Callable[[str, dict[str, Any], bool], None] = lambda *_: None
    objects: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    faults: list[Callable[[Request], web.Response | None]] = field(default_factory=list)
    """Asked in turn; the first answer wins."""
    hang: asyncio.Event | None = None
    """While it is there and not set, no request is answered."""
    version: int = 0
    _events: list[tuple[int, str, dict[str, Any]]] = field(default_factory=list)
    _moved: asyncio.Event = field(default_factory=asyncio.Event)

    async def __aenter__(self) -> "FakeKubernetes":
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.hang is not None:
            self.hang.set()
        await self._runner.cleanup()

    @property
    def writes(self) -> list[Request]:
        return [request for request in self.requests if request.verb not in ("get", "list", "watch")]

    def find(self, resource: str, name: str, namespace: str = "default") -> dict[str, Any]:
        return self.objects[resource, namespace, name]

    def put(self, resource: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Have an object, as somebody else would have made it."""
        made = json.loads(json.dumps(manifest))
        metadata = made["metadata"]
        metadata.setdefault("namespace", "default")
        metadata.setdefault("uid", str(uuid4()))
        metadata.setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
        return self._store(resource, made)

    def change(self, resource: str, name: str, **fields: Any) -> None:
        """Overwrite top-level fields, as a kubelet does with `status`."""
        self._store(resource, {**self.find(resource, name), **fields})

    def remove(self, resource: str, name: str) -> None:
        gone = self.objects.pop((resource, "default", name))
        self.version += 1
        self._tell(resource, gone, True)

    def _store(self, resource: str, manifest: dict[str, Any]) -> dict[str, Any]:
        metadata = manifest["metadata"]
        self.version += 1
        metadata["resourceVersion"] = str(self.version)
        self.objects[resource, metadata["namespace"], metadata["name"]] = manifest
        self._tell(resource, manifest, False)
        return manifest

    def _tell(self, resource: str, manifest: dict[str, Any], gone: bool) -> None:
        if resource in WATCHED:
            told = json.loads(json.dumps(manifest))
            self.on_event(resource, told, gone)
            self._events.append((self.version, resource, {"type": "DELETED" if gone else "MODIFIED", "object": told}))
            self._moved.set()
            self._moved = asyncio.Event()

    async def _answer(self, received: web.Request) -> web.StreamResponse:
        if self.hang is not None:
            await self.hang.wait()
        if received.path in ("/api", "/apis"):
            return web.json_response(_groups())
        text = await received.text()
        parts = received.path.strip("/").split("/")
        group, parts = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
        namespace, parts = (parts[1], parts[2:]) if parts and parts[0] == "namespaces" else ("", parts)
        resource, name, subresource = (*parts, "", "", "")[:3]
        reading = "watch" if "watch" in received.query else "get" if name else "list"
        verbs = {"GET": reading, "POST": "create", "PUT": "update"}
        request = Request(
            verb=verbs.get(received.method, received.method.lower()),
            group=group,
            resource=f"{resource}/{subresource}" if subresource else resource,
            name=name,
            query=dict(received.query),
            headers=dict(received.headers),
            body=json.loads(text) if text else None,
        )
        self.requests.append(request)
        for fault in self.faults:
            if (answer := fault(request)) is not None:
                return answer
        if not resource:
            return web.json_response({"resources": [_kind(name) for name in _names(group) or self.kinds]})
        if request.verb == "watch":
            return await self._watch(received, request, resource, namespace)
        answer: web.Response = getattr(self, f"_{request.verb}")(request, resource, namespace)
        return answer

    def _get(self, request: Request, resource: str, namespace: str) -> web.Response:
        live = self.objects.get((resource, namespace, request.name))
        return web.json_response(live) if live else refusal(404, "not found")

    def _list(self, request: Request, resource: str, namespace: str) -> web.Response:
        items = [
            live
            for (kind, where, _), live in self.objects.items()
            if kind == resource and namespace in ("", where) and _is_selected(live, request)
        ]
        metadata = {"resourceVersion": str(self.version)}
        if "PartialObjectMetadata" in request.headers.get("Accept", ""):
            bare = [{"metadata": live["metadata"]} for live in items]
            return web.json_response({"metadata": metadata, "items": bare or None})
        return web.json_response({"metadata": metadata, "items": items})

    async def _watch(
        self, received: web.Request, request: Request, resource: str, namespace: str
    ) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(received)
        seen = int(request.query.get("resourceVersion", "0"))
        while True:
            moved = self._moved
            for version, kind, event in self._events[bisect_right(self._events, seen, key=itemgetter(0)) :]:
                live = event["object"]
                is_inside = namespace in ("", live["metadata"]["namespace"])
                if kind == resource and is_inside and _is_selected(live, request):
                    await response.write(json.dumps(event).encode() + b"\n")
                seen = version
            await moved.wait()

    def _create(self, request: Request, resource: str, namespace: str) -> web.Response:
        if (resource, namespace, request.body["metadata"]["name"]) in self.objects:
            return refusal(409, "already exists")
        return web.json_response(self.put(resource, _owned(request.body, request, "Update")), status=201)

    def _update(self, request: Request, resource: str, namespace: str) -> web.Response:
        live = self.objects.get((resource, namespace, request.name))
        if live is None:
            return refusal(404, "not found")
        if request.body["metadata"].get("resourceVersion") != live["metadata"]["resourceVersion"]:
            return refusal(409, "the object has been modified")
        return web.json_response(self._store(resource, request.body))

    def _patch(self, request: Request, resource: str, namespace: str) -> web.Response:
        live = self.objects.get((resource, namespace, request.name))
        is_apply = request.headers.get("Content-Type", "").startswith("application/apply-patch")
        if live is None and ("/" in request.resource or not is_apply):
            return refusal(404, "not found")
        if live is None:
            return web.json_response(self.put(resource, _owned(request.body, request, "Apply")), status=201)
        version = request.body["metadata"].get("resourceVersion", live["metadata"]["resourceVersion"])
        if version != live["metadata"]["resourceVersion"]:
            return refusal(409, "the object has been modified")
        merged = _merged(live, request.body)
        merged = _owned(merged, request, "Apply") if is_apply and "/" not in request.resource else merged
        return web.json_response(live if merged == live else self._store(resource, merged))

    def _delete(self, request: Request, resource: str, namespace: str) -> web.Response:
        live = self.objects.get((resource, namespace, request.name))
        if live is None:
            return refusal(404, "not found")
        if request.body["preconditions"]["uid"] != live["metadata"]["uid"]:
            return refusal(409, "the uid does not match")
        grace_s = request.body.get("gracePeriodSeconds")
        if resource == "pods" and grace_s:
            metadata = {
                **live["metadata"],
                "deletionTimestamp": "2026-01-01T00:01:00Z",
                "deletionGracePeriodSeconds": grace_s,
            }
            self._store(resource, {**live, "metadata": metadata})
        else:
            self.remove(resource, request.name)
        return web.json_response({"kind": "Status", "status": "Success"})


def refusal(code: int, message: str, **headers: str) -> web.Response:
    """A Status object, as API servers refuse."""
    return web.json_response({"kind": "Status", "code": code, "message": message}, status=code, headers=headers)


def _groups() -> dict[str, Any]:
    """The API groups of what is watched, and the version of the one without a name."""
    named = [(group, {"version": version}) for group, version in _VERSIONS.items() if group]
    groups = [{"name": group, "versions": [version], "preferredVersion": version} for group, version in named]
    return {"versions": [_VERSIONS[""]], "groups": groups}


def _names(group: str) -> list[str]:
    """What a group is said to have: what is watched of it, and the namespaces, which kopf wants to know of."""
    return [name for name, of in WATCHED.items() if of == group] + (["namespaces"] if not group else [])


def _kind(name: str) -> dict[str, Any]:
    return {"name": name, "kind": name, "singularName": "", "namespaced": True, "verbs": ["list", "watch"]}


def _is_selected(live: Mapping[str, Any], request: Request) -> bool:
    """Whether an object has the labels that a list or a watch asks for."""
    labels = live["metadata"].get("labels", {})
    wanted = [term.partition("=") for term in request.query.get("labelSelector", "").split(",") if term]
    return all(label in labels and (not value or labels[label] == value) for label, _, value in wanted)


def _owned(manifest: dict[str, Any], request: Request, operation: str) -> dict[str, Any]:
    """With the operation by which the field manager of a request came to it."""
    entry = {"manager": request.query.get("fieldManager", ""), "operation": operation}
    known = [each for each in manifest["metadata"].get("managedFields", ()) if each != entry]
    return {**manifest, "metadata": {**manifest["metadata"], "managedFields": [*known, entry]}}


def _merged(live: Any, wanted: Any) -> Any:
    if isinstance(live, dict) and isinstance(wanted, dict):
        merged = {key: value if key == "selector" else _merged(live.get(key), value) for key, value in wanted.items()}
        return {**live, **merged}
    return wanted
