"""From a page to a decision: numbers that cannot be change nothing that was learnt or decided, and are reported."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from worlds import NOW, deployment, learnt, samples

from capstan_api.metrics import Engine, Gateway
from capstan_operator.admin import AdminClient
from capstan_operator.bounded_http import BoundedHttp
from capstan_operator.decide import Decision, Memory, decide, render
from capstan_operator.decide.actions import DrainReplica, SetLimits, StartReplica, StopReplica
from capstan_operator.decide.seen.observation import Phase
from capstan_operator.decide.seen.steps import StepSample
from capstan_operator.observe import Observer
from capstan_operator.scrape import Scraper
from capstan_operator.settings import OperatorSettings
from capstan_operator.world.base import GatewayFacts, ReplicaFacts

WEB = deployment(scaling={"minReplicas": 1, "maxReplicas": 6})
ENGINE_ID = f"web-{render.revision(WEB)}-0"
ENVELOPE = render.envelope(WEB)


class House:
    """One engine and one gateway on one port, whose pages a test spoils. `now` is everybody's clock."""

    admin_token = "token"
    endpoint = "http://web"

    def __init__(self) -> None:
        self.now = NOW
        self.num_turns = 0
        self.steps: Any = None
        self.spoil: Callable[[str, str], str] = lambda _, page: page
        self.memory: Memory = learnt(WEB, wanted=2)
        self.url = ""

    def model_directory(self, uri: str) -> Path:
        return Path("/models/tiny")

    async def replicas(self) -> list[ReplicaFacts]:
        since = NOW - 1000
        return [ReplicaFacts(ENGINE_ID, render.revision(WEB), Phase.READY, since, since + 10, 0, self.url, self.url)]

    async def gateways(self) -> list[GatewayFacts]:
        url = f"{self.url}/gateway"
        return [GatewayFacts("gateway", render.gateway_revision(WEB), Phase.READY, 0, url, url)]

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/metrics", self._engine_page)
        app.router.add_get("/gateway/metrics", self._gateway_page)
        app.router.add_get("/gateway/admin/replicas", self._table)
        app.router.add_get("/admin/limits", self._limits)
        app.router.add_get("/admin/steps", self._steps)
        return app

    async def _engine_page(self, _: web.Request) -> web.Response:
        numbers = {
            Engine.RUNNING: 3,
            Engine.WAITING: 0,
            Engine.KV_USAGE: 0.2,
            Engine.PREFIX_QUERIES: 100 * self.num_turns,
            Engine.PREFIX_HITS: 10 * self.num_turns,
            Engine.STEPS: 40 * self.num_turns,
            Engine.HEARTBEAT: 50 * self.num_turns,
            Engine.BUSY: 0.5 * self.num_turns,
        }
        page = "".join(f"{metric.name} {value}\n" for metric, value in numbers.items())
        return web.Response(text=self.spoil("engine", page))

    async def _gateway_page(self, _: web.Request) -> web.Response:
        requests = 4 * self.num_turns
        lines = [f"{Gateway.HELD.name} 0", f'{Gateway.IN_FLIGHT.name}{{replica="{ENGINE_ID}"}} 3']
        for metric, value in (
            (Gateway.REQUESTS, requests),
            (Gateway.SLO_TOTAL, requests),
            (Gateway.PROMPT_TOKENS, 200 * requests),
            (Gateway.OUTPUT_TOKENS, 50 * requests),
        ):
            lines.append(f'{metric.name}{{slo_class="interactive"}} {value}')
        lines.append(f'{Gateway.RESPONSES.name}{{slo_class="interactive",outcome="completed"}} {requests}')
        lines.append(f'{Gateway.SLO_GOOD.name}{{slo_class="interactive",objective="all"}} {requests}')
        return web.Response(text=self.spoil("gateway", "\n".join(lines) + "\n"))

    async def _table(self, _: web.Request) -> web.Response:
        return web.json_response({"replicas": [], "version": None})

    async def _limits(self, _: web.Request) -> web.Response:
        """Whatever it was told last."""
        decided = self.memory.limits.of(ENGINE_ID) or ENVELOPE.top
        state = {
            "limits": decided.model_dump(),
            "defaults": ENVELOPE.top.model_dump(),
            "envelope": ENVELOPE.model_dump(),
            "version": 1,
            "lease_remaining_seconds": None,
            "reason": "",
        }
        return web.json_response(state)

    async def _steps(self, request: web.Request) -> web.Response:
        if self.steps is not None:
            return web.Response(text=self.steps)
        after = int(request.query["after"])
        taken = samples(40, start=40 * (self.num_turns - 1) + 1)
        return web.json_response({"steps": [s for s in taken if s.number > after], "now": 1.0})

    async def turn(self, observer: Observer) -> Decision:
        self.now, self.num_turns = self.now + 1, self.num_turns + 1
        decision = decide(WEB, await observer.observe(WEB, self.memory), self.memory, self.now)
        self.memory = decision.memory
        return decision


@asynccontextmanager
async def open_house() -> AsyncIterator[tuple[House, Observer]]:
    """After three healthy turns."""
    settings = OperatorSettings(http_timeout_s=5.0, max_series=2000)
    house = House()
    runner = web.AppRunner(house.app(), shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    house.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    http = BoundedHttp(settings)
    observer = Observer(
        house,  # type: ignore[arg-type]
        Scraper(http, settings),
        AdminClient(http, "token"),
        max_step_samples=512,
        clock=lambda: house.now,
    )
    try:
        for _ in range(3):
            assert not (await house.turn(observer)).signals.faults
        yield house, observer
    finally:
        await http.close()
        await runner.cleanup()


def replaced(role: str, name: str, text: str) -> Callable[[str, str], str]:
    """That line of that page instead of the real one."""

    def spoil(of: str, page: str) -> str:
        if of != role:
            return page
        lines = [text if line.startswith(name) else line for line in page.splitlines()]
        assert text in lines
        return "\n".join(lines) + "\n"

    return spoil


def step(**fields: Any) -> str:
    good = StepSample(200, 1.0, 0.02, 64, 4, 900, 2048.0)._replace(**fields)
    return json.dumps({"steps": [good], "now": 1.0})


REQUESTS = f'{Gateway.REQUESTS.name}{{slo_class="interactive"}}'
ABSURD = ("NaN", "-1", "1e300", "+Inf", "-Inf")


async def unmoved(house: House, observer: Observer, told_by: str) -> Decision:
    """One more turn, in which nothing may be learnt or done, and the fault be told."""
    before = house.memory
    decision = await house.turn(observer)
    if told_by.startswith(ENGINE_ID):
        assert decision.memory.model == before.model
        assert decision.memory.shape.prefill_tokens <= before.shape.prefill_tokens
    else:
        assert decision.memory.lengths == before.lengths
    assert decision.memory.replicas.wanted == before.replicas.wanted
    assert decision.memory.limits.limits == before.limits.limits
    assert not [a for a in decision.actions if isinstance(a, (DrainReplica, StopReplica))]
    assert len([a for a in decision.actions if isinstance(a, StartReplica)]) <= 1, "the one that is missing anyway"
    assert not [a for a in decision.actions if isinstance(a, SetLimits) and not a.is_renewal]
    assert any(fault.startswith(told_by) for fault in decision.signals.faults), decision.signals.faults
    return decision


@pytest.mark.parametrize("value", ABSURD)
@pytest.mark.parametrize("series", [Engine.RUNNING, Engine.KV_USAGE, Engine.STEPS, Engine.BUSY])
async def test_a_number_of_an_engine_that_cannot_be(series: Any, value: str) -> None:
    async with open_house() as (house, observer):
        house.spoil = replaced("engine", series.name, f"{series.name} {value}")
        await unmoved(house, observer, ENGINE_ID)


@pytest.mark.parametrize("value", ABSURD)
async def test_a_number_of_the_gateway_that_cannot_be(value: str) -> None:
    async with open_house() as (house, observer):
        house.spoil = replaced("gateway", REQUESTS, f"{REQUESTS} {value}")
        decision = await unmoved(house, observer, "gateway")
        assert not decision.signals.complete


@pytest.mark.parametrize("value", ["0", "1e13"])
async def test_counters_that_are_reset_or_leap_count_for_nothing_and_the_next_look_goes_on(value: str) -> None:
    async with open_house() as (house, observer):
        house.spoil = replaced("gateway", REQUESTS, f"{REQUESTS} {value}")
        await unmoved(house, observer, "gateway: counters of class interactive")
        house.spoil = lambda _, page: page
        # Back where they were they run backwards once more, or go on; then all is as before.
        await house.turn(observer)
        assert not (await house.turn(observer)).signals.faults


@pytest.mark.parametrize("role", ["engine", "gateway"])
async def test_a_million_labels_are_refused_as_lines_and_as_one_line(role: str) -> None:
    async with open_house() as (house, observer):
        name = Engine.RUNNING.name if role == "engine" else Gateway.HELD.name
        many = "".join(f'{name}{{user="{i}"}} 1\n' for i in range(100_000))
        house.spoil = lambda of, page: page + many if of == role else page
        await unmoved(house, observer, ENGINE_ID if role == "engine" else "gateway")
    async with open_house() as (house, observer):
        labels = ",".join(f'l{i}="x"' for i in range(200_000))
        house.spoil = lambda of, page: page + f"{name}{{{labels}}} 1\n" if of == role else page
        await unmoved(house, observer, ENGINE_ID if role == "engine" else "gateway")


@pytest.mark.parametrize(
    "fields",
    [
        {"seconds": float("nan")},
        {"seconds": -1.0},
        {"seconds": 1e300},
        {"seconds": 1e5},
        {"prefill_tokens": 10**14},
        {"decode_sequences": 10**9},
        {"context_tokens": 10**15},
        {"attention_pairs": 1e15},
        {"number": 10**14},
    ],
)
async def test_a_step_that_no_engine_could_take_teaches_nothing_and_hides_no_later_one(fields: dict[str, Any]) -> None:
    async with open_house() as (house, observer):
        house.steps = step(**fields)
        await unmoved(house, observer, f"{ENGINE_ID}: its steps")
        house.steps = None
        num_samples = house.memory.model.num_samples
        healthy = await house.turn(observer)
        assert not healthy.signals.faults
        assert healthy.memory.model.num_samples > num_samples


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"steps": ' + "[" * 100_000,
        '{"steps": [[1e300, 1, 1, 1, 1, 1, 1]]}',
        '{"steps": [{"number": "x"}]}',
        '{"steps": null}',
        "\x00",
    ],
)
async def test_an_answer_that_is_no_list_of_steps(text: str) -> None:
    async with open_house() as (house, observer):
        house.steps = text
        await unmoved(house, observer, ENGINE_ID)
