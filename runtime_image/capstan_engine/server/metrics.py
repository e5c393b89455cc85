"""The engine's metrics: collectors built from the catalogue, fed by request ends and by the core's updates.

Two kinds of series. What happens to requests is observed into bound children (`RequestRecord`, one per sequence). What
the core counts itself arrives as absolute numbers in `CoreState` and is read only when somebody scrapes. The `vllm:`
names are a second rendering of the same samples, so one fact is never counted twice.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from capstan_api.engine_args import SloClass
from capstan_api.metrics import Engine, Kind, Metric, Slo, catalogue
from capstan_engine.messages import CoreState, FinishReason, StepSample, Update

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

# Series whose value is a number of the core's state, read at scrape time.
_STATE: Final[dict[Metric, Callable[[CoreState], dict[tuple[str, ...], float]]]] = {
    Engine.RUNNING: lambda s: {(): s.running},
    Engine.WAITING: lambda s: {(): s.waiting},
    Engine.PREFILL_BACKLOG: lambda s: {(): s.prefill_backlog},
    Engine.KV_USAGE: lambda s: {(): s.blocks_held / s.blocks_total if s.blocks_total else 0.0},
    Engine.KV_BLOCKS: lambda s: {
        ("held",): s.blocks_held,
        ("cached",): s.blocks_cached,
        ("free",): s.blocks_total - s.blocks_held - s.blocks_cached,
    },
    Engine.PREFIX_QUERIES: lambda s: {(): s.prefix_queries},
    Engine.PREFIX_HITS: lambda s: {(): s.prefix_hits},
    Engine.PREEMPTIONS: lambda s: {(): s.preemptions},
    Engine.LIMIT: lambda s: {("max_sequences",): s.max_sequences, ("max_batched_tokens",): s.max_batched_tokens},
    Engine.STEPS: lambda s: {(): s.steps},
    Engine.HEARTBEAT: lambda s: {(): s.heartbeat},
    Engine.BUSY: lambda s: {(): s.busy_seconds},
}


class Metrics:
    """All series of one engine. `vllm_model_name` adds the `vllm:` names, labelled with it."""

    def __init__(
        self,
        slo_classes: Iterable[SloClass],
        core_state: Callable[[], CoreState | None],
        *,
        vllm_model_name: str | None = None,
    ) -> None:
        self._classes = {slo_class.name: slo_class for slo_class in slo_classes}
        self._vllm_model_name = vllm_model_name
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_StateCollector(core_state))
        thresholds = {
            Slo.TTFT: tuple(c.ttft_seconds for c in self._classes.values() if c.ttft_seconds is not None),
            Slo.TPOT: tuple(c.tpot_seconds for c in self._classes.values() if c.tpot_seconds is not None),
        }
        made = {
            m: self._make(m, thresholds.get(m.slo_bounds, ()) if m.slo_bounds else ())
            for m in catalogue(Engine)
            if m not in _STATE
        }
        self._histograms = {m: c for m, c in made.items() if isinstance(c, Histogram)}
        self._counters = {m: c for m, c in made.items() if isinstance(c, Counter)}
        # A series that only appears with its first event makes rates and alerts blind to that event.
        self.by_class = {name: _ClassSeries(self, slo_class) for name, slo_class in self._classes.items()}
        self.finished = {reason: self.counter(Engine.FINISHED, reason.value) for reason in FinishReason}
        self._rejected = {
            r: self.counter(Engine.REJECTED, r) for r in ("queue_full", "draining", "invalid", "too_large")
        }
        self._limit_changes = {c: self.counter(Engine.LIMIT_CHANGES, c) for c in ("operator", "lease_expired")}
        self._steps = {phase: self.histogram(Engine.STEP, phase) for phase in ("prefill", "decode", "mixed")}
        self.prompt_length = self._histograms[Engine.PROMPT_LENGTH]
        self.output_length = self._histograms[Engine.OUTPUT_LENGTH]
        self.prompt_tokens = self._counters[Engine.PROMPT_TOKENS]
        self.output_tokens = self._counters[Engine.OUTPUT_TOKENS]
        self._declare_targets(made[Engine.SLO_TARGET])

    def histogram(self, metric: Metric, *labels: str) -> Histogram:
        return self._histograms[metric].labels(*labels)

    def counter(self, metric: Metric, *labels: str) -> Counter:
        return self._counters[metric].labels(*labels)

    def begin(self, slo_class: str, arrival: float, num_prompt_tokens: int) -> "RequestRecord":
        """The record of one sequence that arrived at monotonic time `arrival`."""
        return RequestRecord(self, self.by_class[slo_class], arrival, num_prompt_tokens)

    def rejected(self, reason: str) -> None:
        self._rejected[reason].inc()

    def limits_changed(self, cause: str) -> None:
        self._limit_changes[cause].inc()

    def on_update(self, update: Update) -> None:
        """Observer of the core's updates: the duration of each step, by what it did."""
        for step in update.steps:
            self._steps[_phase(step)].observe(step.seconds)

    def render(self) -> bytes:
        """The text exposition. Takes milliseconds: call it off the event loop."""
        return generate_latest(self)

    def collect(self) -> Iterator[Family]:
        """All families; what `generate_latest` asks of a registry."""
        for family in self._registry.collect():
            # `_created` series double the page and are read by nobody here.
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family
            name = _VLLM_NAMES.get(family.name)
            if self._vllm_model_name is not None and name is not None:
                yield _renamed(family, name, self._vllm_model_name)

    def _make(self, metric: Metric, thresholds: tuple[float, ...]) -> Counter | Gauge | Histogram:
        match metric.kind:
            case Kind.COUNTER:
                return Counter(metric.name, metric.help, metric.labels, registry=self._registry)
            case Kind.GAUGE:
                return Gauge(metric.name, metric.help, metric.labels, registry=self._registry)
            case Kind.HISTOGRAM:
                bounds = metric.bounds(thresholds)
                return Histogram(metric.name, metric.help, metric.labels, buckets=bounds, registry=self._registry)

    def _declare_targets(self, gauge: Counter | Gauge | Histogram) -> None:
        assert isinstance(gauge, Gauge)
        for name, slo_class in self._classes.items():
            for objective, seconds in (("ttft", slo_class.ttft_seconds), ("tpot", slo_class.tpot_seconds)):
                if seconds is not None:
                    gauge.labels(name, objective).set(seconds)


class _ClassSeries:
    """The bound children of one SLO class."""

    def __init__(self, metrics: Metrics, slo_class: SloClass) -> None:
        self.ttft_threshold = slo_class.ttft_seconds
        self.tpot_threshold = slo_class.tpot_seconds
        self.ttft = metrics.histogram(Engine.TTFT, slo_class.name)
        self.tpot = metrics.histogram(Engine.TPOT, slo_class.name)
        self.inter_token = metrics.histogram(Engine.INTER_TOKEN, slo_class.name)
        self.e2e = metrics.histogram(Engine.E2E, slo_class.name)
        self.queue = metrics.histogram(Engine.QUEUE, slo_class.name)
        self.total = metrics.counter(Engine.SLO_TOTAL, slo_class.name)
        self.good = {o: metrics.counter(Engine.SLO_GOOD, slo_class.name, o) for o in ("ttft", "tpot", "all")}


class RequestRecord:
    """What happened to one sequence. Exactly one of its ends is counted; `close` without one counts a client's abort.

    An aborted or rejected sequence says nothing about the SLO and is not counted against it; one that failed or missed
    its deadline is counted and is not good.
    """

    __slots__ = ("_arrival", "_ended", "_first", "_last", "_metrics", "_num_prompt_tokens", "_num_tokens", "_series")

    def __init__(self, metrics: Metrics, series: _ClassSeries, arrival: float, num_prompt_tokens: int) -> None:
        self._metrics = metrics
        self._series = series
        self._arrival = arrival
        self._num_prompt_tokens = num_prompt_tokens
        self._first = self._last = arrival
        self._num_tokens = 0
        self._ended = False

    @property
    def ttft_s(self) -> float:
        return self._first - self._arrival

    @property
    def tpot_s(self) -> float | None:
        """Mean seconds per output token after the first; None for fewer than two tokens."""
        return (self._last - self._first) / (self._num_tokens - 1) if self._num_tokens > 1 else None

    def scheduled(self, time: float) -> None:
        """The first step that computes the sequence began at `time`."""
        self._series.queue.observe(max(0.0, time - self._arrival))
        self._metrics.prompt_tokens.inc(self._num_prompt_tokens)

    def delivered(self, now: float, num_tokens: int) -> None:
        if self._num_tokens:
            self._series.inter_token.observe(now - self._last)
        else:
            self._first = now
            self._series.ttft.observe(now - self._arrival)
        self._last = now
        self._num_tokens += num_tokens
        self._metrics.output_tokens.inc(num_tokens)

    def completed(self, reason: FinishReason) -> None:
        series, ttft, tpot = self._series, self.ttft_s, self.tpot_s
        series.total.inc()
        good_ttft = series.ttft_threshold is None or ttft <= series.ttft_threshold
        good_tpot = series.tpot_threshold is None or tpot is None or tpot <= series.tpot_threshold
        for objective, good in (("ttft", good_ttft), ("tpot", good_tpot), ("all", good_ttft and good_tpot)):
            if good:
                series.good[objective].inc()
        if tpot is not None:
            series.tpot.observe(tpot)
        series.e2e.observe(self._last - self._arrival)
        self._metrics.prompt_length.observe(self._num_prompt_tokens)
        self._metrics.output_length.observe(self._num_tokens)
        self._end(reason)

    def failed(self, reason: FinishReason) -> None:
        """The sequence ended without its result: `DEADLINE` or `ERROR`."""
        self._series.total.inc()
        self._end(reason)

    def rejected(self, reason: str) -> None:
        self._metrics.rejected(reason)
        self._ended = True

    def close(self) -> None:
        if not self._ended:
            self._end(FinishReason.ABORT)

    def _end(self, reason: FinishReason) -> None:
        assert not self._ended, "a request ends once"
        self._ended = True
        self._metrics.finished[reason].inc()


class _StateCollector(Collector):
    """Renders the core's latest state at scrape time."""

    def __init__(self, core_state: Callable[[], CoreState | None]) -> None:
        self._core_state = core_state

    def collect(self) -> Iterator[Family]:
        state = self._core_state()
        if state is None:
            return
        for metric, values in _STATE.items():
            kind = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
            family = kind(metric.name, metric.help, labels=metric.labels)
            for labels, value in values(state).items():
                family.add_metric(labels, value)
            yield family


def _phase(step: StepSample) -> str:
    if step.prefill_tokens and step.decode_sequences:
        return "mixed"
    return "prefill" if step.prefill_tokens else "decode"


# Families are named without `_total`, samples with it.
_VLLM_NAMES: Final = {
    metric.name.removesuffix("_total"): metric.vllm.removesuffix("_total")
    for metric in catalogue(Engine)
    if metric.vllm is not None
}


def _renamed(family: Family, name: str, model_name: str) -> Family:
    """The same samples under vLLM's name, with the labels that its dashboards and endpoint pickers select by."""
    renamed = Family(name, family.documentation, family.type)
    renamed.samples = [
        Sample(
            name + sample.name.removeprefix(family.name),
            {**sample.labels, "model_name": model_name, "engine": "0"},
            sample.value,
        )
        for sample in family.samples
    ]
    return renamed
