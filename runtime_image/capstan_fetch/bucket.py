"""`s3://BUCKET/PREFIX`: a prefix of a bucket, at Amazon or at any server that speaks S3.

Two requests: ListObjectsV2 and GetObject, the bucket in the path. The surprising idea: an ETag is taken as a version
and not as a checksum; it is the MD5 of the content for some objects only, and nothing says for which. What must not
change unseen is pinned by `spec.model.source.digest`.
"""

from collections.abc import Callable, Mapping
from time import time
from typing import Final
from urllib.parse import quote, unquote_plus
from xml.etree import ElementTree

from yarl import URL

from capstan_fetch.errors import Hiccup, Refused, SourceError
from capstan_fetch.listing import Listing, RemoteFile, checkpoint_files
from capstan_fetch.signature import AwsKeys, signed
from capstan_fetch.transport import Transport

_MAX_PAGE_BYTES: Final = 8 << 20
_MAX_PAGES: Final = 16
_NOT_ALLOWED: Final = frozenset({"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"})


class BucketPrefix:
    """All objects of a bucket whose keys begin with a prefix and a slash. Without keys it is read anonymously."""

    def __init__(self, uri: str, keys: AwsKeys | None, region: str, clock: Callable[[], float] = time) -> None:
        self.bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        self._prefix = prefix.rstrip("/") + "/" if prefix.strip("/") else ""
        self._keys = keys
        self._region = region
        self._clock = clock

    async def listing(self, transport: Transport) -> Listing:
        files: list[RemoteFile] = []
        token: str | None = None
        for _ in range(_MAX_PAGES):
            page, token = await self._page(transport, token)
            files += page
            if token is None:
                return Listing(checkpoint_files(files, f"s3://{self.bucket}/{self._prefix}"))
        raise SourceError(
            f"spec.model.source.uri: s3://{self.bucket}/{self._prefix} holds more than {_MAX_PAGES * 1000} objects; "
            f"name the directory of one checkpoint"
        )

    def locate(self, base: URL, listing: Listing, file: RemoteFile) -> tuple[URL, Mapping[str, str]]:
        # Nothing but the object that was listed will do: a resumed file must not be half old and half new.
        return self._url(base, self._prefix + file.path), {"If-Match": file.version}

    def authorize(self, url: URL, headers: Mapping[str, str]) -> Mapping[str, str]:
        return headers if self._keys is None else signed(url, headers, self._keys, self._region, self._clock())

    def explained(self, refused: Refused) -> SourceError:
        name = f"s3://{self.bucket}/{self._prefix}"
        if refused.status == 412:
            return SourceError(f"spec.model.source.uri: {name} was changed while it was fetched; it is tried again")
        if refused.code in ("AuthorizationHeaderMalformed", "PermanentRedirect") or refused.status in (301, 307):
            return SourceError(
                f"spec.model.source.uri: {name}: {refused}; the bucket is in another region than {self._region}: set "
                f"AWS_REGION in the Secret of spec.model.source.secretName, and the operator's s3 endpoint to it"
            )
        if refused.code == "NoSuchBucket":
            return SourceError(f"spec.model.source.uri: {name}: there is no such bucket")
        if refused.status in (401, 403) or refused.code in _NOT_ALLOWED:
            remedy = (
                "the AWS keys of spec.model.source.secretName may not list and read it"
                if self._keys
                else "name a Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in spec.model.source.secretName"
            )
            return SourceError(f"spec.model.source.uri: {name}: {refused}; {remedy}")
        return SourceError(f"spec.model.source.uri: {name}: {refused}")

    async def _page(self, transport: Transport, token: str | None) -> tuple[list[RemoteFile], str | None]:
        """One page of objects and the token of the next."""
        query = {"list-type": "2", "encoding-type": "url", "prefix": self._prefix}
        if token is not None:
            query["continuation-token"] = token
        text = "&".join(f"{key}={quote(value, safe='')}" for key, value in sorted(query.items()))
        url = URL(f"{self._url(transport.base, '')}?{text}", encoded=True)
        root = _parsed(await transport.body(url, _MAX_PAGE_BYTES), transport.base.host or "")
        # Not every server does as it is asked; one that does says so.
        decode = unquote_plus if root.findtext("{*}EncodingType") == "url" else str
        files = [file for item in root.iterfind("{*}Contents") if (file := self._remote_file(item, decode)) is not None]
        more = root.findtext("{*}IsTruncated", "false").strip() == "true"
        following = root.findtext("{*}NextContinuationToken")
        if more and not following:
            raise Hiccup(f"{transport.base.host} lists no more although it says that there is more")
        return files, following if more else None

    def _remote_file(self, item: ElementTree.Element, decode: Callable[[str], str]) -> RemoteFile | None:
        key = decode(item.findtext("{*}Key", ""))
        size, etag = item.findtext("{*}Size", ""), item.findtext("{*}ETag", "")
        if not key.startswith(self._prefix) or not size.isdecimal() or not etag.isprintable() or not etag:
            raise SourceError(
                f"s3://{self.bucket} lists an object outside of {self._prefix!r}, or one without size or ETag"
            )
        path = key.removeprefix(self._prefix)
        # Some tools mark folders by empty objects.
        if (not path or path.endswith("/")) and int(size) == 0:
            return None
        return RemoteFile(path, int(size), version=etag)

    def _url(self, base: URL, key: str) -> URL:
        return URL(f"{base}/{self.bucket}/{quote(key, safe='/-_.~')}", encoded=True)


def _parsed(raw: bytes, host: str) -> ElementTree.Element:
    """The answer's XML. A listing has no document type, so one that has (and could bring entities) is refused."""
    if b"<!" in raw:
        raise SourceError(f"{host} answers with XML that declares entities or a document type")
    try:
        return ElementTree.fromstring(raw)  # noqa: S314 - without declarations there is nothing that could expand
    except ElementTree.ParseError:
        raise Hiccup(f"{host} does not answer with a listing") from None
