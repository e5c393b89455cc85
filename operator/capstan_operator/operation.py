"""One running operator: watches, store, loops, lease, health port and clocks, put together.

Knows what depends on what and nothing else. The order matters: nothing is decided before every watch was opened and the
store was compared with the API server once, because an operator that knows half of the pods would start the others
again; and the lease is given back last, when no loop can write any more.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from kubernetes.aio.client.api_client import ApiClient

from capstan_api import names
from capstan_api.manifest import InvalidResource
from capstan_api.v1alpha1 import InferenceDeployment
from capstan_operator.admission import review
from capstan_operator.apart import Apart
from capstan_operator.bounded_http import BoundedHttp
from capstan_operator.budgets import Budgets
from capstan_operator.config import OperatorConfig
from capstan_operator.errors import ApiError
from capstan_operator.fleet import Crew, Fleet, Manifest
from capstan_operator.health import HealthServer
from capstan_operator.invalid import not_understood
from capstan_operator.journal import Journal
from capstan_operator.lease import Alone, Leadership, Lease, Terms, uninterrupted_s
from capstan_operator.pace import Pace
from capstan_operator.reconcile import Reconciler, Turn
from capstan_operator.telemetry import Telemetry
from capstan_operator.watches import WATCHED, Backoff, Watches
from capstan_operator.webhook import Certificate, Webhook
from capstan_operator.world.base import World
from capstan_operator.world.kubernetes.access import INFERENCE_DEPLOYMENTS, Resource
from capstan_operator.world.kubernetes.api import KubernetesApi
from capstan_operator.world.kubernetes.cluster import Cluster
from capstan_operator.world.kubernetes.resync import resync
from capstan_operator.world.kubernetes.store import Key, Store
from capstan_operator.world.kubernetes.world import KubernetesWorld

logger = logging.getLogger(__name__)

_TICK_S: Final = 1.0
_NUM_ENTERING: Final = 16
_NUM_TURNING: Final = 32
_SHARE_OF_PATIENCE: Final = 0.1
_LONGEST_WITHOUT_TRY_S: Final = 60.0


class Operation:
    """Runs until told to stop. `client` is the way to the API server; `key` the operator's own."""

    def __init__(self, config: OperatorConfig, key: bytes, client: ApiClient) -> None:
        """Raises `InvalidConfig`."""
        self._config = config
        settings = config.settings()
        self._leader = self._leadership(client)
        self._telemetry = Telemetry(
            ages=self._ages, is_leader=lambda: self._leader.is_held, budgets=config.accelerator_budgets
        )
        self._api = KubernetesApi(
            client,
            fence=self._leader.check,
            on_call=self._telemetry.called,
            max_concurrent=config.api.max_concurrent_requests,
            connect_timeout_s=config.api.connect_timeout_seconds,
            request_timeout_s=config.api.request_timeout_seconds,
        )
        self._journal = Journal()
        self._store = Store(self._changed)
        self._http = BoundedHttp(settings, fence=self._leader.check)
        self._cluster = Cluster(
            self._api, self._store, config.installation(), key, self._http, instance=config.identity()
        )
        self._pace = Pace(settings.turn_interval_s, config.cpu_share)
        self._budgets = Budgets(config.accelerator_budgets, self._store.manifests)
        entrance, room = asyncio.Semaphore(_NUM_ENTERING), asyncio.Semaphore(_NUM_TURNING)

        def reconciler(world: World, source: Callable[[], InferenceDeployment]) -> Reconciler:
            interval_s = lambda: self._pace.interval_s  # noqa: E731 - it is asked after every turn
            return Reconciler(
                world,
                source,
                settings=settings,
                interval_s=interval_s,
                budgets=self._budgets,
                entrance=entrance,
                room=room,
                fence=self._leader.check,
            )

        self._fleet = Fleet(
            self._store,
            Crew(
                reconciler=reconciler,
                world=lambda deployment: KubernetesWorld(self._cluster, deployment),
                on_turn=self._turned,
                on_gone=self._gone,
                report_invalid=self._report_invalid,
                patience_s=lambda: self._pace.interval_s * _SHARE_OF_PATIENCE,
            ),
        )
        self._client = client
        self._watches: Watches | None = None
        self._knows_all = False
        self._is_echo = False
        # When the API server last told whether it has our kind.
        self._asked_at = time.monotonic()
        self._health = HealthServer(alive=self._not_alive, ready=self._not_ready, page=self._telemetry.page)

    async def run(self, stop: asyncio.Event) -> None:
        """Operate until `stop` is set. Raises what nobody expected."""
        port = await self._health.start(self._config.health_host, self._config.health_port)
        logger.info("health and metrics on port %d", port)
        serving, asked = asyncio.create_task(self._serve()), asyncio.create_task(stop.wait())
        try:
            await asyncio.wait((serving, asked), return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()
        finally:
            asked.cancel()
            serving.cancel()
            with suppress(asyncio.CancelledError):
                await serving
            await self._fleet.close()
            await self._leader.release()
            if self._watches is not None:
                await self._watches.stop()
            await self._health.close()
            await self._http.close()
            await self._api.close()

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_time())
            if (admission := self._config.admission).certificate_file and admission.key_file:
                certificate = Certificate(admission.certificate_file, admission.key_file)
                tasks.create_task(Webhook(self._review, certificate).run(admission.host, admission.port))
            await self._wait_for_kind()
            loop = asyncio.get_running_loop()
            self._watches = Watches(
                self._client,
                self._config.watch_namespaces,
                lambda resource, manifest, gone: _hand_over(loop, self._take, resource, manifest, gone),
            )
            self._watches.start()
            await self._learn()
            tasks.create_task(self._leader.run(self._fleet.lead))
            tasks.create_task(self._resync())

    async def _wait_for_kind(self) -> None:
        """kopf looks once, when it starts, for what there is to watch."""
        for pause_s in Backoff():
            try:
                if await self._api.serves(INFERENCE_DEPLOYMENTS):
                    return
                self._asked_at = time.monotonic()
                logger.warning("the API server has no %s: install the CustomResourceDefinition", names.PLURAL)
            except ApiError as error:
                logger.warning("%s", error)
            await asyncio.sleep(pause_s)

    async def _learn(self) -> None:
        """Return when the store holds everything that there is."""
        assert self._watches is not None
        while not self._watches.hearing.is_complete:  # noqa: ASYNC110 - another thread completes it
            await asyncio.sleep(0.05)
        for pause_s in Backoff():
            if await self._compare():
                self._knows_all = True
                return
            await asyncio.sleep(pause_s)

    async def _resync(self) -> None:
        while True:
            await asyncio.sleep(self._config.resync_seconds)
            await self._compare()

    async def _compare(self) -> bool:
        """Have the store agree with the API server; whether that was possible."""
        for resource, selector in WATCHED.items():
            try:
                wrong = await resync(
                    self._api, self._store, resource, namespaces=self._config.watch_namespaces, selector=selector
                )
            except ApiError as error:
                logger.warning("what is known of %s cannot be compared: %s", resource.plural, error)
                return False
            if wrong and self._knows_all:
                logger.warning("%d %s differed from what the watch had said", wrong, resource.plural)
        return True

    async def _keep_time(self) -> None:
        """Watch over the processor time, and listen to the watches often enough."""
        used_s, at = time.process_time(), time.monotonic()
        while True:
            await asyncio.sleep(_TICK_S)
            self._ages()
            now_used_s, now = time.process_time(), time.monotonic()
            self._pace.used(now_used_s - used_s, now - at)
            used_s, at = now_used_s, now
            self._telemetry.paced(self._pace.interval_s, len(self._store.deployments()))

    def _take(self, resource: Resource, manifest: Manifest, gone: bool) -> None:
        """An event of a watch."""
        if resource == INFERENCE_DEPLOYMENTS and not gone:
            metadata = manifest["metadata"]
            known = self._store.deployment(Key(metadata["namespace"], metadata["name"]))
            # Our own writes of status come back; they are no news, and a turn for each would double the work.
            self._is_echo = known is not None and _essence(known) == _essence(manifest)
        self._store.take(resource, manifest, gone=gone)
        self._is_echo = False

    def _changed(self, key: Key) -> None:
        if not self._is_echo:
            self._fleet.wake(key)

    def _turned(self, key: Key, turn: Turn) -> None:
        self._telemetry.turned(key, turn)
        self._journal.turned(key, turn)

    def _gone(self, key: Key) -> None:
        self._telemetry.gone(key)
        self._journal.gone(key)
        self._budgets.gone(key.namespace, key.name)

    def _ages(self) -> dict[str, float]:
        return self._watches.hearing.ages() if self._watches is not None else {}

    def _not_alive(self) -> list[str]:
        limit_s = self._config.max_blind_seconds
        complaints = [
            f"the watch of {resource} was not heard for {age:.0f} s"
            for resource, age in self._ages().items()
            if age > limit_s
        ]
        if self._watches is None and time.monotonic() - self._asked_at > limit_s:
            complaints.append("the API server does not answer")
        if self._knows_all and uninterrupted_s() - self._leader.tried_at > _LONGEST_WITHOUT_TRY_S:
            complaints.append("the lease is not attended to")
        return complaints

    def _not_ready(self) -> list[str]:
        return [] if self._knows_all else ["not all objects are known yet"]

    def _review(self, document: object) -> dict[str, Any]:
        answer = review(document, self._store)
        self._telemetry.reviewed(answer["response"])
        return answer

    async def _report_invalid(self, manifest: Manifest, error: InvalidResource) -> None:
        metadata, status = manifest["metadata"], not_understood(manifest, error, time.time())
        self._telemetry.not_understood(Key(metadata["namespace"], metadata["name"]), status)
        applied = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {name: metadata[name] for name in ("name", "namespace", "uid")},
            "status": status.model_dump(mode="json", by_alias=True, exclude_none=True),
        }
        await self._api.apply(INFERENCE_DEPLOYMENTS, applied, subresource="status")

    def _leadership(self, client: ApiClient) -> Leadership:
        lease = self._config.lease
        if not lease.enabled:
            return Alone()
        # A thread and a connection of its own: a renewal must not queue behind loops, requests or pauses of others.
        api = KubernetesApi(
            ApiClient(client.configuration),
            on_call=lambda call: self._telemetry.called(call),
            max_concurrent=1,
            connect_timeout_s=lease.margin_seconds,
            request_timeout_s=lease.margin_seconds,
            longest_pause_s=0.0,
        )
        terms = Terms(
            name=lease.name,
            namespace=self._config.lease_namespace(),
            identity=self._config.identity(),
            duration_s=lease.duration_seconds,
            renew_s=lease.renew_seconds,
            margin_s=lease.margin_seconds,
        )
        return Apart(Lease(api, terms), api.close)


def _hand_over(
    loop: asyncio.AbstractEventLoop,
    take: Callable[[Resource, Manifest, bool], None],
    resource: Resource,
    manifest: Manifest,
    gone: bool,
) -> None:
    """From the thread of the watches to ours; at the very end there may be nobody left."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(take, resource, manifest, gone)


def _essence(manifest: Manifest) -> tuple[object, ...]:
    """What of an InferenceDeployment concerns its loop: everything but its status."""
    metadata = manifest["metadata"]
    return (metadata["uid"], metadata.get("generation"), metadata.get("deletionTimestamp"))
