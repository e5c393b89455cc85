"""`hf://ORGANIZATION/NAME`: a repository of a Hugging Face hub.

Two requests of the hub's HTTP API: the state of a revision with the size and hash of every file, and a file of a
commit, which the hub may redirect to its content network. The surprising idea: even an unpinned branch is resolved to
its commit first, so that all files are of one state. (The hub's own client is not used: parts of it open connections
from native code, where no address can be checked.)
"""

import re
from collections.abc import Mapping
from typing import Annotated, Final
from urllib.parse import quote

from pydantic import BaseModel, Field, StringConstraints, ValidationError
from yarl import URL

from capstan_fetch.errors import Hiccup, Refused, SourceError
from capstan_fetch.listing import Listing, RemoteFile, checkpoint_files
from capstan_fetch.transport import Transport

_DEFAULT_REVISION: Final = "main"
_MAX_LISTING_BYTES: Final = 32 << 20
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")

_Sha1 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
_Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _LargeFile(BaseModel):
    sha256: _Sha256
    size: Annotated[int, Field(ge=0)]


class _Sibling(BaseModel):
    rfilename: str
    size: Annotated[int, Field(ge=0)] | None = None
    blob_id: Annotated[_Sha1 | None, Field(alias="blobId")] = None
    lfs: _LargeFile | None = None


class _Revision(BaseModel):
    sha: _Sha1
    siblings: list[_Sibling]


class HubRepository:
    """One repository. `token` is sent to the hub only, never to where it redirects."""

    def __init__(self, uri: str, revision: str | None, token: str | None) -> None:
        self.name = uri.removeprefix("hf://")
        self._revision = revision or _DEFAULT_REVISION
        self._token = token

    async def listing(self, transport: Transport) -> Listing:
        path = f"/api/models/{self.name}/revision/{quote(self._revision, safe='')}?blobs=true"
        raw = await transport.body(URL(f"{transport.base}{path}", encoded=True), _MAX_LISTING_BYTES)
        try:
            found = _Revision.model_validate_json(raw)
        except ValidationError:
            # Often the page of a proxy that has trouble of its own.
            raise Hiccup(f"{transport.base.host} does not answer with the state of a repository") from None
        if _COMMIT.fullmatch(self._revision) and found.sha != self._revision:
            raise SourceError(f"{transport.base.host} has commit {found.sha} where {self._revision} was asked for")
        files = [_remote_file(sibling) for sibling in found.siblings]
        return Listing(checkpoint_files(files, f"hf://{self.name}"), commit=found.sha)

    def locate(self, base: URL, listing: Listing, file: RemoteFile) -> tuple[URL, Mapping[str, str]]:
        return URL(f"{base}/{self.name}/resolve/{listing.commit}/{quote(file.path)}", encoded=True), {}

    def authorize(self, url: URL, headers: Mapping[str, str]) -> Mapping[str, str]:
        return headers if self._token is None else {**headers, "Authorization": f"Bearer {self._token}"}

    def explained(self, refused: Refused) -> SourceError:
        if refused.code == "RevisionNotFound":
            return SourceError(f"spec.model.source.revision: hf://{self.name} has no revision {self._revision}")
        if refused.status in (401, 403, 404) or refused.code in ("GatedRepo", "RepoNotFound"):
            # The hub answers alike for what is private and for what is not there.
            remedy = (
                "the HF_TOKEN of spec.model.source.secretName may not read it, or it does not exist"
                if self._token
                else "correct the name, or give spec.model.source.secretName a Secret with an HF_TOKEN that may read it"
            )
            return SourceError(f"spec.model.source.uri: hf://{self.name}: {refused}; {remedy}")
        return SourceError(f"spec.model.source.uri: hf://{self.name}: {refused}")


def _remote_file(sibling: _Sibling) -> RemoteFile:
    if sibling.lfs is not None:
        lfs = sibling.lfs
        return RemoteFile(sibling.rfilename, lfs.size, version=lfs.sha256, sha256=lfs.sha256)
    size = sibling.size
    if size is None or sibling.blob_id is None:
        raise SourceError("the hub lists a file without its size and hash; its API is older than blobs=true")
    return RemoteFile(sibling.rfilename, size, version=sibling.blob_id, git_sha1=sibling.blob_id)
