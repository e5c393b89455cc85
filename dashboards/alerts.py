"""Alerts, and the runbook that says what to do about each.

An alert and its page of the runbook are one value, so neither can exist without the other. Severity is `critical` when
clients suffer or nobody is in control, and `warning` when it can wait for the morning.

The surprising idea: an alert about clients rests on the gateways' own counters alone, so that it fires while the
operator is gone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from capstan_api.metrics import Engine, Gateway, Operator
from capstan_api.status import ConditionType
from dashboards import control_plane, deployment
from dashboards.queries import DEPLOYMENT, highest, highest_over, in_condition, increase, series, share
from dashboards.rules import OBJECTIVE, RUNBOOK, Group, errors

CRITICAL, WARNING = "critical", "warning"
_POD: Final = (*DEPLOYMENT, "pod")
_WHO: Final = "{{ $labels.namespace }}/{{ $labels.deployment }}"


@dataclass(frozen=True)
class Alert:
    """`expr` fires for each series it gives; `lasting` is how long it must. `means` and `steps` are for the runbook."""

    name: str
    severity: str
    expr: str
    lasting: str
    summary: str
    description: str
    means: str
    steps: Sequence[str]
    dashboard: str = deployment.UID

    @property
    def rule(self) -> dict[str, Any]:
        """In the form of a Prometheus rule file."""
        rule: dict[str, Any] = {"alert": self.name, "expr": self.expr}
        if self.lasting:
            rule["for"] = self.lasting
        return rule | {
            "labels": {"severity": self.severity},
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook_url": f"{RUNBOOK}#{self.name.lower()}",
                "dashboard_url": _link(self.dashboard),
            },
        }


def _link(uid: str) -> str:
    choice = "?var-namespace={{ $labels.namespace }}&var-deployment={{ $labels.deployment }}"
    return f"/d/{uid}{choice if uid == deployment.UID else ''}"


def _burns(*pairs: tuple[str, str, float]) -> str:
    """Fires when, in any pair, both the short and the long window burn that many times faster than sustainable.

    Or when less than a quarter of the promised share is good: six times the budget of an 80 % objective is more than
    all requests, and even an outage would be silent.
    """

    def above(window: str, factor: float) -> str:
        return f"({errors(window)} > {factor:g} * (1 - {OBJECTIVE}) or {errors(window)} > 1 - {OBJECTIVE} / 4)"

    return " or ".join(f"({above(long, factor)} and {above(short, factor)})" for short, long, factor in pairs)


BURN: Final = (
    Alert(
        name="CapstanErrorBudgetBurnsFast",
        severity=CRITICAL,
        expr=_burns(("5m", "1h", 14.4), ("30m", "6h", 6)),
        lasting="2m",
        summary=f"{_WHO} misses the service level of class {{{{ $labels.slo_class }}}}",
        description="{{ $value | humanizePercentage }} of the requests of class {{ $labels.slo_class }} miss a "
        "threshold or fail: at this rate the error budget of a month is spent within days.",
        means="Clients notice: requests miss their thresholds or fail far more often than was promised. The budget is "
        "spent at least 14.4 times faster than it may be, over 5 minutes and an hour (2 % of a month's budget in an "
        "hour), or 6 times over 30 minutes and 6 hours, or most requests are bad. Where there are few requests, a "
        "single bad one can be enough: look at the request rate first.",
        steps=[
            "Open the dashboard. Is it TTFT or TPOT that is above its threshold, or do requests fail?",
            "TTFT high and requests waiting: capacity is short. Compare wanted with ready replicas; when the wanted "
            "number stands at `maxReplicas`, raise it, or lower the load of classes with less priority.",
            "TPOT high: read the last decisions (`kubectl describe infd NAME`). Limits should be falling; when they "
            "stand at `minSequences`, the thresholds cannot be met on this hardware.",
            "Failures: see CapstanRequestsFail.",
        ],
    ),
    Alert(
        name="CapstanErrorBudgetBurnsSlowly",
        severity=WARNING,
        expr=_burns(("2h", "1d", 3), ("6h", "3d", 1)),
        lasting="15m",
        summary=f"{_WHO} will miss its objective for class {{{{ $labels.slo_class }}}}",
        description="{{ $value | humanizePercentage }} of the requests of class {{ $labels.slo_class }} miss a "
        "threshold or fail, for hours: the error budget will not last.",
        means="No outage, but at this rate the objective of the window is missed.",
        steps=[
            "Look for a pattern over the day: does it come with load peaks (raise `minReplicas`, shorten "
            "`behavior.scaleUp.stabilizationWindowSeconds`), with rollouts, or with restarts?",
            "When the load is constant and the limits stand still, the objective is stricter than the hardware: change "
            "one of them.",
        ],
    ),
)

SERVICE: Final = (
    Alert(
        name="CapstanRequestsFail",
        severity=CRITICAL,
        expr=f"{share(Gateway.RESPONSES, DEPLOYMENT, '5m', outcome='~failed|truncated')} > 0.01",
        lasting="3m",
        summary=f"{_WHO} loses requests",
        description="{{ $value | humanizePercentage }} of the requests end in an error or in a stream that is cut off.",
        means="Engines die under requests, or answer 5xx. This is never load: load is answered with 429.",
        steps=[
            "`kubectl get pods -l capstan.dev/deployment=NAME`: restarts? The last termination message says why "
            "(out of memory, a stuck core, a lost device).",
            "Read the log of the pod that the gateway's log names; every line carries the request id.",
            "When it began with a rollout, put the old spec back: the stable revision starts again.",
        ],
    ),
    Alert(
        name="CapstanRequestsHeld",
        severity=CRITICAL,
        expr=f"min_over_time({series(Gateway.HELD)}[5m]) > 0",
        lasting="2m",
        summary=f"Requests to {_WHO} wait for a replica that does not come",
        description="{{ $value }} requests or more have been held for minutes because no replica is ready.",
        means="Holding covers a start from zero or a restart. When it lasts, the replica does not become ready, and "
        "clients get 429 at `routing.hold.timeoutSeconds`.",
        steps=[
            "`kubectl get infd NAME`: how many replicas are wanted and ready? Wanted 0: is the operator alive?",
            "Wanted and not ready: the start-up phases on the dashboard, and CapstanCapacityNotAvailable.",
            "Ready: the gateway does not know them. Read the condition BatchLimitsApplied and the operator's log.",
        ],
    ),
    Alert(
        name="CapstanCapacityNotAvailable",
        severity=WARNING,
        expr=in_condition(ConditionType.CAPACITY_AVAILABLE, "False"),
        lasting="5m",
        summary=f"{_WHO} does not get the replicas that it needs",
        description="Replicas have been pending for longer than scaling.pendingTimeoutSeconds, were refused, or an "
        "accelerator budget leaves fewer than are asked for; limits protect the admitted requests meanwhile.",
        means="The cluster has no node for a pod: no accelerator left, a quota, a taint, an image or a volume that "
        "cannot be had. Or an accelerator budget is too small for all who share it, and others earn more with what "
        "there is. Decisions about the other replicas go on, and nothing more is stacked on top.",
        steps=[
            "The condition's message says which, a scheduler's or an API server's refusal in its own words: "
            "`kubectl get infd NAME -o yaml`.",
            "No place: add nodes or quota, or lower `maxReplicas` to what there is; it recovers by itself.",
            "AcceleratorBudget: the operator's dashboard shows who has what of it. Raise `acceleratorBudgets`, or give "
            "the class that must not suffer a higher `priority`.",
        ],
    ),
    Alert(
        name="CapstanReplicasMissing",
        severity=WARNING,
        expr=f"{highest(Operator.DESIRED_REPLICAS, DEPLOYMENT)} > {highest(Operator.READY_REPLICAS, DEPLOYMENT)}",
        lasting="20m",
        summary=f"{_WHO} has fewer replicas ready than wanted",
        description="{{ $value }} replicas are wanted and fewer have been ready for 20 minutes.",
        means="Replicas start and do not become ready, again and again or very slowly.",
        steps=[
            "Which start-up phase do they stay in? Fetching: the model's source. Loading: memory. Warming: the device.",
            "`kubectl logs -l capstan.dev/deployment=NAME,app.kubernetes.io/component=engine -c engine --previous` for "
            "the last words.",
        ],
    ),
    Alert(
        name="CapstanRolloutFailed",
        severity=WARNING,
        expr=in_condition(ConditionType.ROLLOUT_HEALTHY, "False"),
        lasting="",
        summary=f"The rollout of {_WHO} failed",
        description="New replicas did not become ready within rollout.progressDeadlineSeconds; with autoRollback the "
        "stable revision serves again.",
        means="The newest spec does not work. Clients are served by the revision before it.",
        steps=[
            "The condition's message quotes the failing replica. Correct the spec, or put the old one back: either "
            "clears the condition.",
        ],
    ),
    Alert(
        name="CapstanConfigurationInvalid",
        severity=WARNING,
        expr=in_condition(ConditionType.CONFIGURATION_VALID, "False"),
        lasting="2m",
        summary=f"The resource {_WHO} cannot be acted upon",
        description="Its spec is refused; the last valid one, where there was one, stays in force.",
        means="The API server took a spec that the operator does not understand, such as one of a newer version.",
        steps=["The condition's message names the field and the remedy. Correct it and apply again."],
    ),
    Alert(
        name="CapstanMetricsStale",
        severity=WARNING,
        expr=in_condition(ConditionType.METRICS_FRESH, "~False|Unknown"),
        lasting="5m",
        summary=f"{_WHO} is steered without measurements",
        description="Measurements are older than scaling.staleMetrics.maxAgeSeconds: the last decision holds.",
        means="The operator cannot read /metrics or the admin port of the gateway or of engines. Nothing is scaled "
        "down for want of data; nothing is scaled up either.",
        steps=[
            "The operator's log names the address and the error. A NetworkPolicy of the cluster may keep it out: it "
            "needs the ports 8000, 8100, 9000 and 9100 of the pods.",
            "Is a pod ready for Kubernetes and deaf for others? Delete that pod; its requests drain first.",
        ],
    ),
)

ENGINES: Final = (
    Alert(
        name="CapstanLimitsReverted",
        severity=WARNING,
        # A replica that drains takes no limits any more: its lease may run out while it finishes what it has.
        expr=f"{increase(Engine.LIMIT_CHANGES, DEPLOYMENT, '15m', cause='lease_expired')} > 0 unless "
        f"{highest_over(Operator.UNREADY_REPLICAS, DEPLOYMENT, '15m', phase='draining')} > 0",
        lasting="",
        summary=f"Engines of {_WHO} fell back to their own limits",
        description="The operator did not renew the lease of the batch limits, so engines returned to the resource's "
        "own values.",
        means="By design engines outlive the operator; until it is back, nobody steers and TPOT may suffer at peaks.",
        steps=[
            "Is the operator running and leading? See CapstanOperatorDown and CapstanOperatorBlind.",
            "If it is, it cannot reach the engines' admin port 9100: network policies, or a changed admin token.",
        ],
    ),
    Alert(
        name="CapstanEngineStuck",
        severity=CRITICAL,
        expr=f"{increase(Engine.HEARTBEAT, _POD, '2m')} == 0",
        lasting="1m",
        summary="Engine {{ $labels.pod }} is stuck",
        description="The step loop of {{ $labels.pod }} has not turned for minutes although the process answers.",
        means="The core of an engine hangs, in the device's driver most likely. Its liveness probe fails and "
        "the kubelet restarts it; this alert says that it has not, or does so in vain.",
        steps=[
            "`kubectl describe pod POD`: is the liveness probe failing, and since when?",
            "`kubectl delete pod POD --grace-period=0` when it does not go; the operator starts another.",
            "The same node again: drain the node and look at its device.",
        ],
    ),
    Alert(
        name="CapstanEngineRestarts",
        severity=WARNING,
        expr=f"sum by ({', '.join(_POD)}) (resets({series(Engine.HEARTBEAT)}[30m])) >= 3",
        lasting="",
        summary="Engine {{ $labels.pod }} keeps restarting",
        description="The engine of {{ $labels.pod }} restarted {{ $value }} times within 30 minutes.",
        means="An engine loads and serves, and then dies, again and again. Requests without a first byte are "
        "retried elsewhere; streams are cut.",
        steps=[
            "`kubectl describe pod POD`, last state: OOMKilled wants more `resources.memoryMebibytes` or a smaller "
            "`kvCache.memoryMebibytes`; a message of the engine says what it met.",
        ],
    ),
)

OPERATOR: Final = (
    Alert(
        name="CapstanOperatorDown",
        severity=CRITICAL,
        expr=f"absent({series(Operator.IS_LEADER)} == 1)",
        lasting="2m",
        summary="No Capstan operator is leading",
        description="No operator holds the lease: deployments serve on, and nobody scales, heals or rolls them.",
        means="All operator pods are gone or cannot reach the API server. A takeover takes 20 seconds.",
        steps=[
            "`kubectl get pods -l app.kubernetes.io/component=operator -A` and their logs.",
            "`kubectl get lease -A | grep capstan`: who holds it, and since when was it renewed?",
            "When Prometheus only lost its target, the operator's PodMonitor or NetworkPolicy is to blame.",
        ],
        dashboard=control_plane.UID,
    ),
    Alert(
        name="CapstanOperatorBlind",
        severity=CRITICAL,
        expr=f"{highest(Operator.WATCH_AGE, ('namespace', 'pod', 'resource'))} > 120",
        lasting="1m",
        summary="Operator {{ $labels.pod }} does not see {{ $labels.resource }}",
        description="It has heard nothing of {{ $labels.resource }} for {{ $value | humanizeDuration }}; what it does "
        "rests on an old view.",
        means="A watch of the operator is dead, so that it does not see what happens. Above 180 s "
        "the liveness probe fails and the process starts anew.",
        steps=[
            "Does the API server answer (`kubectl get --raw /readyz`)? Then look at the operator's failed requests.",
            "403: the role was changed. `helm upgrade` puts it back.",
        ],
        dashboard=control_plane.UID,
    ),
    Alert(
        name="CapstanOperatorTurnsFail",
        severity=WARNING,
        expr=f"{share(Operator.TURNS, ('namespace',), '10m', outcome='error')} > 0.1",
        lasting="10m",
        summary="The Capstan operator fails in many of its turns",
        description="{{ $value | humanizePercentage }} of its turns end in an error.",
        means="Observing or applying fails for some objects: an API server that refuses, or an error of ours.",
        steps=[
            "The operator's log has each failed turn with the object's name and the error.",
            "Refusals by resource and code are on the dashboard: 403 is a role, 409 another writer, 429 and 5xx the "
            "API server.",
        ],
        dashboard=control_plane.UID,
    ),
)

ALERTS: Final = (*BURN, *SERVICE, *ENGINES, *OPERATOR)


def groups() -> tuple[Group, ...]:
    """The alerts in the form of rule groups."""
    named = {"slo": BURN, "service": SERVICE, "engines": ENGINES, "operator": OPERATOR}
    return tuple(Group(f"capstan-{name}-alerts", [alert.rule for alert in alerts]) for name, alerts in named.items())
