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
    PREFILL_BACKLOG = Metric(
        "capstan_engine_prefill_backlog_tokens",
        Kind.GAUGE,
        "Prompt tokens of accepted requests that are not computed yet.",
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
    ARRIVED_TOKENS = Metric(
        "capstan_gateway_arrived_prompt_tokens_total",
        Kind.COUNTER,
        "Prompt tokens of requests that arrived, estimated from their length and corrected by what engines counted.",
        ("slo_class",),
    )
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
    """Series of the operator, on its health port under /metrics.

    Those that name a deployment are exposed by the leader only and end with the object. They carry the labels
    `namespace` and `deployment` themselves: scrape the operator with `honorLabels`.
    """

    RECONCILE_SECONDS = Metric(
        "capstan_operator_reconcile_seconds", Kind.HISTOGRAM, "Time of one turn: observe, decide, apply.", (), _STEP_S
    )
    TURNS = Metric(
        "capstan_operator_turns_total", Kind.COUNTER, "Turns of the loops by outcome: ok, error.", ("outcome",)
    )
    TURN_INTERVAL = Metric(
        "capstan_operator_turn_interval_seconds",
        Kind.GAUGE,
        "Time between two turns of a loop that nothing wakes; it grows while the loops use more CPU than their share.",
    )
    API_REQUESTS = Metric(
        "capstan_operator_api_requests_total",
        Kind.COUNTER,
        "Requests to the Kubernetes API; code is the HTTP status, or error when no answer came.",
        ("verb", "resource", "code"),
    )
    API_SECONDS = Metric(
        "capstan_operator_api_request_seconds",
        Kind.HISTOGRAM,
        "Time of one request to the Kubernetes API, watches aside.",
        ("verb",),
        _STEP_S,
    )
    WATCH_AGE = Metric(
        "capstan_operator_watch_age_seconds",
        Kind.GAUGE,
        "Time since a watch was last known to be alive: what the operator believes is at most this old.",
        ("resource",),
    )
    REVIEWS = Metric(
        "capstan_operator_admission_reviews_total",
        Kind.COUNTER,
        "Reviews that the admission webhook has answered, by verdict: passed, warned, refused.",
        ("verdict",),
    )
    OBJECTS = Metric("capstan_operator_objects", Kind.GAUGE, "InferenceDeployments that this process knows.")
    IS_LEADER = Metric(
        "capstan_operator_is_leader", Kind.GAUGE, "1 while this process holds the lease and may write, else 0."
    )
    DECISIONS = Metric(
        "capstan_operator_decisions_total",
        Kind.COUNTER,
        "Decisions by action and reason, holds included.",
        ("namespace", "deployment", "action", "reason"),
    )
    DESIRED_REPLICAS = Metric("capstan_desired_replicas", Kind.GAUGE, "Replicas wanted.", ("namespace", "deployment"))
    READY_REPLICAS = Metric("capstan_ready_replicas", Kind.GAUGE, "Replicas ready.", ("namespace", "deployment"))
    UNREADY_REPLICAS = Metric(
        "capstan_unready_replicas",
        Kind.GAUGE,
        "Replicas that take no requests, by phase: pending, starting, draining.",
        ("namespace", "deployment", "phase"),
    )
    LIMIT = Metric(
        "capstan_batch_limit",
        Kind.GAUGE,
        "Limit decided for each replica: max_sequences or max_batched_tokens.",
        ("namespace", "deployment", "limit"),
    )
    LIMIT_BOUND = Metric(
        "capstan_batch_limit_bound",
        Kind.GAUGE,
        "Envelope that the limit moves in; bound is min or max.",
        ("namespace", "deployment", "limit", "bound"),
    )
    ATTAINMENT = Metric(
        "capstan_slo_attainment_ratio",
        Kind.GAUGE,
        "Share of good requests in the recent window.",
        ("namespace", "deployment", "slo_class"),
    )
    OBJECTIVE = Metric(
        "capstan_slo_objective_ratio",
        Kind.GAUGE,
        "Declared share of requests that must be good.",
        ("namespace", "deployment", "slo_class"),
    )
    BUDGET = Metric(
        "capstan_error_budget_remaining_ratio",
        Kind.GAUGE,
        "Share of the error budget that is left; negative when overdrawn.",
        ("namespace", "deployment", "slo_class"),
    )
    CONDITION = Metric(
        "capstan_condition",
        Kind.GAUGE,
        "Conditions of status: 1 for the status (True, False or Unknown) in force, 0 for the two others.",
        ("namespace", "deployment", "type", "status"),
    )
    DECISION_INFO = Metric(
        "capstan_decision_info",
        Kind.GAUGE,
        "Time (epoch seconds) of the newest decision of each of the actions ScaleUp, ScaleDown and Roll, with its "
        "sentence. Moves of the limits are too many for labels; read them from the limits themselves.",
        ("namespace", "deployment", "action", "reason", "message"),
    )
    STARTUP_SECONDS = Metric(
        "capstan_startup_seconds",
        Kind.GAUGE,
        "Start-up time of recent replicas by phase; quantile is 0.5 or 0.9.",
        ("namespace", "deployment", "phase", "quantile"),
    )
    REPLICA_HOURS = Metric(
        "capstan_replica_hours_total",
        Kind.COUNTER,
        "Running time of all replicas, in hours; kept in status, so that it survives the operator.",
        ("namespace", "deployment"),
    )
    ACCELERATOR_HOURS = Metric(
        "capstan_accelerator_hours_total",
        Kind.COUNTER,
        "Running time of all replicas' accelerators, in hours; kept in status like that of the replicas.",
        ("namespace", "deployment"),
    )
    ACCELERATOR_BUDGET = Metric(
        "capstan_accelerator_budget",
        Kind.GAUGE,
        "Accelerators that resources share, as the operator's `acceleratorBudgets` declare them.",
        ("budget",),
    )
    ACCELERATORS_ASKED = Metric(
        "capstan_accelerators_asked",
        Kind.GAUGE,
        "Accelerators that a resource at a budget would have if it were alone.",
        ("namespace", "deployment", "budget"),
    )
    ACCELERATORS_HELD = Metric(
        "capstan_accelerators_held",
        Kind.GAUGE,
        "Accelerators of a budget that a resource has or is promised, those of leaving replicas among them.",
        ("namespace", "deployment", "budget"),
    )
    ACCELERATORS_WITHHELD = Metric(
        "capstan_accelerators_withheld",
        Kind.GAUGE,
        "Accelerators that a resource asks for and its budget does not give it.",
        ("namespace", "deployment", "budget"),
    )


def catalogue(part: type) -> tuple[Metric, ...]:
    """All metrics of `Engine`, `Gateway` or `Operator`, in order of declaration."""
    return tuple(value for value in vars(part).values() if isinstance(value, Metric))
