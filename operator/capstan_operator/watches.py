"""The watches: kopf as the runtime that lists, watches and reconnects, and what tells whether it still hears anything.

kopf runs in a thread with a loop of its own. When it fails, as it does on an error inside a stream, everything in that
loop is ended, and it is started again without anything else noticing. Handlers are the simplest there are: no
finalizer, no annotation, nothing is ever written by it.

The surprising idea: a watch proves that it lives by the bytes that arrive on it. kopf keeps bookmarks to itself, but
lets us bring the HTTP session, and the count of received bytes moves with every bookmark.
"""

import asyncio
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, Final

import aiohttp
import kopf
from kubernetes.aio.client.api_client import ApiClient

from capstan_api import names
from capstan_operator.world.kubernetes.access import DEPLOYMENTS, INFERENCE_DEPLOYMENTS, PODS, Resource

logger = logging.getLogger(__name__)

WATCHED: Final[Mapping[Resource, str]] = {
    INFERENCE_DEPLOYMENTS: "",
    PODS: names.LABEL_DEPLOYMENT,
    DEPLOYMENTS: names.LABEL_DEPLOYMENT,
}
"""What is watched, and the label selector of the objects that matter."""

Deliver = Callable[[Resource, dict[str, Any], bool], None]
"""Called in the thread of the watches with (resource, object, whether it is gone)."""

_LONGEST_PAUSE_S: Final = 30.0
_STABLE_S: Final = 60.0
_STOP_S: Final = 5.0


class Backoff:
    """Pauses that double up to half a minute, drawn anew each time and without an end. May be iterated again."""

    def __iter__(self) -> Iterator[float]:
        longest_s = 1.0
        while True:
            yield longest_s * random.uniform(0.5, 1.0)  # noqa: S311 - nothing is guarded by it
            longest_s = min(longest_s * 2, _LONGEST_PAUSE_S)


class Hearing:
    """When each watch was last heard. One per resource and namespace; called from two threads.

    `ages` must be asked now and then: bytes that have come count from when they are noticed.
    """

    def __init__(self, expected: Sequence[tuple[str, str]], *, clock: Callable[[], float] = time.monotonic) -> None:
        """`expected` are (plural, namespace), with "" for all namespaces. A watch never heard is as old as this."""
        self._clock = clock
        self._lock = threading.Lock()
        self._heard_at = dict.fromkeys(expected, clock())
        self._watching: dict[tuple[str, str], tuple[aiohttp.ClientResponse, int]] = {}

    @property
    def is_complete(self) -> bool:
        """Whether every watch was opened once, which comes after its list."""
        with self._lock:
            return self._watching.keys() == self._heard_at.keys()

    def answered(self, path: str, query: Mapping[str, str], response: aiohttp.ClientResponse) -> None:
        """A request has its head of an answer."""
        key = _key(path)
        if response.status != 200 or key not in self._heard_at:
            return
        with self._lock:
            self._heard_at[key] = self._clock()
            if query.get("watch"):
                self._watching[key] = (response, response.content.total_bytes)

    def ages(self) -> dict[str, float]:
        """Seconds since the watches of a resource were heard, the oldest of its namespaces."""
        with self._lock:
            now = self._clock()
            for key, (response, known) in self._watching.items():
                if response.content.total_bytes != known:
                    self._watching[key] = (response, response.content.total_bytes)
                    self._heard_at[key] = now
            ages: dict[str, float] = {}
            for (plural, _), at in self._heard_at.items():
                ages[plural] = max(ages.get(plural, 0.0), now - at)
            return ages


class Watches:
    """Watches the namespaces, or all of them when there are none."""

    def __init__(self, client: ApiClient, namespaces: Sequence[str], deliver: Deliver) -> None:
        self._client = client
        self._namespaces = tuple(namespaces)
        self._deliver = deliver
        self.hearing = Hearing([(r.plural, n) for r in WATCHED for n in self._namespaces or ("",)])
        self._stop = threading.Event()
        self._interrupt: Callable[[], None] = lambda: None
        self._session: aiohttp.ClientSession | None = None
        # A daemon: the end of the process never waits for kopf.
        self._thread = threading.Thread(target=self._run, name="watches", daemon=True)

    def start(self) -> None:
        self._thread.start()

    async def stop(self) -> None:
        self._stop.set()
        self._interrupt()
        await asyncio.to_thread(self._thread.join, _STOP_S)

    def _run(self) -> None:
        pauses = iter(Backoff())
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                asyncio.run(self._watch())
                why = "without an error"
            except Exception as error:
                # kopf ends with whatever broke in it, and beginning again is the remedy for all of it.
                why = f"{type(error).__name__}: {error}"
            if self._stop.is_set():
                return
            if time.monotonic() - began > _STABLE_S:
                pauses = iter(Backoff())
            pause_s = next(pauses)
            logger.warning("the watches ended (%s); they start again in %.1f s", why, pause_s)
            self._stop.wait(pause_s)

    async def _watch(self) -> None:
        """Run kopf until it fails or is interrupted, and end whatever it leaves behind."""
        loop, interrupted = asyncio.get_running_loop(), asyncio.Event()
        # Callbacks that find their loop at its end are none of anybody's business.
        loop.set_exception_handler(lambda _, context: logger.debug("kopf: %s", context["message"]))
        tasks = await kopf.spawn_tasks(
            registry=self._registry(),
            settings=settings(),
            clusterwide=not self._namespaces,
            namespaces=self._namespaces,
            standalone=True,
        )
        self._interrupt = lambda: _set_from_outside(loop, interrupted)
        if self._stop.is_set():
            interrupted.set()
        try:
            waiting = asyncio.create_task(interrupted.wait())
            done, _ = await asyncio.wait({*tasks, waiting}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            # Again and again: a watch that is cancelled while it reconnects swallows it and goes on.
            while left := asyncio.all_tasks() - {asyncio.current_task()}:
                for task in left:
                    task.cancel()
                await asyncio.wait(left, timeout=0.5)
            if self._session is not None:
                await self._session.close()

    def _registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()
        kopf.on.login(registry=registry)(self._log_in)
        for resource in WATCHED:
            # One function for each, because kopf tells handlers apart by their names.
            kopf.on.event(resource.group, resource.version, resource.plural, registry=registry, id=resource.plural)(
                self._handler(resource)
            )
        return registry

    def _handler(self, resource: Resource) -> Any:
        async def handler(event: Mapping[str, Any], **_: Any) -> None:
            manifest = event["object"]
            # A third of an object, and of no use to us.
            metadata = {key: value for key, value in manifest["metadata"].items() if key != "managedFields"}
            kinds = {"apiVersion": resource.api_version, "kind": resource.kind}
            self._deliver(resource, {**manifest, **kinds, "metadata": metadata}, event["type"] == "DELETED")

        return handler

    async def _log_in(self, **_: Any) -> kopf.AiohttpSession:
        """kopf speaks with our credentials, and asks again when they are refused."""
        trace = aiohttp.TraceConfig()
        trace.on_request_start.append(self._authorize)
        trace.on_request_end.append(self._answered)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=self._client.rest_client.ssl_context), trace_configs=[trace]
        )
        return kopf.AiohttpSession(server=self._client.configuration.host, aiohttp_session=self._session)

    async def _authorize(
        self, _: aiohttp.ClientSession, __: SimpleNamespace, params: aiohttp.TraceRequestStartParams
    ) -> None:
        # For each request, because tokens are renewed while we run.
        headers: dict[str, str] = {}
        await self._client.update_params_for_auth(headers, [], ["BearerToken"], params.url.path, params.method, None)
        params.headers.update(headers)

    async def _answered(
        self, _: aiohttp.ClientSession, __: SimpleNamespace, params: aiohttp.TraceRequestEndParams
    ) -> None:
        self.hearing.answered(params.url.path, params.url.query, params.response)


def settings() -> kopf.OperatorSettings:
    """How kopf behaves. What is not set here has a good default, or concerns what it never does for us."""
    chosen = kopf.OperatorSettings()
    chosen.networking.connect_timeout = 5
    chosen.networking.request_timeout = 30
    # Without an end: a request given up would end kopf.
    chosen.networking.error_backoffs = Backoff()
    chosen.networking.enforce_retry_after = True
    # Bookmarks come every minute, so silence beyond it is a dead connection.
    chosen.watching.server_timeout = 300
    chosen.watching.inactivity_timeout = 70
    chosen.watching.connect_timeout = 5
    for resource, selector in WATCHED.items():
        if selector:
            chosen.watching.label_selectors[resource.group, resource.version, resource.plural] = selector
    # Watching namespaces and CustomResourceDefinitions would need rights on the whole cluster.
    chosen.scanning.disabled = True
    chosen.peering.standalone = True
    # No bound: a worker only hands its event over, then idles; twenty idlers would keep ten thousand pods waiting.
    chosen.queueing.worker_limit = None
    chosen.queueing.idle_timeout = 0.5
    chosen.queueing.exit_timeout = 1
    # We write Events of our own.
    chosen.posting.enabled = False
    chosen.execution.default_backoff = 10
    chosen.process.ultimate_exiting_timeout = None
    # Nothing is ever kept in the objects. Said twice, because the defaults copy each object to compare it with this.
    chosen.persistence.finalizer = f"{names.GROUP}/never-used"
    chosen.persistence.diffbase_storage = _NoDiffBase()
    chosen.persistence.progress_storage = _NoProgress()
    return chosen


def _set_from_outside(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    # A loop that has ended just now needs no telling.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(event.set)


class _NoDiffBase(kopf.DiffBaseStorage):
    """Remembers no object."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        return


class _NoProgress(kopf.ProgressStorage):
    """Remembers no handler."""

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        return

    def purge(self, **_: Any) -> None:
        return

    def touch(self, **_: Any) -> None:
        return

    def clear(self, *, essence: Any) -> Any:
        return essence


def _key(path: str) -> tuple[str, str]:
    """(plural, namespace) of a list's or watch's path."""
    parts = path.strip("/").split("/")
    namespace = parts[parts.index("namespaces") + 1] if "namespaces" in parts[:-1] else ""
    return parts[-1], namespace
