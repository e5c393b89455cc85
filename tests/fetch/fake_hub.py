"""A Hugging Face hub on this machine: revisions, trees, and files that it serves itself or through its CDN.

That it speaks the hub's protocol is proved by the hub's own client, which downloads from it in the tests.
"""

import hashlib
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from aiohttp import web

from fetch.served_files import Fault, Seen, Site, note, send

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SIGNATURE = "Signature=very-secret-signature"


@dataclass
class FakeHub:
    """One repository, `capstan/tiny`, whose branch `main` is `COMMIT`."""

    files: dict[str, bytes]
    large: set[str] = field(default_factory=lambda: {"model.safetensors"})
    """Files in LFS: the hub redirects to the CDN for them."""
    token: str | None = None
    redirect_to: str | None = None
    """Where large files are redirected instead of to the CDN."""
    siblings: list[dict[str, Any]] | None = None
    """Replaces the honest list of files."""
    answers_with: str = COMMIT
    """The commit that it claims to have found."""
    hub_faults: deque[Fault] = field(default_factory=deque)
    faults: deque[Fault] = field(default_factory=deque)
    """Of file bodies, wherever they come from."""
    seen: list[Seen] = field(default_factory=list)
    cdn_seen: list[Seen] = field(default_factory=list)
    address: str = "127.0.0.1"
    """Where the hub listens; its CDN stays on this machine."""
    url: str = ""
    cdn: str = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator["FakeHub"]:
        hub, cdn = web.Application(), web.Application()
        hub.router.add_get("/api/models/{owner}/{name}/revision/{revision:.*}", self._revision)
        hub.router.add_get("/api/models/{owner}/{name}/tree/{revision}", self._tree)
        hub.router.add_get("/{owner}/{name}/resolve/{revision}/{path:.*}", self._resolve)
        cdn.router.add_get("/lfs/{sha256}", self._large)
        # Another name of the same address: as far as origins go, another host.
        async with Site(hub, self.seen, self.address) as site, Site(cdn, self.cdn_seen, host="localhost") as content:
            self.url, self.cdn = site.url, content.authority
            yield self

    async def _revision(self, request: web.Request) -> web.StreamResponse:
        if refusal := self._refusal(request):
            return refusal
        if self.hub_faults:
            return await send(request, b"<html>", self.hub_faults)
        if request.match_info["revision"] not in ("main", "v1/release", COMMIT):
            return web.json_response({}, status=404, headers={"X-Error-Code": "RevisionNotFound"})
        siblings = self.siblings or [self._sibling(path) for path in sorted(self.files)]
        if request.query.get("blobs") != "true":
            siblings = [{"rfilename": sibling["rfilename"]} for sibling in siblings]
        return web.json_response({"id": "capstan/tiny", "sha": self.answers_with, "siblings": siblings})

    async def _tree(self, request: web.Request) -> web.StreamResponse:
        entries = []
        for path in sorted(self.files):
            sibling = self._sibling(path)
            entry = {"type": "file", "path": path, "size": sibling["size"], "oid": sibling["blobId"]}
            if "lfs" in sibling:
                entry["lfs"] = {
                    "oid": sibling["lfs"]["sha256"], "size": sibling["size"], "pointerSize": 134,
                }  # fmt: skip
            entries.append(entry)
        return web.json_response(entries)

    def _sibling(self, path: str) -> dict[str, Any]:
        content = self.files[path]
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        sibling: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": blob}
        if path in self.large:
            sibling["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        return sibling

    async def _resolve(self, request: web.Request) -> web.StreamResponse:
        if refusal := self._refusal(request):
            return refusal
        path = request.match_info["path"]
        if request.match_info["revision"] != COMMIT or path not in self.files:
            return web.json_response({}, status=404, headers={"X-Error-Code": "EntryNotFound"})
        content = self.files[path]
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{self._sibling(path)["blobId"]}"'}
        if path not in self.large:
            return await send(request, content, self.faults, headers, path)
        sha256 = hashlib.sha256(content).hexdigest()
        target = self.redirect_to or f"http://{self.cdn}/lfs/{sha256}?{SIGNATURE}"
        linked = {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(content))}
        return web.Response(status=302, headers={**headers, **linked, "Location": target})

    async def _large(self, request: web.Request) -> web.StreamResponse:
        note(self.cdn_seen, request)
        if request.query_string != SIGNATURE:
            return web.Response(status=403)
        sha256 = request.match_info["sha256"]
        path = next(path for path, content in self.files.items() if hashlib.sha256(content).hexdigest() == sha256)
        return await send(request, self.files[path], self.faults, path=path)

    def _refusal(self, request: web.Request) -> web.Response | None:
        note(self.seen, request)
        if self.token is None or request.headers.get("Authorization") == f"Bearer {self.token}":
            return None
        return web.json_response({}, status=401, headers={"X-Error-Code": "RepoNotFound"})


def resolve_path(path: str) -> str:
    return f"/capstan/tiny/resolve/{COMMIT}/{quote(path)}"
