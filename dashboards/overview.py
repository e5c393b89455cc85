"""*SLO overview*: is every promise kept, what is left of the error budgets, and what does it take.

Shows all deployments at once, so latencies are shares of their thresholds: 100 % is the threshold for everyone.
"""

from typing import Final

from capstan_api.metrics import Gateway, Operator
from dashboards import queries as q
from dashboards.frame import Row, Variable, frame
from dashboards.panels import BAD, GOOD, WARN, Column, Query, lines, number, rows_of

UID: Final = "capstan-overview"
_WHERE: Final = {"namespace": "~$namespace", "deployment": "~$deployment"}
_CLASS: Final = "{{deployment}} {{slo_class}}"
_NAME: Final = "{{deployment}}"
_LIMIT: Final = (*q.DEPLOYMENT, "limit")


def render() -> str:
    """The dashboard's JSON."""
    return frame(
        UID,
        "Capstan / SLO overview",
        "Attainment, error budget, burn rate, latencies and replica hours of every InferenceDeployment.",
        [
            Variable("namespace", Operator.DESIRED_REPLICAS, many=True),
            Variable("deployment", Operator.DESIRED_REPLICAS, 'namespace=~"$namespace"', many=True),
        ],
        [
            Row("Now", _NUMBERS),
            Row("Service levels", [*_SERVICE_LEVELS, *_LATENCIES]),
            Row("Replicas and limits", _CAPACITY),
            Row("Deployments", [_TABLE]),
        ],
        **_WHERE,
    )


_NUMBERS: Final = [
    number(
        "Deployments",
        "InferenceDeployments that the operator answers for.",
        "short",
        Query(f"count({q.highest(Operator.DESIRED_REPLICAS, q.DEPLOYMENT, **_WHERE)})", "deployments"),
    ),
    number(
        "Lowest attainment",
        "Share of good requests in the last hour, of the class that fares worst.",
        "percentunit",
        Query(f"min({q.good_ratio('1h', **_WHERE)})", "attainment"),
        (None, BAD),
        (0.9, WARN),
        (0.95, GOOD),
    ),
    number(
        "Least budget left",
        "Error budget left over the SLO's own window, of the class that has least; negative when overdrawn.",
        "percentunit",
        Query(f"min({q.highest(Operator.BUDGET, q.CLASS, **_WHERE)})", "budget"),
        (None, BAD),
        (0, WARN),
        (0.25, GOOD),
    ),
    number(
        "Requests",
        "Requests per second that arrive at all gateways.",
        "reqps",
        Query(f"sum({q.rate(Gateway.REQUESTS, q.DEPLOYMENT, **_WHERE)})", "requests"),
    ),
    number(
        "Replicas ready",
        "Replicas that take requests, of all deployments.",
        "short",
        Query(f"sum({q.highest(Operator.READY_REPLICAS, q.DEPLOYMENT, **_WHERE)})", "ready"),
    ),
    number(
        "Accelerator-hours",
        "Running time of all replicas within the range shown.",
        "h",
        Query(f"sum({q.increase(Operator.REPLICA_HOURS, q.DEPLOYMENT, '$__range', **_WHERE)})", "hours"),
    ),
]

_SERVICE_LEVELS: Final = [
    lines(
        "Attainment",
        "Share of requests that met every threshold of their class, over the last 5 minutes, as clients saw it.",
        "percentunit",
        Query(q.good_ratio("5m", **_WHERE), _CLASS),
        Query(q.highest(Operator.OBJECTIVE, q.CLASS, **_WHERE), f"{_CLASS} objective", dashed=True),
    ),
    lines(
        "Error budget left",
        "What is left of the misses that the objective allows over the SLO's window; below 0 it is overdrawn.",
        "percentunit",
        Query(q.highest(Operator.BUDGET, q.CLASS, **_WHERE), _CLASS),
        mark=0,
    ),
    lines(
        "Burn rate",
        "How many times faster than sustainable the budget is spent, over 5 minutes and over the last hour.",
        "short",
        Query(q.burn_rate("5m", **_WHERE), f"{_CLASS} 5m"),
        Query(q.burn_rate("1h", **_WHERE), f"{_CLASS} 1h", dashed=True),
        mark=1,
    ),
]

_LATENCIES: Final = [
    lines(
        "TTFT p95 of its threshold",
        "95th percentile of the time to first token, held time included, as a share of the class's threshold.",
        "percentunit",
        Query(q.against_threshold(Gateway.TTFT, "ttft", **_WHERE), _CLASS),
        mark=1,
    ),
    lines(
        "TPOT p95 of its threshold",
        "95th percentile of the time per output token, as a share of the class's threshold.",
        "percentunit",
        Query(q.against_threshold(Gateway.TPOT, "tpot", **_WHERE), _CLASS),
        mark=1,
    ),
    lines(
        "Requests",
        "Requests that arrive at the gateways.",
        "reqps",
        Query(q.rate(Gateway.REQUESTS, q.CLASS, **_WHERE), _CLASS),
        stacked=True,
    ),
]

_CAPACITY: Final = [
    lines(
        "Replicas",
        "Replicas that take requests, and those that the last decision wanted.",
        "short",
        Query(q.highest(Operator.READY_REPLICAS, q.DEPLOYMENT, **_WHERE), f"{_NAME} ready"),
        Query(q.highest(Operator.DESIRED_REPLICAS, q.DEPLOYMENT, **_WHERE), f"{_NAME} wanted", dashed=True),
    ),
    lines(
        "Limits of their envelope",
        "Requests that may run at the same time, and tokens of one step, as last decided, as shares of what the "
        "engines allocated for. Limits move before replicas do.",
        "percentunit",
        Query(
            f"{q.highest(Operator.LIMIT, _LIMIT, **_WHERE)} / "
            f"{q.highest(Operator.LIMIT_BOUND, _LIMIT, bound='max', **_WHERE)}",
            f"{_NAME} {{{{limit}}}}",
        ),
    ),
    lines(
        "Accelerator-hours per hour",
        "Replicas that were paid for, on average over the last hour.",
        "short",
        Query(q.increase(Operator.REPLICA_HOURS, q.DEPLOYMENT, "1h", **_WHERE), _NAME),
        stacked=True,
    ),
]

_TABLE: Final = rows_of(
    "Deployments",
    "One line for each deployment; figures of its worst class.",
    q.DEPLOYMENT,
    Column("Ready", "short", q.highest(Operator.READY_REPLICAS, q.DEPLOYMENT, **_WHERE)),
    Column("Wanted", "short", q.highest(Operator.DESIRED_REPLICAS, q.DEPLOYMENT, **_WHERE)),
    Column("Attainment 1h", "percentunit", f"min by (namespace, deployment) ({q.good_ratio('1h', **_WHERE)})"),
    Column("Burn rate 1h", "short", f"max by (namespace, deployment) ({q.burn_rate('1h', **_WHERE)})"),
    Column(
        "Budget left",
        "percentunit",
        f"min by (namespace, deployment) ({q.highest(Operator.BUDGET, q.CLASS, **_WHERE)})",
    ),
    Column(
        "TTFT p95 of threshold",
        "percentunit",
        f"max by (namespace, deployment) ({q.against_threshold(Gateway.TTFT, 'ttft', **_WHERE)})",
    ),
    Column(
        "TPOT p95 of threshold",
        "percentunit",
        f"max by (namespace, deployment) ({q.against_threshold(Gateway.TPOT, 'tpot', **_WHERE)})",
    ),
    link="/d/capstan-deployment?var-namespace=${__data.fields.namespace}&var-deployment=${__value.text}",
)
