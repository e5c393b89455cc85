"""The gateway's series, built from the catalogue, and the exact count of good requests.

Counters and histograms are kept here; gauges are read from the replica table and the waiting room when somebody
scrapes, so they can neither drift nor keep the label of a replica that is gone.

The surprising idea: classes come and go while requests are open. A class that leaves takes its series with it, and a
histogram whose bounds change starts again from zero: readers see a reset, as after a restart, and never a wrong sum.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from capstan_api.engine_args import SloClass
from capstan_api.metrics import Gateway as Catalogue
from capstan_api.metrics import Metric, Slo
from capstan_api.replicas import ReplicaState
from capstan_gateway.holding import WaitingRoom
from capstan_gateway.meter import Usage
from capstan_gateway.replicas import ReplicaTable
from capstan_gateway.routing import Reason

_NO_USAGE = Usage()
# A thousand requests back weighs a third; below so many guessed tokens the guess stands.
_KEPT, _ENOUGH_TOKENS = 0.999, 1000


class Outcome(StrEnum):
    """How a request ended, as its client sees it."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    """Overload or no capacity: 429 or 503."""
    FAILED = "failed"
    TRUNCATED = "truncated"
    """A stream that ended with an error event because its replica was lost."""
    INVALID = "invalid"
    """The client's own mistake; it says nothing about the service."""


def outcome_of(status: int) -> Outcome:
    """The outcome that a whole response with this status stands for."""
    if status < 400:
        return Outcome.COMPLETED
    if status in (429, 503):
        return Outcome.REJECTED
    # 408 is a deadline that the service did not keep.
    return Outcome.FAILED if status >= 500 or status == 408 else Outcome.INVALID


@dataclass(frozen=True)
class Ended:
    """What is known of a request when it ends. Latencies in seconds, None where they cannot be seen."""

    outcome: Outcome
    ttft_s: float | None = None
    tpot_s: float | None = None
    usage: Usage = _NO_USAGE


class _Estimate:
    """How many tokens a guessed one is, from the requests whose usage an engine reported."""

    def __init__(self) -> None:
        self._guessed = self._counted = 0.0

    @property
    def ratio(self) -> float:
        return self._counted / self._guessed if self._guessed >= _ENOUGH_TOKENS else 1.0

    def learn(self, guessed: int, counted: int | None) -> None:
        if guessed > 0 and counted is not None and counted > 0:
            self._guessed = _KEPT * self._guessed + guessed
            self._counted = _KEPT * self._counted + counted


class GatewayMetrics:
    """Collectors of one gateway, in a registry of their own."""

    def __init__(self, slo_classes: tuple[SloClass, ...], table: ReplicaTable, room: WaitingRoom) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Gauges(table, room))
        self._requests = self._counter(Catalogue.REQUESTS)
        self._arrived_tokens = self._counter(Catalogue.ARRIVED_TOKENS)
        self._estimate = _Estimate()
        self._responses = self._counter(Catalogue.RESPONSES)
        self._slo_total = self._counter(Catalogue.SLO_TOTAL)
        self._slo_good = self._counter(Catalogue.SLO_GOOD)
        self._prompt_tokens = self._counter(Catalogue.PROMPT_TOKENS)
        self._output_tokens = self._counter(Catalogue.OUTPUT_TOKENS)
        self._retries = self._counter(Catalogue.RETRIES)
        self._routed = self._counter(Catalogue.ROUTED)
        self._ttft = self._histogram(Catalogue.TTFT, _bounds(Catalogue.TTFT, slo_classes))
        self._tpot = self._histogram(Catalogue.TPOT, _bounds(Catalogue.TPOT, slo_classes))
        self._slo_classes = slo_classes
        self.routed = dict.fromkeys(Reason, 0)
        self._start_at_zero()

    def declare(self, slo_classes: tuple[SloClass, ...]) -> None:
        """Count for these classes from now on.

        All classes share the bounds of a histogram, so a new threshold makes it start from zero for all of them;
        counters go on. A class that leaves is forgotten, for should it come back it has to start from zero; requests
        of it that are still open count under its name, until the next call forgets these counts too.
        """
        self._ttft = self._rebound(self._ttft, Catalogue.TTFT, slo_classes)
        self._tpot = self._rebound(self._tpot, Catalogue.TPOT, slo_classes)
        stay = {c.name for c in self._slo_classes} & {c.name for c in slo_classes}
        self._slo_classes = slo_classes
        counted = {sample.labels["slo_class"] for family in self._responses.collect() for sample in family.samples}
        for name in counted - stay:
            for metric, labels in self._series(name):
                metric.remove(*labels)
        self._start_at_zero()

    def arrived(self, slo_class: SloClass, num_prompt_tokens: int) -> None:
        """Count a request on arrival: what waits for an answer is load, and says so only now. The number is a guess."""
        self._requests.labels(slo_class.name).inc()
        self._arrived_tokens.labels(slo_class.name).inc(self.estimated(num_prompt_tokens))

    def estimated(self, num_prompt_tokens: int) -> float:
        """Prompt tokens that a guess of so many has meant lately."""
        return self._estimate.ratio * num_prompt_tokens

    def first_token(self, slo_class: SloClass, ttft_s: float) -> None:
        """Observed when it happens and not when the request ends: control must not lag by the length of answers."""
        self._ttft.labels(slo_class.name).observe(ttft_s)

    def retried(self, reason: str) -> None:
        self._retries.labels(reason).inc()

    def chosen(self, reason: Reason) -> None:
        self.routed[reason] += 1
        self._routed.labels(reason).inc()

    def ended(self, slo_class: SloClass, ended: Ended, num_prompt_tokens: int) -> None:
        """Count a request that is over, and whether it met its thresholds. The number is what `arrived` was told."""
        name = slo_class.name
        self._estimate.learn(num_prompt_tokens, ended.usage.prompt_tokens)
        self._responses.labels(name, ended.outcome).inc()
        self._prompt_tokens.labels(name).inc(ended.usage.prompt_tokens or 0)
        self._output_tokens.labels(name).inc(ended.usage.completion_tokens or 0)
        completed = ended.outcome is Outcome.COMPLETED
        if completed and ended.tpot_s is not None:
            self._tpot.labels(name).observe(ended.tpot_s)
        # What clients did themselves does not count, nor does a whole response whose engine reports no TTFT.
        if ended.outcome in (Outcome.CANCELLED, Outcome.INVALID) or (completed and ended.ttft_s is None):
            return
        self._slo_total.labels(name).inc()
        if not completed:
            return
        ttft_good = _within(ended.ttft_s, slo_class.ttft_seconds)
        tpot_good = _within(ended.tpot_s, slo_class.tpot_seconds)
        for objective, good in (("ttft", ttft_good), ("tpot", tpot_good), ("all", ttft_good and tpot_good)):
            self._slo_good.labels(name, objective).inc(good)

    def render(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self._registry)

    def _start_at_zero(self) -> None:
        # A counter that appears with its first event hides that event from a rate.
        for slo_class in self._slo_classes:
            for metric, labels in self._series(slo_class.name):
                metric.labels(*labels)
        for reason in Reason:
            self._routed.labels(reason)

    def _series(self, name: str) -> Iterator[tuple[Counter | Histogram, tuple[str, ...]]]:
        """Every series that a class has, with its labels."""
        for counter in (
            self._requests,
            self._arrived_tokens,
            self._slo_total,
            self._prompt_tokens,
            self._output_tokens,
        ):
            yield counter, (name,)
        for outcome in Outcome:
            yield self._responses, (name, outcome)
        for objective in ("ttft", "tpot", "all"):
            yield self._slo_good, (name, objective)
        for histogram in (self._ttft, self._tpot):
            yield histogram, (name,)

    def _counter(self, metric: Metric) -> Counter:
        return Counter(metric.name, metric.help, metric.labels, registry=self._registry)

    def _histogram(self, metric: Metric, bounds: tuple[float, ...]) -> Histogram:
        return Histogram(metric.name, metric.help, metric.labels, buckets=bounds, registry=self._registry)

    def _rebound(self, histogram: Histogram, metric: Metric, slo_classes: tuple[SloClass, ...]) -> Histogram:
        """The histogram, or another in its place when its bounds are not those that these classes need."""
        bounds = _bounds(metric, slo_classes)
        if bounds == _bounds(metric, self._slo_classes):
            return histogram
        self._registry.unregister(histogram)
        return self._histogram(metric, bounds)


class _Gauges(Collector):
    def __init__(self, table: ReplicaTable, room: WaitingRoom) -> None:
        self._table = table
        self._room = room

    def collect(self) -> Iterator[GaugeMetricFamily]:
        held = _gauge(Catalogue.HELD)
        held.add_metric([], len(self._room))
        in_flight = _gauge(Catalogue.IN_FLIGHT)
        by_id: dict[str, int] = {}
        for replica in self._table:
            by_id[replica.id] = by_id.get(replica.id, 0) + replica.num_requests
        for replica_id, num_requests in by_id.items():
            in_flight.add_metric([replica_id], num_requests)
        replicas = _gauge(Catalogue.REPLICAS)
        for state in ReplicaState:
            replicas.add_metric([state.lower()], self._table.num_in_state(state))
        yield from (held, in_flight, replicas)


def _bounds(metric: Metric, slo_classes: tuple[SloClass, ...]) -> tuple[float, ...]:
    declared = [c.ttft_seconds if metric.slo_bounds is Slo.TTFT else c.tpot_seconds for c in slo_classes]
    return metric.bounds(tuple(threshold for threshold in declared if threshold is not None))


def _gauge(metric: Metric) -> GaugeMetricFamily:
    return GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)


def _within(latency_s: float | None, threshold_s: float | None) -> bool:
    # One token has no gap between tokens, and an objective without a threshold is always met.
    return latency_s is None or threshold_s is None or latency_s <= threshold_s
