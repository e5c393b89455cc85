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
from dashboards.scope import Scope

UID: Final = "capstan-deployment"
_WHERE: Final = {"namespace": "$namespace", "deployment": "$deployment"}
_SCOPE: Final = Scope(_WHERE)
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
    _SCOPE.lowest_attainment("Attainment 1h"),
    _SCOPE.least_budget("Budget left"),
    number(
        "Burn rate 1h",
        "How many times faster than sustainable the budget is spent, of the class that spends fastest.",
        "short",
        Query(f"max({q.burn_rate('1h', **_WHERE)})", "burn rate"),
        (None, GOOD),
        (1, WARN),
        (6, BAD),
    ),
    _SCOPE.replicas_ready(),
    number(
        "Conditions not as they should be",
        "Conditions of the resource that are False; `kubectl describe infd` tells which and why.",
        "short",
        Query(q.total(Operator.CONDITION, q.DEPLOYMENT, type=f"~{_SHOULD_HOLD}", status="False", **_WHERE), "False"),
        (None, GOOD),
        (1, WARN),
    ),
    _SCOPE.replica_hours(),
]

_SERVICE_LEVELS: Final[Sequence[Panel]] = [
    *(
        lines(
            title,
            f"{sentence} as clients see it, by class; dashes are the declared threshold.",
            "s",
            Query(q.quantile(0.5, metric, q.CLASS, **_WHERE), "{{slo_class}} p50"),
            Query(q.quantile(0.95, metric, q.CLASS, **_WHERE), "{{slo_class}} p95"),
            Query(q.threshold(objective, **_WHERE), "{{slo_class}} threshold", dashed=True),
        )
        for title, sentence, metric, objective in (
            ("TTFT", "Time to first token", Gateway.TTFT, "ttft"),
            ("TPOT", "Time per output token", Gateway.TPOT, "tpot"),
        )
    ),
    heat(
        "TTFT of all requests",
        "How many requests had which time to first token.",
        "s",
        q.buckets(Gateway.TTFT, **_WHERE),
    ),
    _SCOPE.attainment(),
    _SCOPE.burn_rate(),
    _SCOPE.budget_left(),
]

_LOAD: Final = [
    _SCOPE.each(
        "Requests by class",
        "Requests that arrive at the gateway, those that it will refuse among them.",
        "reqps",
        q.rate,
        Gateway.REQUESTS,
        "slo_class",
        stacked=True,
    ),
    _SCOPE.each(
        "Arriving prompts",
        "Prompt tokens per second that arrive, by class: estimated at the gateway from their length.",
        "short",
        q.rate,
        Gateway.ARRIVED_TOKENS,
        "slo_class",
        stacked=True,
    ),
    _SCOPE.each(
        "Requests by outcome",
        "Requests that ended at the gateway. Rejected ones met a full queue; failed and truncated ones are our fault.",
        "reqps",
        q.rate,
        Gateway.RESPONSES,
        "outcome",
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
        "Prompt backlog",
        "Prompt tokens of accepted requests that engines have still to compute.",
        "short",
        Query(q.total(Engine.PREFILL_BACKLOG, q.DEPLOYMENT, **_WHERE), "prompt tokens"),
    ),
    lines(
        "Queue time",
        "95th percentile of the time from arrival at the engine to its first step.",
        "s",
        Query(q.quantile(0.95, Engine.QUEUE, q.CLASS, **_WHERE), "{{slo_class}} p95"),
    ),
    _SCOPE.each(
        "Routing",
        "Why the gateway chose the replica it chose.",
        "reqps",
        q.rate,
        Gateway.ROUTED,
        "reason",
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
    _SCOPE.each(
        "Changes of the limits",
        "By cause: the operator, or a lease that ran out because the operator fell silent.",
        "cps",
        q.rate,
        Engine.LIMIT_CHANGES,
        "cause",
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
    _SCOPE.each(
        "KV cache",
        "Blocks that running requests hold, blocks that are kept for their prefix, and free ones.",
        "short",
        q.total,
        Engine.KV_BLOCKS,
        "state",
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
    _SCOPE.each(
        "Ends of requests",
        "How sequences ended in the engines.",
        "reqps",
        q.rate,
        Engine.FINISHED,
        "finished_reason",
        stacked=True,
    ),
    _SCOPE.each(
        "Refusals",
        "Requests that engines refused, by reason.",
        "reqps",
        q.rate,
        Engine.REJECTED,
        "reason",
        stacked=True,
    ),
]

_PODS: Final = [
    _SCOPE.each(
        "Running requests",
        "Requests that hold KV blocks, by pod; the spread shows how evenly the gateway routes.",
        "short",
        q.total,
        Engine.RUNNING,
        "pod",
    ),
    _SCOPE.each(
        "KV use",
        "Share of KV blocks that running requests hold, by pod.",
        "percentunit",
        q.highest,
        Engine.KV_USAGE,
        "pod",
    ),
    _SCOPE.each(
        "Time in steps",
        "Share of time that the step loop computes, by pod.",
        "percentunit",
        q.rate,
        Engine.BUSY,
        "pod",
    ),
    _SCOPE.each(
        "Heartbeat",
        "Turns of the step loop, by pod, idle ones too: 0 is a stuck engine.",
        "cps",
        q.rate,
        Engine.HEARTBEAT,
        "pod",
    ),
    _SCOPE.each(
        "Output tokens",
        "Tokens generated per second, by pod.",
        "short",
        q.rate,
        Engine.OUTPUT_TOKENS,
        "pod",
    ),
    _SCOPE.each(
        "In flight",
        "Requests that the gateways proxy to each replica.",
        "short",
        q.total,
        Gateway.IN_FLIGHT,
        "replica",
    ),
]
