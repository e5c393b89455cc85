"""From a Prometheus page to the few numbers that decisions are made from.

Reads by the catalogue: only lines of series that it wants are parsed at all, so that a page full of other people's
labels costs nothing. A page that is too large, malformed, or has a wanted number that is not finite or is negative is
refused as a whole: half a scrape would look like a fall in load.
"""

import asyncio
from collections.abc import Iterable, Mapping

from prometheus_client.parser import text_string_to_metric_families

from capstan_api.metrics import Engine as EngineSeries
from capstan_api.metrics import Gateway as GatewaySeries
from capstan_api.metrics import Metric
from capstan_operator.bounded_http import BoundedHttp
from capstan_operator.decide.seen.counters import ClassCounters, Histogram, believable
from capstan_operator.decide.seen.observation import EngineMetrics, GatewayMetrics
from capstan_operator.decide.seen.steps import StepSample, packed
from capstan_operator.errors import AdminError, ScrapeError
from capstan_operator.settings import OperatorSettings

_ENGINE = (
    EngineSeries.RUNNING,
    EngineSeries.WAITING,
    EngineSeries.PREFILL_BACKLOG,
    EngineSeries.KV_USAGE,
    EngineSeries.KV_BLOCKS,
    EngineSeries.PREFIX_QUERIES,
    EngineSeries.PREFIX_HITS,
    EngineSeries.STEPS,
    EngineSeries.HEARTBEAT,
    EngineSeries.BUSY,
    EngineSeries.SLO_TOTAL,
    EngineSeries.SLO_GOOD,
)
_GATEWAY = (
    GatewaySeries.REQUESTS,
    GatewaySeries.ARRIVED_TOKENS,
    GatewaySeries.RESPONSES,
    GatewaySeries.SLO_TOTAL,
    GatewaySeries.SLO_GOOD,
    GatewaySeries.PROMPT_TOKENS,
    GatewaySeries.OUTPUT_TOKENS,
    GatewaySeries.TTFT,
    GatewaySeries.TPOT,
    GatewaySeries.HELD,
    GatewaySeries.IN_FLIGHT,
)
_FAILED = ("failed", "truncated")
_LONGEST_LINE = 4096
Labels = frozenset[tuple[str, str]]
Page = Mapping[str, Mapping[Labels, float]]


class Scraper:
    """Fetches and reads pages. Both methods raise `ScrapeError`."""

    def __init__(self, http: BoundedHttp, settings: OperatorSettings) -> None:
        self._http = http
        self._max_series = settings.max_series

    async def page(self, url: str, wanted: Iterable[Metric]) -> Page:
        """Samples of the wanted series, by sample name and labels."""
        try:
            answer = await self._http.request("GET", f"{url}/metrics")
        except AdminError as error:
            raise ScrapeError(str(error)) from None
        if answer.status != 200:
            raise ScrapeError(f"{url}/metrics answers {answer.status}")
        # Parsing is the long part: it must not stop the loop that renews leases.
        return await asyncio.to_thread(parse, answer.body, tuple(wanted), self._max_series)

    async def engine(self, url: str) -> Page:
        return await self.page(url, _ENGINE)

    async def gateway(self, url: str) -> Page:
        return await self.page(url, _GATEWAY)


def parse(body: bytes, wanted: tuple[Metric, ...], max_series: int) -> Page:
    """The samples of the wanted series in a page of Prometheus text; raises `ScrapeError`."""
    if body.count(b"\n") > max_series:
        raise ScrapeError(f"the metrics page has more than {max_series} lines")
    try:
        lines = body.decode().split("\n")
    except UnicodeDecodeError:
        raise ScrapeError("the metrics page is not UTF-8 text") from None
    names = tuple(metric.name for metric in wanted)
    kept = [line for line in lines if line.startswith(names)]
    if max(map(len, kept), default=0) > _LONGEST_LINE:
        # Reading labels takes time that grows with the square of their length.
        raise ScrapeError(f"the metrics page has a line of more than {_LONGEST_LINE} characters")
    page: dict[str, dict[Labels, float]] = {}
    try:
        for family in text_string_to_metric_families("\n".join(kept) + "\n"):
            for sample in family.samples:
                if sample.name.endswith("_created"):
                    continue
                if not believable(sample.value):
                    raise ScrapeError(f"{sample.name} is {sample.value}")
                page.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    except (ValueError, IndexError, KeyError) as error:
        raise ScrapeError(f"the metrics page is malformed: {error}") from None
    return page


def engine_metrics(page: Page, at: float, samples: Iterable[StepSample] = ()) -> EngineMetrics:
    """One engine's numbers; raises `ScrapeError` when the page is not an engine's."""
    usage = _one(page, EngineSeries.KV_USAGE)
    if usage > 1.001:
        raise ScrapeError(f"{EngineSeries.KV_USAGE.name} is {usage}, a share cannot be above 1")
    return EngineMetrics(
        at=at,
        heartbeat=_one(page, EngineSeries.HEARTBEAT),
        running=_one(page, EngineSeries.RUNNING),
        waiting=_one(page, EngineSeries.WAITING),
        # Engines that run an older image do not tell it, and must not go blind for that.
        prefill_backlog=sum(page.get(EngineSeries.PREFILL_BACKLOG.name, {}).values()),
        kv_usage=usage,
        kv_blocks=sum(page.get(EngineSeries.KV_BLOCKS.name, {}).values()),
        steps=_one(page, EngineSeries.STEPS),
        busy_seconds=_one(page, EngineSeries.BUSY),
        prefix_queries=_one(page, EngineSeries.PREFIX_QUERIES),
        prefix_hits=_one(page, EngineSeries.PREFIX_HITS),
        slo_total=sum(page.get(EngineSeries.SLO_TOTAL.name, {}).values()),
        slo_good=_good(page, "all"),
        ttft_good=_good(page, "ttft"),
        tpot_good=_good(page, "tpot"),
        samples=packed(samples),
    )


def _good(page: Page, objective: str) -> float:
    """An engine's good requests of all classes; its classes are those that it was started with."""
    series = page.get(EngineSeries.SLO_GOOD.name, {})
    return sum(value for labels, value in series.items() if ("objective", objective) in labels)


def gateway_metrics(page: Page, at: float, classes: Iterable[str]) -> GatewayMetrics:
    """The gateway's numbers for the declared classes; other labels are not looked at. Raises `ScrapeError`."""
    return GatewayMetrics(
        at=at,
        classes={name: _class_counters(page, name) for name in classes},
        held=_one(page, GatewaySeries.HELD),
        in_flight={
            dict(labels)["replica"]: value
            for labels, value in page.get(GatewaySeries.IN_FLIGHT.name, {}).items()
            if "replica" in dict(labels)
        },
    )


def _class_counters(page: Page, name: str) -> ClassCounters:
    def count(metric: Metric, **labels: str) -> float:
        return page.get(metric.name, {}).get(frozenset({"slo_class": name, **labels}.items()), 0.0)

    return ClassCounters(
        arrived=count(GatewaySeries.REQUESTS),
        arrived_tokens=count(GatewaySeries.ARRIVED_TOKENS),
        completed=count(GatewaySeries.RESPONSES, outcome="completed"),
        rejected=count(GatewaySeries.RESPONSES, outcome="rejected"),
        failed=sum(count(GatewaySeries.RESPONSES, outcome=outcome) for outcome in _FAILED),
        slo_total=count(GatewaySeries.SLO_TOTAL),
        slo_good=count(GatewaySeries.SLO_GOOD, objective="all"),
        prompt_tokens=count(GatewaySeries.PROMPT_TOKENS),
        output_tokens=count(GatewaySeries.OUTPUT_TOKENS),
        ttft=_histogram(page, GatewaySeries.TTFT, name),
        tpot=_histogram(page, GatewaySeries.TPOT, name),
    )


def _histogram(page: Page, metric: Metric, slo_class: str) -> Histogram:
    buckets = []
    for labels, value in page.get(f"{metric.name}_bucket", {}).items():
        by_name = dict(labels)
        if by_name.get("slo_class") == slo_class:
            try:
                buckets.append((float(by_name["le"]), value))
            except (KeyError, ValueError):
                raise ScrapeError(f"{metric.name} has a bucket without a bound") from None
    if not buckets:
        return Histogram()
    buckets.sort()
    histogram = Histogram(bounds=tuple(b for b, _ in buckets[:-1]), counts=tuple(c for _, c in buckets))
    if buckets[-1][0] != float("inf") or not histogram.is_believable:
        raise ScrapeError(f"{metric.name} of class {slo_class} is not a histogram")
    return histogram


def _one(page: Page, metric: Metric) -> float:
    series = page.get(metric.name)
    if not series:
        raise ScrapeError(f"{metric.name} is missing")
    return next(iter(series.values()))
