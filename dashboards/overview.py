"""*SLO overview*: is every promise kept, what is left of the error budgets, and what does it take.

Shows all deployments at once, so latencies are shares of their thresholds: 100 % is the threshold for everyone.
"""

from typing import Final

from capstan_api.metrics import Gateway, Operator
from dashboards import queries as q
from dashboards.frame import Row, Variable, frame
from dashboards.panels import Column, Query, lines, number, rows_of
from dashboards.scope import Scope

UID: Final = "capstan-overview"
_WHERE: Final = {"namespace": "~$namespace", "deployment": "~$deployment"}
_NAME: Final = "{{deployment}}"
_CLASS: Final = f"{_NAME} {{{{slo_class}}}}"
_SCOPE: Final = Scope(_WHERE, who=_NAME)
_LIMIT: Final = (*q.DEPLOYMENT, "limit")


def render() -> str:
    """The dashboard's JSON."""
    return frame(
        UID,
        "Capstan / SLO overview",
        "Attainment, error budget, burn rate, latencies, replicas and hours of every InferenceDeployment.",
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
    _SCOPE.lowest_attainment("Lowest attainment"),
    _SCOPE.least_budget("Least budget left"),
    number(
        "Requests",
        "Requests per second that arrive at all gateways.",
        "reqps",
        Query(f"sum({q.rate(Gateway.REQUESTS, q.DEPLOYMENT, **_WHERE)})", "requests"),
    ),
    _SCOPE.replicas_ready(),
    _SCOPE.replica_hours(),
    _SCOPE.hours("Accelerator-hours", Operator.ACCELERATOR_HOURS, "replicas' accelerators"),
]

_SERVICE_LEVELS: Final = [_SCOPE.attainment(), _SCOPE.budget_left(), _SCOPE.burn_rate()]

_LATENCIES: Final = [
    *(
        lines(
            f"{title} p95 of its threshold",
            f"95th percentile of {sentence}, as a share of the class's threshold.",
            "percentunit",
            Query(q.against_threshold(metric, objective, **_WHERE), _CLASS),
            mark=1,
        )
        for title, sentence, metric, objective in (
            ("TTFT", "the time to first token, held time included", Gateway.TTFT, "ttft"),
            ("TPOT", "the time per output token", Gateway.TPOT, "tpot"),
        )
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
        "Replicas paid for",
        "Replica-hours per hour: starting and leaving replicas are among them.",
        "short",
        Query(f"3600 * {q.rate(Operator.REPLICA_HOURS, q.DEPLOYMENT, **_WHERE)}", _NAME),
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
