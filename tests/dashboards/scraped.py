"""A real deployment on this machine under a real Prometheus: engines, gateway, operator, load, and scrapes of all.

Nothing is imitated: the operator is the reconciler over the world of local processes with the series that it has in a
cluster, the engines serve the shipped model, and Prometheus finds them as it would pods, by a list of targets that says
whose they are.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from dashboards.ask import Prometheus
from prometheus_server import Targets, serving

from capstan_api import names
from capstan_api.v1alpha1 import InferenceDeployment, parse
from capstan_operator.decide.seen.observation import Phase
from capstan_operator.health import HealthServer
from capstan_operator.reconcile import Reconciler, Turn
from capstan_operator.telemetry import Telemetry
from capstan_operator.world.kubernetes.store import Key
from capstan_operator.world.processes import ProcessesWorld

NAMESPACE = "default"
Profile = Sequence[tuple[float, int]]
"""(seconds, clients at the same time), one after another; the last one lasts."""


class Scraped:
    """One deployment, its operator and its Prometheus. Made by `scraped`."""

    def __init__(
        self, deployment: InferenceDeployment, directory: Path, prometheus: Prometheus, targets: Targets
    ) -> None:
        self.deployment = deployment
        self.prometheus = prometheus
        self.turns: list[Turn] = []
        self._key = Key(NAMESPACE, deployment.metadata.name)
        self._targets = targets
        self._world = ProcessesWorld(directory / "run", gateway_port=0)
        self._telemetry = Telemetry(ages=dict, is_leader=lambda: True)

    @property
    def name(self) -> str:
        return self.deployment.metadata.name

    async def operate(self, stop: asyncio.Event) -> None:
        """The operator, until told to stop; then everything that it started ends."""
        health = HealthServer(alive=list, ready=list, page=self._telemetry.page)
        port = await health.start("127.0.0.1", 0)
        announcing = asyncio.create_task(self._announce(f"127.0.0.1:{port}"))

        def turned(turn: Turn) -> None:
            self.turns.append(turn)
            self._telemetry.turned(self._key, turn)

        try:
            await Reconciler(self._world, lambda: self.deployment).run(stop, turned)
        finally:
            announcing.cancel()
            await asyncio.gather(announcing, return_exceptions=True)
            await self._world.close()
            await health.close()

    async def load(self, profile: Profile) -> None:
        """Clients of every class that never tire: a refused one comes again. Fails when the requests are wrong."""
        url = await self.ready()
        clients: list[asyncio.Task[None]] = []
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session:
            try:
                for seconds, wanted in profile:
                    for task in clients[wanted:]:
                        task.cancel()
                    del clients[wanted:]
                    clients += [asyncio.create_task(self._client(session, url, n)) for n in range(len(clients), wanted)]
                    await asyncio.sleep(seconds)
                await asyncio.gather(*clients)
            finally:
                for task in clients:
                    task.cancel()
                await asyncio.gather(*clients, return_exceptions=True)

    async def _client(self, session: aiohttp.ClientSession, url: str, number: int) -> None:
        """One request after another. Prompts begin alike, so that prefixes can be found again."""
        spec = self.deployment.spec
        model = next(iter(spec.model.served_model_names), self.name)
        headers = {names.HEADER_SLO_CLASS: spec.slos[number % len(spec.slos)].name}
        for turn in range(1_000_000):
            body = {
                "model": model,
                "prompt": f"The harbour of the old town, chapter {turn % 7}. " * 4 + f"{number}-{turn}",
                "max_tokens": 16 + 16 * (turn % 4),
                "stream": turn % 2 == 0,
            }
            try:
                async with session.post(f"{url}/v1/completions", json=body, headers=headers) as response:
                    text = await response.text()
                    refused = response.status == 429 or response.status >= 500
                    assert response.status == 200 or refused, f"the load itself is wrong: {text}"
            except aiohttp.ClientError:
                refused = True
            if refused:
                await asyncio.sleep(0.5)

    async def ready(self) -> str:
        """The address that clients use, once a replica is there to serve them."""
        while True:
            replicas, gateways = await self._world.replicas(), await self._world.gateways()
            urls = [facts.url for facts in gateways if facts.phase is Phase.READY and facts.url is not None]
            if urls and any(facts.phase is Phase.READY for facts in replicas):
                return urls[0]
            await asyncio.sleep(0.1)

    async def _announce(self, operator: str) -> None:
        """Tell Prometheus who listens where, again and again: replicas come and go."""
        told: list[tuple[str, dict[str, str]]] = []
        while True:
            found = [(operator, {"namespace": "capstan-system", "pod": "capstan-operator"})]
            for facts in [*await self._world.replicas(), *await self._world.gateways()]:
                if facts.url is not None and facts.phase is Phase.READY:
                    labels = {"namespace": NAMESPACE, "deployment": self.name, "pod": facts.id}
                    found.append((facts.url.removeprefix("http://"), labels))
            if found != told:
                self._targets.tell(found)
                told = found
            await asyncio.sleep(0.5)


@asynccontextmanager
async def scraped(
    document: dict[str, Any], directory: Path, prometheus: str, profile: Profile
) -> AsyncIterator[Scraped]:
    """A deployment under load and scrapes; nothing of it outlives the context. `prometheus` is the program."""
    stop = asyncio.Event()
    with serving(directory, prometheus) as (server, targets):
        running = Scraped(parse(document), directory, server, targets)
        operator, load = asyncio.create_task(running.operate(stop)), asyncio.create_task(running.load(profile))
        try:
            yield running
        finally:
            load.cancel()
            (ended,) = await asyncio.gather(load, return_exceptions=True)
            stop.set()
            await operator
        if not isinstance(ended, asyncio.CancelledError):
            raise AssertionError("the load ended by itself") from ended
