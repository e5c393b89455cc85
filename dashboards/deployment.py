"""*One deployment*: what it promised, what it was asked, what was decided about it and why, down to its pods.

The decisions that change replicas stand as marks in every panel, each with its sentence.
"""

from collections.abc import Sequence
from typing import Final

from capstan_api.metrics import Engine, Gateway, Operator
from capstan_api.status import ConditionType
from dashboards import queries as q
from dashboards.frame import Row, Variable, frame
from dashboards.panels import BAD, GOOD, WARN, Panel, Query, heat, lines, number

UID: Final = "capstan-deployment"
_WHERE: Final = {"namespace": "$namespace", "deployment": "$deployment"}
_POD: Final = (*q.DEPLOYMENT, "pod")
# A settled deployment is not progressing, and one that a person scales is not scaled: these two may well be False.
_SHOULD_HOLD: Final = "|".join(
    kind for kind in ConditionType if kind not in (ConditionType.PROGRESSING, ConditionType.SCALING_ACTIVE)
)


def render() -> str:
    """The dashboard's JSON."""
    return frame(
        UID,
        "Capstan / One deployment",
        "One InferenceDeployment: service levels, load, decisions, limits, replicas and engines.",
        [
            Variable("namespace", Operator.DESIRED_REPLICAS),
            Variable("deployment", Operator.DESIRED_REPLICAS, 'namespace="$namespace"'),
        ],
        [
            Row("Now", _NUMBERS),
            Row("Service levels", _SERVICE_LEVELS),
            Row("Load", _LOAD),
            Row("Limits and replicas", [*_LIMITS, *_REPLICAS]),
            Row("Engines", _ENGINES),
            Row("Pods", _PODS),
        ],
        **_WHERE,
    )


_NUMBERS: Final = [
    number(
        "Attainment 1h",
        "Share of good requests in the last hour, of the class that fares worst.",
        "percentunit",
        Query(f"min({q.good_ratio('1h', **_WHERE)})", "attainment"),
        (None, BAD),
        (0.9, WARN),
        (0.95, GOOD),
    ),
    number(
        "Budget left",
        "Error budget left over the SLO's own window, of the class that has least; negative when overdrawn.",
        "percentunit",
        Query(f"min({q.highest(Operator.BUDGET, q.CLASS, **_WHERE)})", "budget"),
        (None, BAD),
        (0, WARN),
        (0.25, GOOD),
    ),
    number(
        "Burn rate 1h",
        "How many times faster than sustainable the budget is spent, of the class that spends fastest.",
        "short",
        Query(f"max({q.burn_rate('1h', **_WHERE)})", "burn rate"),
        (None, GOOD),
        (1, WARN),
        (6, BAD),
    ),
    number(
        "Replicas ready",
        "Replicas that take requests.",
        "short",
        Query(q.highest(Operator.READY_REPLICAS, q.DEPLOYMENT, **_WHERE), "ready"),
    ),
    number(
        "Conditions not as they should be",
        "Conditions of the resource that are False; `kubectl describe infd` tells which and why.",
        "short",
        Query(q.total(Operator.CONDITION, q.DEPLOYMENT, type=f"~{_SHOULD_HOLD}", status="False", **_WHERE), "False"),
        (None, GOOD),
        (1, WARN),
    ),
    number(
        "Accelerator-hours",
        "Running time of all replicas within the range shown.",
        "h",
        Query(q.increase(Operator.REPLICA_HOURS, q.DEPLOYMENT, "$__range", **_WHERE), "hours"),
    ),
]

_SERVICE_LEVELS: Final[Sequence[Panel]] = [
    lines(
        "TTFT",
        "Time to first token as clients see it, by class; dashes are the declared threshold.",
        "s",
        Query(q.quantile(0.5, Gateway.TTFT, q.CLASS, **_WHERE), "{{slo_class}} p50"),
        Query(q.quantile(0.95, Gateway.TTFT, q.CLASS, **_WHERE), "{{slo_class}} p95"),
        Query(q.threshold("ttft", **_WHERE), "{{slo_class}} threshold", dashed=True),
    ),
    lines(
        "TPOT",
        "Time per output token as clients see it, by class; dashes are the declared threshold.",
        "s",
        Query(q.quantile(0.5, Gateway.TPOT, q.CLASS, **_WHERE), "{{slo_class}} p50"),
        Query(q.quantile(0.95, Gateway.TPOT, q.CLASS, **_WHERE), "{{slo_class}} p95"),
        Query(q.threshold("tpot", **_WHERE), "{{slo_class}} threshold", dashed=True),
    ),
    heat(
        "TTFT of all requests",
        "How many requests had which time to first token.",
        "s",
        q.buckets(Gateway.TTFT, **_WHERE),
    ),
    lines(
        "Attainment",
        "Share of requests that met every threshold, over the last 5 minutes; dashes are the objective.",
        "percentunit",
        Query(q.good_ratio("5m", **_WHERE), "{{slo_class}}"),
        Query(q.highest(Operator.OBJECTIVE, q.CLASS, **_WHERE), "{{slo_class}} objective", dashed=True),
    ),
    lines(
        "Burn rate",
        "How many times faster than sustainable the error budget is spent.",
        "short",
        Query(q.burn_rate("5m", **_WHERE), "{{slo_class}} 5m"),
        Query(q.burn_rate("1h", **_WHERE), "{{slo_class}} 1h", dashed=True),
        mark=1,
    ),
    lines(
        "Error budget left",
        "What is left of the misses that the objective allows over the SLO's window.",
        "percentunit",
        Query(q.highest(Operator.BUDGET, q.CLASS, **_WHERE), "{{slo_class}}"),
        mark=0,
    ),
]

_LOAD: Final = [
    lines(
        "Requests by outcome",
        "Requests that ended at the gateway. Rejected ones met a full queue; failed and truncated ones are our fault.",
        "reqps",
        Query(q.rate(Gateway.RESPONSES, (*q.DEPLOYMENT, "outcome"), **_WHERE), "{{outcome}}"),
        stacked=True,
    ),
    lines(
        "Tokens",
        "Tokens that the engines read and wrote.",
        "short",
        Query(q.rate(Engine.PROMPT_TOKENS, q.DEPLOYMENT, **_WHERE), "prompt tokens/s"),
        Query(q.rate(Engine.OUTPUT_TOKENS, q.DEPLOYMENT, **_WHERE), "output tokens/s"),
    ),
    lines(
        "Waiting requests",
        "Held at the gateway for want of a ready replica, and queued in the engines for want of room.",
        "short",
        Query(q.total(Gateway.HELD, q.DEPLOYMENT, **_WHERE), "held at the gateway"),
        Query(q.total(Engine.WAITING, q.DEPLOYMENT, **_WHERE), "queued in engines"),
    ),
    lines(
        "Queue time",
        "95th percentile of the time from arrival at the engine to its first step.",
        "s",
        Query(q.quantile(0.95, Engine.QUEUE, q.CLASS, **_WHERE), "{{slo_class}} p95"),
    ),
    lines(
        "Routing",
        "Why the gateway chose the replica it chose.",
        "reqps",
        Query(q.rate(Gateway.ROUTED, (*q.DEPLOYMENT, "reason"), **_WHERE), "{{reason}}"),
        stacked=True,
    ),
    lines(
        "Retries",
        "Requests sent to another replica before a byte was produced; clients do not notice.",
        "reqps",
        Query(f"sum({q.rate(Gateway.RETRIES, q.DEPLOYMENT, **_WHERE)}) or vector(0)", "retries"),
    ),
]

_LIMITS: Final = [
    lines(
        title,
        f"{sentence} In force on the engines (the lowest and the highest), as decided, and the envelope in dashes.",
        "short",
        Query(q.highest(Operator.LIMIT, q.DEPLOYMENT, limit=limit, **_WHERE), "decided"),
        Query(q.lowest(Engine.LIMIT, q.DEPLOYMENT, limit=limit, **_WHERE), "in force, lowest"),
        Query(q.highest(Engine.LIMIT, q.DEPLOYMENT, limit=limit, **_WHERE), "in force, highest"),
        Query(
            q.highest(Operator.LIMIT_BOUND, (*q.DEPLOYMENT, "bound"), limit=limit, **_WHERE), "{{bound}}", dashed=True
        ),
    )
    for limit, title, sentence in (
        ("max_sequences", "Limit on sequences", "Requests that may run at the same time on one replica."),
        ("max_batched_tokens", "Limit on tokens of a step", "Tokens that one step may compute."),
    )
]

_REPLICAS: Final = [
    lines(
        "Changes of the limits",
        "By cause: the operator, or a lease that ran out because the operator fell silent.",
        "cps",
        Query(q.rate(Engine.LIMIT_CHANGES, (*q.DEPLOYMENT, "cause"), **_WHERE), "{{cause}}"),
    ),
    lines(
        "Replicas",
        "Replicas wanted by the last decision (dashes), ready, and on their way in or out.",
        "short",
        Query(q.highest(Operator.READY_REPLICAS, q.DEPLOYMENT, **_WHERE), "ready"),
        Query(q.highest(Operator.UNREADY_REPLICAS, (*q.DEPLOYMENT, "phase"), **_WHERE), "{{phase}}"),
        Query(q.highest(Operator.DESIRED_REPLICAS, q.DEPLOYMENT, **_WHERE), "wanted", dashed=True),
    ),
    lines(
        "Start-up by phase",
        "How long recent replicas took from creation to ready, by phase: median, and 90th percentile in dashes.",
        "s",
        Query(q.highest(Operator.STARTUP_SECONDS, (*q.DEPLOYMENT, "phase"), quantile="0.5", **_WHERE), "{{phase}} p50"),
        Query(
            q.highest(Operator.STARTUP_SECONDS, (*q.DEPLOYMENT, "phase"), quantile="0.9", **_WHERE),
            "{{phase}} p90",
            dashed=True,
        ),
    ),
    lines(
        "Decisions",
        "Decisions by action and reason; holds tell what was waited for.",
        "cps",
        Query(q.rate(Operator.DECISIONS, (*q.DEPLOYMENT, "action", "reason"), **_WHERE), "{{action}} {{reason}}"),
        stacked=True,
    ),
]

_ENGINES: Final = [
    lines(
        "Step time by kind",
        "95th percentile of the time of one step, by what it did.",
        "s",
        Query(q.quantile(0.95, Engine.STEP, (*q.DEPLOYMENT, "phase"), **_WHERE), "{{phase}} p95"),
    ),
    lines(
        "KV cache",
        "Blocks that running requests hold, blocks that are kept for their prefix, and free ones.",
        "short",
        Query(q.total(Engine.KV_BLOCKS, (*q.DEPLOYMENT, "state"), **_WHERE), "{{state}}"),
        stacked=True,
    ),
    lines(
        "Prefix hits",
        "Share of prompt tokens that were found in the prefix cache.",
        "percentunit",
        Query(
            f"{q.rate(Engine.PREFIX_HITS, q.DEPLOYMENT, **_WHERE)} / "
            f"{q.rate(Engine.PREFIX_QUERIES, q.DEPLOYMENT, **_WHERE)}",
            "hits",
        ),
    ),
    lines(
        "Preemptions",
        "Running requests put back to the queue for lack of KV blocks.",
        "cps",
        Query(q.rate(Engine.PREEMPTIONS, q.DEPLOYMENT, **_WHERE), "preemptions"),
    ),
    lines(
        "Ends of requests",
        "How sequences ended in the engines.",
        "reqps",
        Query(q.rate(Engine.FINISHED, (*q.DEPLOYMENT, "finished_reason"), **_WHERE), "{{finished_reason}}"),
        stacked=True,
    ),
    lines(
        "Refusals",
        "Requests that engines refused, by reason.",
        "reqps",
        Query(q.rate(Engine.REJECTED, (*q.DEPLOYMENT, "reason"), **_WHERE), "{{reason}}"),
        stacked=True,
    ),
]

_PODS: Final = [
    lines(
        "Running requests",
        "Requests that hold KV blocks, by pod; the spread shows how evenly the gateway routes.",
        "short",
        Query(q.total(Engine.RUNNING, _POD, **_WHERE), "{{pod}}"),
    ),
    lines(
        "KV use",
        "Share of KV blocks that running requests hold, by pod.",
        "percentunit",
        Query(q.highest(Engine.KV_USAGE, _POD, **_WHERE), "{{pod}}"),
    ),
    lines(
        "Time in steps",
        "Share of time that the step loop computes, by pod.",
        "percentunit",
        Query(q.rate(Engine.BUSY, _POD, **_WHERE), "{{pod}}"),
    ),
    lines(
        "Heartbeat",
        "Turns of the step loop, by pod, idle ones too: 0 is a stuck engine.",
        "cps",
        Query(q.rate(Engine.HEARTBEAT, _POD, **_WHERE), "{{pod}}"),
    ),
    lines(
        "Output tokens",
        "Tokens generated per second, by pod.",
        "short",
        Query(q.rate(Engine.OUTPUT_TOKENS, _POD, **_WHERE), "{{pod}}"),
    ),
    lines(
        "In flight",
        "Requests that the gateways proxy to each replica.",
        "short",
        Query(q.total(Gateway.IN_FLIGHT, (*q.DEPLOYMENT, "replica"), **_WHERE), "{{replica}}"),
    ),
]
