"""The metric catalogue: every series that engine, gateway and operator expose, declared once.

Collectors are built from it, the scraper reads by it, dashboards, alerts and the reference table are generated from
it. Declaring is all it does: it imports no metrics library.

The surprising idea: a histogram may be marked `slo_bounds`; the thresholds of the declared SLO classes are then added
to its bucket bounds, so that the share of good requests is exact and not interpolated.
"""

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Slo(StrEnum):
    """Which threshold of a class a histogram's buckets must contain."""

    TTFT = "ttft"
    TPOT = "tpot"


@dataclass(frozen=True)
class Metric:
    """One series. `name` is the full Prometheus name; counters end in `_total`."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    slo_bounds: Slo | None = None
    vllm: str | None = None
    """Name under `--metrics-compat vllm`; the same value is then exposed a second time."""

    def bounds(self, thresholds: tuple[float, ...] = ()) -> tuple[float, ...]:
        """Sorted bucket bounds, with the classes' `thresholds` (seconds) among them when the metric asks for it."""
        extra = thresholds if self.slo_bounds else ()
        return tuple(sorted({*self.buckets, *extra}))


def _geometric(first: float, last: float, ratio: float) -> tuple[float, ...]:
    bounds = [first]
    while bounds[-1] * ratio <= last * 1.0001:
        bounds.append(bounds[-1] * ratio)
    return tuple(float(f"{b:.3g}") for b in bounds)


# Fine enough that an interpolated p95 is within a few per cent: the operator steers by differences of these.
_TTFT_S = _geometric(0.005, 120, 1.35)
_TPOT_S = _geometric(0.001, 10, 1.25)
_STEP_S = _geometric(0.0005, 10, 1.6)
_LONG_S = (0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
_TOKENS = tuple(float(2**k) for k in range(18))


class Engine:
    """Series of one engine process, on its API port under /metrics."""

    TTFT = Metric(
        "capstan_engine_time_to_first_token_seconds",
        Kind.HISTOGRAM,
        "Arrival at the engine to the first token sent.",
        ("slo_class",),
        _TTFT_S,
        Slo.TTFT,
        "vllm:time_to_first_token_seconds",
    )
    TPOT = Metric(
        "capstan_engine_time_per_output_token_seconds",
        Kind.HISTOGRAM,
        "Mean time between output tokens of a finished request.",
        ("slo_class",),
        _TPOT_S,
        Slo.TPOT,
        "vllm:request_time_per_output_token_seconds",
    )
    INTER_TOKEN = Metric(
        "capstan_engine_inter_token_latency_seconds",
        Kind.HISTOGRAM,
        "Time between two deliveries of output tokens of one request.",
        ("slo_class",),
        _TPOT_S,
        None,
        "vllm:inter_token_latency_seconds",
    )
    E2E = Metric(
        "capstan_engine_request_duration_seconds",
        Kind.HISTOGRAM,
        "Arrival to the last token.",
        ("slo_class",),
        _LONG_S,
        None,
        "vllm:e2e_request_latency_seconds",
    )
    QUEUE = Metric(
        "capstan_engine_queue_seconds",
        Kind.HISTOGRAM,
        "Arrival to the first step that computes the request.",
        ("slo_class",),
        _TTFT_S,
        None,
        "vllm:request_queue_time_seconds",
    )
    PROMPT_LENGTH = Metric(
        "capstan_engine_request_prompt_tokens",
        Kind.HISTOGRAM,
        "Prompt length of finished requests.",
        (),
        _TOKENS,
        None,
        "vllm:request_prompt_tokens",
    )
    OUTPUT_LENGTH = Metric(
        "capstan_engine_request_output_tokens",
        Kind.HISTOGRAM,
        "Output length of finished requests.",
        (),
        _TOKENS,
        None,
        "vllm:request_generation_tokens",
    )
    STEP = Metric(
        "capstan_engine_step_duration_seconds",
        Kind.HISTOGRAM,
        "Time of one step, by what it did: prefill, decode or mixed.",
        ("phase",),
        _STEP_S,
    )
    RUNNING = Metric(
        "capstan_engine_requests_running",
        Kind.GAUGE,
        "Requests that hold KV blocks.",
        (),
        (),
        None,
        "vllm:num_requests_running",
    )
    WAITING = Metric(
        "capstan_engine_requests_waiting",
        Kind.GAUGE,
        "Requests that wait for admission.",
        (),
        (),
        None,
        "vllm:num_requests_waiting",
    )
    KV_USAGE = Metric(
        "capstan_engine_kv_cache_usage_ratio",
        Kind.GAUGE,
        "Share of KV blocks held by running requests.",
        (),
        (),
        None,
        "vllm:kv_cache_usage_perc",
    )
    KV_BLOCKS = Metric("capstan_engine_kv_blocks", Kind.GAUGE, "KV blocks by state: held, cached, free.", ("state",))
    PREFIX_QUERIES = Metric(
        "capstan_engine_prefix_cache_queries_total",
        Kind.COUNTER,
        "Prompt tokens looked up in the prefix cache.",
        (),
        (),
        None,
        "vllm:prefix_cache_queries_total",
    )
    PREFIX_HITS = Metric(
        "capstan_engine_prefix_cache_hits_total",
        Kind.COUNTER,
        "Prompt tokens found in the prefix cache.",
        (),
        (),
        None,
        "vllm:prefix_cache_hits_total",
    )
    PREEMPTIONS = Metric(
        "capstan_engine_preemptions_total",
        Kind.COUNTER,
        "Running requests put back to the queue for lack of KV blocks.",
        (),
        (),
        None,
        "vllm:num_preemptions_total",
    )
    PROMPT_TOKENS = Metric(
        "capstan_engine_prompt_tokens_total",
        Kind.COUNTER,
        "Prompt tokens of admitted requests.",
        (),
        (),
        None,
        "vllm:prompt_tokens_total",
    )
    OUTPUT_TOKENS = Metric(
        "capstan_engine_output_tokens_total",
        Kind.COUNTER,
        "Tokens generated.",
        (),
        (),
        None,
        "vllm:generation_tokens_total",
    )
    FINISHED = Metric(
        "capstan_engine_requests_finished_total",
        Kind.COUNTER,
        "Requests by how they ended: stop, length, abort, deadline, error.",
        ("finished_reason",),
        (),
        None,
        "vllm:request_success_total",
    )
    REJECTED = Metric(
        "capstan_engine_requests_rejected_total",
        Kind.COUNTER,
        "Requests refused: queue_full, draining, invalid, too_large.",
        ("reason",),
    )
    SLO_TOTAL = Metric(
        "capstan_engine_slo_requests_total", Kind.COUNTER, "Requests counted against the SLO.", ("slo_class",)
    )
    SLO_GOOD = Metric(
        "capstan_engine_slo_good_requests_total",
        Kind.COUNTER,
        "Requests that met the thresholds: objective is ttft, tpot or all.",
        ("slo_class", "objective"),
    )
    SLO_TARGET = Metric(
        "capstan_engine_slo_target_seconds", Kind.GAUGE, "Declared threshold.", ("slo_class", "objective")
    )
    LIMIT = Metric(
        "capstan_engine_batch_limit", Kind.GAUGE, "Limit in force: max_sequences or max_batched_tokens.", ("limit",)
    )
    LIMIT_CHANGES = Metric(
        "capstan_engine_batch_limit_changes_total",
        Kind.COUNTER,
        "Changes of the limits by cause: operator, lease_expired.",
        ("cause",),
    )
    STEPS = Metric("capstan_engine_steps_total", Kind.COUNTER, "Steps computed.")
    HEARTBEAT = Metric(
        "capstan_engine_heartbeat_total",
        Kind.COUNTER,
        "Turns of the step loop, idle ones too: stands still only when the engine is stuck.",
    )
    BUSY = Metric("capstan_engine_busy_seconds_total", Kind.COUNTER, "Time spent in steps.")


class Gateway:
    """Series of the gateway, on its API port under /metrics. Latencies are what clients see, holding included."""

    TTFT = Metric(
        "capstan_gateway_time_to_first_token_seconds",
        Kind.HISTOGRAM,
        "Arrival at the gateway to the first token forwarded.",
        ("slo_class",),
        _TTFT_S,
        Slo.TTFT,
    )
    TPOT = Metric(
        "capstan_gateway_time_per_output_token_seconds",
        Kind.HISTOGRAM,
        "Mean time between output tokens of a finished request.",
        ("slo_class",),
        _TPOT_S,
        Slo.TPOT,
    )
    REQUESTS = Metric("capstan_gateway_requests_total", Kind.COUNTER, "Requests that arrived.", ("slo_class",))
    RESPONSES = Metric(
        "capstan_gateway_responses_total",
        Kind.COUNTER,
        "Requests that ended, by outcome: completed, cancelled, rejected, failed, truncated, invalid.",
        ("slo_class", "outcome"),
    )
    SLO_TOTAL = Metric(
        "capstan_gateway_slo_requests_total", Kind.COUNTER, "Requests counted against the SLO.", ("slo_class",)
    )
    SLO_GOOD = Metric(
        "capstan_gateway_slo_good_requests_total",
        Kind.COUNTER,
        "Requests that met the thresholds: objective is ttft, tpot or all.",
        ("slo_class", "objective"),
    )
    PROMPT_TOKENS = Metric(
        "capstan_gateway_prompt_tokens_total",
        Kind.COUNTER,
        "Prompt tokens of finished requests whose usage the engine reported.",
        ("slo_class",),
    )
    OUTPUT_TOKENS = Metric(
        "capstan_gateway_output_tokens_total", Kind.COUNTER, "Output tokens of finished requests.", ("slo_class",)
    )
    HELD = Metric("capstan_gateway_requests_held", Kind.GAUGE, "Requests waiting for a ready replica.")
    IN_FLIGHT = Metric("capstan_gateway_requests_in_flight", Kind.GAUGE, "Requests being proxied.", ("replica",))
    RETRIES = Metric(
        "capstan_gateway_retries_total",
        Kind.COUNTER,
        "Requests sent to another replica before any byte was produced.",
        ("reason",),
    )
    ROUTED = Metric(
        "capstan_gateway_routing_decisions_total",
        Kind.COUNTER,
        "Replicas chosen, by reason: only, prefix, prefix_overloaded, least_loaded.",
        ("reason",),
    )
    REPLICAS = Metric("capstan_gateway_replicas", Kind.GAUGE, "Replicas known, by state: ready, draining.", ("state",))


class Operator:
    """Series of the operator."""

    DESIRED_REPLICAS = Metric(
        "capstan_operator_desired_replicas", Kind.GAUGE, "Replicas wanted.", ("namespace", "name")
    )
    READY_REPLICAS = Metric("capstan_operator_ready_replicas", Kind.GAUGE, "Replicas ready.", ("namespace", "name"))
    LIMIT = Metric("capstan_operator_batch_limit", Kind.GAUGE, "Limit decided.", ("namespace", "name", "limit"))
    ATTAINMENT = Metric(
        "capstan_operator_slo_attainment_ratio",
        Kind.GAUGE,
        "Share of good requests in the window.",
        ("namespace", "name", "slo_class"),
    )
    DECISIONS = Metric(
        "capstan_operator_decisions_total",
        Kind.COUNTER,
        "Decisions by action and reason, holds included.",
        ("namespace", "name", "action", "reason"),
    )
    RECONCILE_SECONDS = Metric(
        "capstan_operator_reconcile_duration_seconds", Kind.HISTOGRAM, "Time of one reconcile.", (), _STEP_S
    )
    RECONCILE_ERRORS = Metric(
        "capstan_operator_reconcile_errors_total", Kind.COUNTER, "Reconciles that failed.", ("reason",)
    )


def catalogue(part: type) -> tuple[Metric, ...]:
    """All metrics of `Engine`, `Gateway` or `Operator`, in order of declaration."""
    return tuple(value for value in vars(part).values() if isinstance(value, Metric))
