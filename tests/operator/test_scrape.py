"""Reading metrics pages: what is wanted is read, what is hostile is refused, and both within bounds."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from capstan_api.metrics import Engine, Gateway, Kind, Metric
from capstan_operator.bounded_http import BoundedHttp
from capstan_operator.errors import ScrapeError
from capstan_operator.scrape import _ENGINE, _GATEWAY, Scraper, engine_metrics, gateway_metrics, parse
from capstan_operator.settings import OperatorSettings

ENGINE_PAGE = b"".join(
    f'{metric.name}{{state="free"}} 0.5\n'.encode() if metric.labels else f"{metric.name} 0.5\n".encode()
    for metric in _ENGINE
)


def real_gateway_page() -> bytes:
    registry = CollectorRegistry()

    def made(metric: Metric) -> Counter | Gauge | Histogram:
        if metric.kind is Kind.HISTOGRAM:
            bounds = metric.bounds((0.5,))
            return Histogram(metric.name, metric.help, metric.labels, buckets=bounds, registry=registry)
        kind = Counter if metric.kind is Kind.COUNTER else Gauge
        return kind(metric.name, metric.help, metric.labels, registry=registry)

    series = {metric: made(metric) for metric in _GATEWAY}
    series[Gateway.REQUESTS].labels("interactive").inc(7)
    series[Gateway.RESPONSES].labels("interactive", "completed").inc(4)
    series[Gateway.RESPONSES].labels("interactive", "truncated").inc(1)
    series[Gateway.RESPONSES].labels("interactive", "failed").inc(1)
    series[Gateway.SLO_GOOD].labels("interactive", "all").inc(3)
    series[Gateway.SLO_GOOD].labels("interactive", "ttft").inc(5)
    for latency in (0.1, 0.2, 0.49, 3.0):
        series[Gateway.TTFT].labels("interactive").observe(latency)
        series[Gateway.TTFT].labels("batch").observe(latency)
    series[Gateway.HELD].set(2)
    series[Gateway.IN_FLIGHT].labels("web-1").set(5)
    Gauge("somebody_elses_gauge", "x", registry=registry).set(float("nan"))
    return generate_latest(registry)


def test_a_real_gateway_page_is_read() -> None:
    metrics = gateway_metrics(parse(real_gateway_page(), _GATEWAY, 20_000), 1.0, ["interactive", "quiet"])

    counted = metrics.classes["interactive"]
    assert (counted.arrived, counted.completed, counted.failed, counted.slo_good) == (7, 4, 2, 3)
    assert counted.ttft.total == 4
    assert dict(zip(counted.ttft.bounds, counted.ttft.counts, strict=False))[0.5] == 3
    assert metrics.classes["quiet"].arrived == 0
    assert "batch" not in metrics.classes, "labels that were not declared are not looked at"
    assert (metrics.held, metrics.in_flight) == (2, {"web-1": 5})


def test_an_engine_page_is_read_and_half_of_one_is_not() -> None:
    assert engine_metrics(parse(ENGINE_PAGE, _ENGINE, 100), 1.0).kv_usage == 0.5
    with pytest.raises(ScrapeError, match=f"{Engine.HEARTBEAT.name} is missing"):
        engine_metrics(parse(ENGINE_PAGE.replace(Engine.HEARTBEAT.name.encode(), b"other"), _ENGINE, 100), 1.0)


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-1", "1e300"])
def test_numbers_that_cannot_be_are_refused(value: str) -> None:
    page = ENGINE_PAGE + f"{Engine.RUNNING.name} {value}\n".encode()
    with pytest.raises(ScrapeError, match=Engine.RUNNING.name):
        parse(page, _ENGINE, 100)


@pytest.mark.parametrize(
    "page",
    [
        b"\xff\xfe\x00",
        f"{Engine.RUNNING.name}{{".encode(),
        f"{Engine.RUNNING.name} word".encode(),
        f'{Engine.RUNNING.name}{{a="b" 3'.encode(),
    ],
)
def test_malformed_pages_are_refused(page: bytes) -> None:
    with pytest.raises(ScrapeError):
        engine_metrics(parse(page, _ENGINE, 100), 1.0)


def test_pages_with_too_many_lines_are_refused_before_they_are_parsed() -> None:
    with pytest.raises(ScrapeError, match="more than 100 lines"):
        parse(b"x 1\n" * 101, _ENGINE, 100)


def test_other_peoples_labels_cost_nothing() -> None:
    noise = b"".join(b'x_total{user="%d"} NaN\n' % i for i in range(1000))
    assert parse(noise, _ENGINE, 20_000) == {}


def test_buckets_that_fall_are_no_histogram() -> None:
    name = f"{Gateway.TTFT.name}_bucket"
    page = "".join(f'{name}{{slo_class="a",le="{le}"}} {v}\n' for le, v in (("0.1", 5), ("1", 3), ("+Inf", 5)))
    with pytest.raises(ScrapeError, match="not a histogram"):
        gateway_metrics(parse(f"{page}{Gateway.HELD.name} 0\n".encode(), _GATEWAY, 100), 1.0, ["a"])


Handler = Callable[[web.Request], object]


@asynccontextmanager
async def answering(handler: Handler) -> AsyncIterator[tuple[Scraper, str]]:
    settings = OperatorSettings(http_timeout_s=0.5, max_page_bytes=100_000, max_series=1000)
    app = web.Application()
    app.router.add_get("/metrics", handler)  # type: ignore[arg-type]
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    http = BoundedHttp(settings)
    try:
        yield Scraper(http, settings), f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await http.close()
        await runner.cleanup()


async def test_a_page_that_is_too_large_is_not_read_to_its_end() -> None:
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 10_000)
            sent += 10_000

    async with answering(endless) as (scraper, url):
        with pytest.raises(ScrapeError, match="more than 100000 bytes"):
            await scraper.engine(url)
    assert sent < 20_000_000


async def test_a_page_that_drips_is_given_up() -> None:
    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x")
            await asyncio.sleep(0.05)

    async with answering(drip) as (scraper, url):
        with pytest.raises(ScrapeError, match=r"does not answer within 0\.5 s"):
            await scraper.engine(url)


async def test_compressed_pages_and_redirects_are_not_followed() -> None:
    async def bomb(_: web.Request) -> web.Response:
        response = web.Response(body=b"a" * 50_000)
        response.enable_compression(web.ContentCoding.gzip)
        response.headers["Content-Encoding"] = "gzip"
        return response

    async def elsewhere(_: web.Request) -> web.Response:
        raise web.HTTPFound("http://127.0.0.1:1/metrics")

    async with answering(bomb) as (scraper, url):
        with pytest.raises(ScrapeError):
            engine_metrics(await scraper.engine(url), 1.0)
    async with answering(elsewhere) as (scraper, url):
        with pytest.raises(ScrapeError, match="302"):
            await scraper.engine(url)


async def test_nobody_at_home_is_an_error_with_the_address() -> None:
    settings = OperatorSettings()
    http = BoundedHttp(settings)
    with pytest.raises(ScrapeError, match=r"127\.0\.0\.1:9 cannot be reached|127\.0\.0\.1:9/metrics"):
        await Scraper(http, settings).engine("http://127.0.0.1:9")
    await http.close()
