"""One look at the world: facts from the world, numbers from the processes themselves, all asked at the same time.

Judges nothing and never fails because a process does: what could not be read is absent from the observation, and named
in its faults.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress

from capstan_api.v1alpha1 import InferenceDeployment
from capstan_operator.admin import AdminClient
from capstan_operator.decide.memory import Memory
from capstan_operator.decide.seen.observation import ConfigurationFault, Gateway, Observation, Phase, Replica
from capstan_operator.errors import AdminError, ModelNotFound, ScrapeError
from capstan_operator.patience import Patience
from capstan_operator.scrape import Scraper, engine_metrics, gateway_metrics
from capstan_operator.world.base import GatewayFacts, ReplicaFacts, World

_SERVING = (Phase.READY, Phase.DRAINING)


class Observer:
    """Looks at one world. `clock` gives epoch seconds."""

    def __init__(
        self, world: World, scraper: Scraper, admin: AdminClient, *, max_step_samples: int, clock: Callable[[], float]
    ) -> None:
        self._world = world
        self._scraper = scraper
        self._admin = admin
        self._max_step_samples = max_step_samples
        self._clock = clock
        self._patience = Patience()

    async def observe(
        self,
        deployment: InferenceDeployment,
        memory: Memory,
        *,
        configuration_fault: ConfigurationFault | None = None,
        refused: tuple[str, ...] = (),
    ) -> Observation:
        """`memory` says which step samples were seen before; the rest is passed on."""
        faults: list[str] = []
        try:
            model_directory = str(self._world.model_directory(deployment.spec.model.source.uri))
        except ModelNotFound as error:
            model_directory = None
            faults.append(str(error))
        gateway_facts, replica_facts = await self._world.gateways(), await self._world.replicas()
        urls = [*(facts.url for facts in gateway_facts), *(facts.url for facts in replica_facts)]
        self._patience.only({url for url in urls if url is not None})
        classes = [slo.name for slo in deployment.spec.slos]
        gateways, replicas = await asyncio.gather(
            asyncio.gather(*(self._gateway(facts, classes, faults) for facts in gateway_facts)),
            asyncio.gather(*(self._replica(facts, memory, faults) for facts in replica_facts)),
        )
        return Observation(
            at=self._clock(),
            replicas=tuple(sorted(replicas, key=lambda r: r.id)),
            gateways=tuple(sorted(gateways, key=lambda g: g.id)),
            endpoint=self._world.endpoint,
            configuration_fault=configuration_fault,
            model_directory=model_directory,
            refused=refused,
            faults=tuple(faults),
        )

    async def _gateway(self, facts: GatewayFacts, classes: Iterable[str], faults: list[str]) -> Gateway:
        gateway = Gateway(
            id=facts.id, revision=facts.revision, phase=facts.phase, restarts=facts.restarts, message=facts.message
        )
        if facts.phase not in _SERVING or facts.url is None or facts.admin_url is None:
            return gateway
        try:
            self._must_be_asked(facts.url)
            page = await self._scraper.gateway(facts.url)
            table = await self._admin.table(facts.admin_url)
            metrics = gateway_metrics(page, self._clock(), classes)
        except (ScrapeError, AdminError) as error:
            self._missed(facts, facts.url, error, faults)
            return gateway
        self._patience.answered(facts.url)
        return gateway.changed(metrics=metrics, table=table)

    async def _replica(self, facts: ReplicaFacts, memory: Memory, faults: list[str]) -> Replica:
        replica = Replica(
            id=facts.id,
            revision=facts.revision,
            phase=facts.phase,
            created_at=facts.created_at,
            ready_at=facts.ready_at,
            restarts=facts.restarts,
            url=facts.url,
            message=facts.message,
        )
        if facts.phase is Phase.STARTING and facts.admin_url is not None:
            # One that does not listen yet has nothing to tell, and that is no fault.
            with suppress(AdminError):
                return replica.changed(startup=await self._admin.startup(facts.admin_url))
        if facts.phase not in _SERVING or facts.url is None or facts.admin_url is None:
            return replica
        track = memory.window.tracks.get(facts.id)
        after = int(track.last_step) if track is not None and track.is_of(replica) else 0
        try:
            self._must_be_asked(facts.url)
            # First alone: a silent one costs one attempt, and there may be thousands.
            page = await self._scraper.engine(facts.url)
            samples, limits = await asyncio.gather(
                self._admin.steps(facts.admin_url, after=after, limit=self._max_step_samples),
                self._admin.limits(facts.admin_url),
            )
            metrics = engine_metrics(page, self._clock(), samples)
        except (ScrapeError, AdminError) as error:
            self._missed(facts, facts.url, error, faults)
            return replica
        self._patience.answered(facts.url)
        figures = None
        if memory.told is None or track is None or not track.is_of(replica):
            # They stay the same for as long as it runs. One that has none to tell serves as well without.
            with suppress(AdminError):
                figures = await self._admin.figures(facts.admin_url)
        return replica.changed(metrics=metrics, limits=limits, figures=figures)

    def _must_be_asked(self, url: str) -> None:
        """Raises what it last failed with while it is too early to ask again."""
        silence = self._patience.refuses(url, self._clock())
        if silence is not None:
            raise ScrapeError(silence)

    def _missed(self, facts: GatewayFacts | ReplicaFacts, url: str, error: Exception, faults: list[str]) -> None:
        if self._patience.refuses(url, self._clock()) is None:
            self._patience.failed(url, str(error), self._clock())
        # One that is leaving may close its doors at any moment.
        if facts.phase is not Phase.DRAINING:
            faults.append(f"{facts.id}: {error}")
