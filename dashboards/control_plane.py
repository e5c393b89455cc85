"""*Operator*: does it see, does it decide, does the API server answer, who leads, and who has which accelerators.

What is told of a deployment carries the deployment's own namespace, so the choice of operators does not narrow it.
"""

from typing import Final

from capstan_api.metrics import Operator
from dashboards import queries as q
from dashboards.frame import Row, Variable, frame
from dashboards.panels import BAD, GOOD, WARN, Query, lines, number
from dashboards.scope import Scope

UID: Final = "capstan-operator"
_WHERE: Final = {"namespace": "~$namespace"}
_FAILED: Final = "~40[^4]|4[^0].|5..|error"
_SCOPE: Final = Scope(_WHERE, among=())


def render() -> str:
    """The dashboard's JSON."""
    return frame(
        UID,
        "Capstan / Operator",
        "The operator itself: leadership, turns, age of what it knows, the accelerators that it divides, and its "
        "requests to the Kubernetes API.",
        [Variable("namespace", Operator.IS_LEADER, many=True)],
        [
            Row("Now", _NUMBERS),
            Row("The loop", _LOOP),
            Row("Accelerator budgets", _BUDGETS),
            Row("The Kubernetes API", _API),
        ],
    )


_NUMBERS: Final = [
    number(
        "Leaders",
        "Operators that hold the lease; anything but 1 for longer than a takeover is wrong.",
        "short",
        Query(f"sum({q.total(Operator.IS_LEADER, ('namespace',), **_WHERE)})", "leaders"),
        (None, BAD),
        (1, GOOD),
        (2, BAD),
        width=6,
    ),
    number(
        "InferenceDeployments",
        "Objects that the operator looks after.",
        "short",
        Query(f"max({q.highest(Operator.OBJECTS, ('namespace',), **_WHERE)})", "objects"),
        width=6,
    ),
    number(
        "Oldest watch",
        "Age of the oldest of the operator's views of the cluster; above 180 s it restarts itself.",
        "s",
        Query(f"max({q.highest(Operator.WATCH_AGE, ('resource',), **_WHERE)})", "age"),
        (None, GOOD),
        (60, WARN),
        (120, BAD),
        width=6,
    ),
    number(
        "Failed turns",
        "Share of turns that failed in the last 5 minutes.",
        "percentunit",
        Query(
            f"(sum({q.rate(Operator.TURNS, ('outcome',), '5m', outcome='error', **_WHERE)}) or vector(0)) / "
            f"sum({q.rate(Operator.TURNS, ('outcome',), '5m', **_WHERE)})",
            "failed",
        ),
        (None, GOOD),
        (0.01, WARN),
        (0.1, BAD),
        width=6,
    ),
]

_LOOP: Final = [
    lines(
        "Time of a turn",
        "Observe, decide and apply for one object: median and 99th percentile.",
        "s",
        Query(q.quantile(0.5, Operator.RECONCILE_SECONDS, (), **_WHERE), "p50"),
        Query(q.quantile(0.99, Operator.RECONCILE_SECONDS, (), **_WHERE), "p99"),
    ),
    _SCOPE.each(
        "Pace",
        "Time between two turns of a loop that nothing wakes; it grows with the number of objects.",
        "s",
        q.highest,
        Operator.TURN_INTERVAL,
        "pod",
    ),
    _SCOPE.each(
        "Turns by outcome",
        "Turns of all objects' loops; errors are retried with a growing pause.",
        "ops",
        q.rate,
        Operator.TURNS,
        "outcome",
        stacked=True,
    ),
    lines(
        "Decisions by action",
        "What was decided, over all objects; Hold is the ordinary case.",
        "ops",
        Query(q.rate(Operator.DECISIONS, ("action",)), "{{action}}"),
        stacked=True,
    ),
    _SCOPE.each(
        "Watch age",
        "Time since each watch was last known to be alive, by resource: the highest of all operators.",
        "s",
        q.highest,
        Operator.WATCH_AGE,
        "resource",
        mark=120,
    ),
    _SCOPE.each(
        "Leadership", "1 for the operator that holds the lease.", "short", q.highest, Operator.IS_LEADER, "pod"
    ),
]

_AT_A_BUDGET: Final = (*q.DEPLOYMENT, "budget")

_BUDGETS: Final = [
    lines(
        "Accelerators by budget",
        "What the resources at a budget have or are promised, and what they would have if each were alone; dashes are "
        "what there is to divide. Empty where no budget is declared.",
        "short",
        Query(f"sum by (budget) ({q.highest(Operator.ACCELERATORS_HELD, _AT_A_BUDGET)})", "{{budget}} held"),
        Query(f"sum by (budget) ({q.highest(Operator.ACCELERATORS_ASKED, _AT_A_BUDGET)})", "{{budget}} asked for"),
        Query(q.highest(Operator.ACCELERATOR_BUDGET, ("budget",)), "{{budget}}", dashed=True),
        width=12,
    ),
    lines(
        "Accelerators withheld",
        "What a resource asks for and does not get, because others at its budget earn more with it or have a higher "
        "priority.",
        "short",
        Query(q.highest(Operator.ACCELERATORS_WITHHELD, _AT_A_BUDGET), "{{namespace}}/{{deployment}}: {{budget}}"),
        width=12,
        stacked=True,
    ),
]

_API: Final = [
    _SCOPE.each(
        "Requests by verb",
        "Requests to the Kubernetes API. Writes are 0 while nothing changes.",
        "reqps",
        q.rate,
        Operator.API_REQUESTS,
        "verb",
        stacked=True,
    ),
    _SCOPE.each(
        "Admission reviews",
        "Answers to the API server about new and changed specs, by verdict: passed, warned, refused.",
        "reqps",
        q.rate,
        Operator.REVIEWS,
        "verdict",
        stacked=True,
    ),
    lines(
        "Failed requests",
        "Answers of 400 and above, and requests without an answer, by resource and code. 404 is none: it looks what is "
        "there before it writes.",
        "reqps",
        Query(
            f"{q.rate(Operator.API_REQUESTS, ('resource', 'code'), code=_FAILED, **_WHERE)} or on () vector(0)",
            "{{resource}} {{code}}",
        ),
        stacked=True,
    ),
    lines(
        "Time of a request",
        "99th percentile of requests to the Kubernetes API, by verb, watches aside.",
        "s",
        Query(q.quantile(0.99, Operator.API_SECONDS, ("verb",), **_WHERE), "{{verb}} p99"),
    ),
]
