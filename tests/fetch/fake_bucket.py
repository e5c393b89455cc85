"""An S3 server on this machine: ListObjectsV2 in pages, GetObject with ranges and If-Match, signatures verified.

The signature is computed anew with botocore and compared; that it speaks S3 is proved by s3fs, which reads from it.
"""

import hashlib
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import quote
from xml.sax.saxutils import escape

from aiohttp import web
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from fetch.served_files import Fault, Seen, Site, note, send

KEY_ID, KEY = "AKIDEXAMPLE", "very-secret/key+with=signs"
REGION = "eu-central-1"


class _AtTheSameTime(S3SigV4Auth):
    """Signs what a client has signed, with the headers and the time that it used."""

    def _modify_request_before_signing(self, request: AWSRequest) -> None:
        """The date is the client's."""

    def headers_to_sign(self, request: AWSRequest):  # type: ignore[no-untyped-def]  # the library has no types
        return request.headers


@dataclass
class FakeBucket:
    """The bucket `models`."""

    objects: dict[str, bytes]
    public: bool = False
    page: int = 1000
    ignores_encoding: bool = False
    listing: str | None = None
    """Replaces the honest listing."""
    token: str | None = None
    """Session token that must come along."""
    list_faults: deque[Fault] = field(default_factory=deque)
    faults: deque[Fault] = field(default_factory=deque)
    seen: list[Seen] = field(default_factory=list)
    address: str = "127.0.0.1"
    url: str = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator["FakeBucket"]:
        app = web.Application()
        app.router.add_get("/models", self._list)
        app.router.add_get("/models/", self._list)
        app.router.add_get("/models/{key:.+}", self._get)
        async with Site(app, self.seen, self.address) as site:
            self.url = site.url
            yield self

    async def _list(self, request: web.Request) -> web.StreamResponse:
        if refusal := self._refusal(request):
            return refusal
        if self.list_faults:
            return await send(request, b"<Broken", self.list_faults)
        if self.listing is not None:
            return web.Response(text=self.listing, content_type="application/xml")
        assert request.query["list-type"] == "2"
        keys = sorted(key for key in self.objects if key.startswith(request.query.get("prefix", "")))
        start = int(request.query.get("continuation-token", "+0 ").strip())
        shown, more = keys[start : start + self.page], len(keys) > start + self.page
        as_url = request.query.get("encoding-type") == "url" and not self.ignores_encoding
        encode = quote if as_url else escape
        encoding = "<EncodingType>url</EncodingType>" if as_url else ""
        items = "".join(
            f"<Contents><Key>{encode(key)}</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified>"
            f"<ETag>{escape(etag(self.objects[key]))}</ETag><Size>{len(self.objects[key])}</Size>"
            f"<StorageClass>STANDARD</StorageClass></Contents>"
            for key in shown
        )
        # A token with characters that have to be escaped in the next query.
        following = f"<NextContinuationToken>+{start + self.page} </NextContinuationToken>" if more else ""
        text = (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>models</Name><KeyCount>{len(shown)}</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>"
            f"{encoding}{following}{items}</ListBucketResult>"
        )
        return web.Response(text=text, content_type="application/xml")

    async def _get(self, request: web.Request) -> web.StreamResponse:
        if refusal := self._refusal(request):
            return refusal
        content = self.objects.get(request.match_info["key"])
        if content is None:
            return _error(404, "NoSuchKey")
        if request.headers.get("If-Match", etag(content)) != etag(content):
            return _error(412, "PreconditionFailed")
        return await send(request, content, self.faults, {"ETag": etag(content)})

    def _refusal(self, request: web.Request) -> web.Response | None:
        note(self.seen, request)
        if self.public:
            return None
        authorization = request.headers.get("Authorization", "")
        if not authorization:
            return _error(403, "AccessDenied")
        if request.headers.get("x-amz-security-token") != self.token:
            return _error(403, "InvalidToken")
        return None if authorization == _expected(request, authorization) else _error(403, "SignatureDoesNotMatch")


def etag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


def _expected(request: web.Request, authorization: str) -> str:
    """The header that a client with the right keys would have sent."""
    names = authorization.partition("SignedHeaders=")[2].partition(",")[0].split(";")
    copied = AWSRequest(
        "GET" if request.method == "GET" else request.method, f"http://{request.host}{request.raw_path}"
    )
    for name in names:
        copied.headers[name] = request.headers[name]
    copied.context["timestamp"] = request.headers["x-amz-date"]
    copied.context["payload_signing_enabled"] = True
    signer = _AtTheSameTime(Credentials(KEY_ID, KEY), "s3", authorization.split("/")[2])
    canonical = signer.canonical_request(copied)
    signature = signer.signature(signer.string_to_sign(copied, canonical), copied)
    return (
        f"AWS4-HMAC-SHA256 Credential={KEY_ID}/{signer.credential_scope(copied)}, "
        f"SignedHeaders={';'.join(names)}, Signature={signature}"
    )


def _error(status: int, code: str) -> web.Response:
    return web.Response(status=status, text=f"<Error><Code>{code}</Code></Error>", content_type="application/xml")
