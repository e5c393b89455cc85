"""The API server, as far as the operator needs it: six verbs on plain manifests, bounded in time and number.

Carries no models of objects and never tries again by itself: a control loop is the retry. The official client is only
the transport (`connection`).

The surprising idea: a request that `access.ACCESS` does not list is never sent, so the roles of the chart cannot fall
behind the code, and a write is only sent after the fence has said that this operator is still the one that acts.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlencode

import aiohttp
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.config import ConfigException

from capstan_operator.errors import (
    ApiConflict,
    ApiError,
    ApiForbidden,
    ApiInvalid,
    ApiNotFound,
    ApiUnavailable,
)
from capstan_operator.world.kubernetes.access import Resource, Verb, allowed
from capstan_operator.world.kubernetes.field_owners import as_applied

Manifest = Mapping[str, Any]
"""An object as it travels: decoded JSON. What an API server answered is never changed in place."""

FIELD_MANAGER: Final = "capstan-operator"
_METHODS: Final = {
    Verb.GET: "GET",
    Verb.LIST: "GET",
    Verb.CREATE: "POST",
    Verb.UPDATE: "PUT",
    Verb.PATCH: "PATCH",
    Verb.DELETE: "DELETE",
}
_READS: Final = frozenset({Verb.GET, Verb.LIST, Verb.WATCH})
_METADATA_ONLY: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_REFUSALS: Final[Mapping[int, type[ApiError]]] = {
    401: ApiForbidden,
    403: ApiForbidden,
    404: ApiNotFound,
    409: ApiConflict,
}
_LONGEST_PAUSE_S: Final = 60.0
_LONGEST_MESSAGE: Final = 600


@dataclass(frozen=True)
class Call:
    """One request that was answered or given up; `code` is 0 without an answer."""

    verb: Verb
    resource: str
    code: int
    seconds: float


Fence = Callable[[], Awaitable[None]]
"""Returns when a write may be sent now; raises `NotLeader` otherwise."""


async def unfenced() -> None:
    """The fence of an operator that is alone, and of the lease itself."""


class KubernetesApi:
    """Speaks to one API server. Every method raises `ApiError`; writes raise `NotLeader` too."""

    def __init__(
        self,
        client: ApiClient,
        *,
        fence: Fence = unfenced,
        on_call: Callable[[Call], None] = lambda _: None,
        max_concurrent: int = 20,
        connect_timeout_s: float = 5.0,
        request_timeout_s: float = 30.0,
        longest_pause_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`longest_pause_s` bounds the pause after requests that nobody answered; 0 means to ask again at once."""
        self._client = client
        self._fence = fence
        self._on_call = on_call
        self._slots = asyncio.Semaphore(max_concurrent)
        self._timeout = aiohttp.ClientTimeout(total=request_timeout_s, connect=connect_timeout_s)
        self._longest_pause_s = longest_pause_s
        self._clock = clock
        # Until then nothing is sent: the API server asked for it, or was silent so many times in a row.
        self._pause_until = 0.0
        self._silences = 0

    async def get(self, resource: Resource, namespace: str, name: str) -> Manifest:
        """The object as it is now."""
        return await self._call(Verb.GET, resource, namespace, name)

    async def list_metadata(self, resource: Resource, namespace: str | None, selector: str) -> list[Manifest]:
        """Metadata of the objects with these labels, in one namespace or in all; a tenth of the whole."""
        query = {"labelSelector": selector}
        answer = await self._call(Verb.LIST, resource, namespace, query=query, accept=_METADATA_ONLY)
        return [item["metadata"] for item in answer.get("items") or ()]

    async def create(self, resource: Resource, manifest: Manifest) -> Manifest:
        """A new object. Raises `ApiConflict` when there is one of this name."""
        namespace = manifest["metadata"]["namespace"]
        return await self._call(Verb.CREATE, resource, namespace, body=manifest, query={"fieldManager": FIELD_MANAGER})

    async def apply(self, resource: Resource, manifest: Manifest, *, subresource: str = "") -> Manifest:
        """Server-side apply: these fields become ours and have these values; fields of others stay as they are.

        With `metadata.resourceVersion` in the manifest it raises `ApiConflict` when the object has changed since.
        """
        metadata = manifest["metadata"]
        return await self._call(
            Verb.PATCH,
            resource,
            metadata["namespace"],
            metadata["name"],
            subresource=subresource,
            body=manifest,
            content_type="application/apply-patch+yaml",
            query={"fieldManager": FIELD_MANAGER, "force": "true"},
        )

    async def take_over(self, resource: Resource, live: Manifest) -> Manifest:
        """Have what we created in one request counted as applied, so that apply can take it away. Returns the object.

        Raises `ApiConflict` when it has changed since it was read.
        """
        metadata = live["metadata"]
        owners = as_applied(live, FIELD_MANAGER)
        if owners is None:
            return live
        return await self._call(
            Verb.PATCH,
            resource,
            metadata["namespace"],
            metadata["name"],
            body={"metadata": {"resourceVersion": metadata["resourceVersion"], "managedFields": owners}},
            content_type="application/merge-patch+json",
            query={"fieldManager": FIELD_MANAGER},
        )

    async def replace(self, resource: Resource, manifest: Manifest) -> Manifest:
        """Put the whole object in place of the one with the same `resourceVersion`, else raise `ApiConflict`."""
        metadata = manifest["metadata"]
        return await self._call(Verb.UPDATE, resource, metadata["namespace"], metadata["name"], body=manifest)

    async def delete(
        self, resource: Resource, namespace: str, name: str, *, uid: str, grace_period_s: int | None = None
    ) -> None:
        """Have the object with this uid gone; done already is as good. Another one of the name is left alone."""
        body: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}}
        if grace_period_s is not None:
            body["gracePeriodSeconds"] = grace_period_s
        try:
            await self._call(Verb.DELETE, resource, namespace, name, body=body)
        except (ApiNotFound, ApiConflict):
            # Gone, or replaced by another one, which implies gone.
            return

    async def serves(self, resource: Resource) -> bool:
        """Whether the API server has this kind: its CustomResourceDefinition may not be installed."""
        try:
            answer = await self._exchange("GET", resource.root, "get", "discovery")
        except ApiNotFound:
            return False
        return any(served.get("name") == resource.plural for served in answer.get("resources", ()))

    async def close(self) -> None:
        await self._client.close()

    async def _call(
        self,
        verb: Verb,
        resource: Resource,
        namespace: str | None,
        name: str = "",
        *,
        subresource: str = "",
        body: Manifest | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        query: Mapping[str, str] | None = None,
    ) -> Manifest:
        if not allowed(verb, resource, subresource):
            raise AssertionError(f"{verb} of {resource.plural}/{subresource} is not in the table of `access`")
        path = resource.root
        for part in ("namespaces" if namespace else "", namespace or "", resource.plural, name, subresource):
            path += f"/{quote(part, safe='')}" if part else ""
        if query:
            path += f"?{urlencode(query)}"
        headers = {"Accept": accept, "Content-Type": content_type}
        await self._slot(f"{verb} of {resource.plural}")
        try:
            if verb not in _READS:
                # Asked last, when only the sending is left: what it says is true for a short time only.
                await self._fence()
            return await self._exchange(_METHODS[verb], path, verb, resource.plural, headers, body)
        finally:
            self._slots.release()

    async def _slot(self, what: str) -> None:
        """Wait for a turn no longer than for an answer: when all requests hang, nobody hangs behind them."""
        try:
            await asyncio.wait_for(self._slots.acquire(), self._timeout.total)
        except TimeoutError:
            raise ApiUnavailable(f"{what}: too many requests wait for their answer") from None

    async def _exchange(
        self,
        method: str,
        path: str,
        verb: str,
        plural: str,
        headers: Mapping[str, str] | None = None,
        body: Manifest | None = None,
    ) -> Manifest:
        left_s = self._pause_until - self._clock()
        if left_s > 0:
            raise ApiUnavailable(f"the API server gets a pause of {left_s:.1f} s more", retry_after_s=left_s)
        began, code = self._clock(), 0
        what = f"{verb} of {path.partition('?')[0]}"
        try:
            sent = {"User-Agent": FIELD_MANAGER, **(headers or {"Accept": "application/json"})}
            await self._client.update_params_for_auth(sent, [], ["BearerToken"], path, method, body)
            url = self._client.configuration.host + path
            response = await self._client.rest_client.request(
                method, url, headers=sent, body=body, _request_timeout=self._timeout
            )
            content = await response.read()
            code = response.status
            self._silences = 0
        except TimeoutError:
            self._was_silent()
            raise ApiUnavailable(f"{what}: no answer within {self._timeout.total:g} s") from None
        except ConfigException as error:
            raise ApiForbidden(f"{what}: the credentials cannot be renewed: {error}") from None
        except (aiohttp.ClientError, OSError) as error:
            self._was_silent()
            raise ApiUnavailable(f"{what}: the API server cannot be reached: {error}") from None
        finally:
            self._on_call(Call(Verb(verb), plural, code, self._clock() - began))
        if code >= 300:
            raise self._refusal(what, code, content, response.headers)
        try:
            answer = json.loads(content)
        except ValueError:
            raise ApiUnavailable(f"{what}: the answer is not JSON", code) from None
        if not isinstance(answer, dict):
            raise ApiUnavailable(f"{what}: the answer is not an object", code)
        return answer

    def _was_silent(self) -> None:
        """Requests that hang would hold up those who ask, one after the other; most of them are spared that."""
        self._silences += 1
        pause_s = min(2.0 ** (self._silences - 1), self._longest_pause_s)
        self._pause_until = max(self._pause_until, self._clock() + pause_s)

    def _refusal(self, what: str, code: int, content: bytes, headers: Mapping[str, str]) -> ApiError:
        message = f"{what} answers {code}: {_said(content)}"
        if code in (408, 429) or code >= 500:
            retry_after_s = _seconds(headers.get("Retry-After"))
            if retry_after_s is not None:
                self._pause_until = max(self._pause_until, self._clock() + retry_after_s)
            return ApiUnavailable(message, code, retry_after_s)
        return _REFUSALS.get(code, ApiInvalid)(message, code)


def _said(content: bytes) -> str:
    """The message in a Status object, or the beginning of whatever else came."""
    try:
        message = json.loads(content)["message"]
    except (ValueError, KeyError, TypeError):
        message = content[:_LONGEST_MESSAGE].decode(errors="replace")
    return str(message)[:_LONGEST_MESSAGE].strip()


def _seconds(retry_after: str | None) -> float | None:
    try:
        return min(max(float(retry_after or ""), 0.0), _LONGEST_PAUSE_S)
    except ValueError:
        return None
