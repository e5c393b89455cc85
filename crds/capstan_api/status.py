"""`InferenceDeployment.status`: what the operator saw, decided and must remember over a restart.

Everything here can be lost without harm except `memory`, which carries the law's own state; it is opaque to people
and to every part but `capstan_operator.decide`. Floats do not exist in the contract: latencies are whole milliseconds,
shares and costs are decimal strings.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from capstan_api.contract import Contract, Count, Distinct, Timestamp
from capstan_api.limits import BatchLimits
from capstan_api.spec import Objective, Slo

_USUAL_PERCENTILE = 95


class ConditionStatus(StrEnum):
    """Kubernetes' three-valued truth."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class ConditionType(StrEnum):
    """Conditions in the sense of kstatus; `READY` is the summary that `kubectl wait` and GitOps tools read.

    `RECONCILING` and `STALLED` are there only while they are true.
    """

    READY = "Ready"
    AVAILABLE = "Available"
    PROGRESSING = "Progressing"
    SLO_MET = "SLOMet"
    SCALING_ACTIVE = "ScalingActive"
    METRICS_FRESH = "MetricsFresh"
    BATCH_LIMITS_APPLIED = "BatchLimitsApplied"
    CONFIGURATION_VALID = "ConfigurationValid"
    FEASIBLE = "Feasible"
    MODEL_CACHED = "ModelCached"
    CAPACITY_AVAILABLE = "CapacityAvailable"
    ROLLOUT_HEALTHY = "RolloutHealthy"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"


class Condition(Contract):
    """One continuous state of the deployment."""

    type: ConditionType = Field(description="Which state.")
    status: ConditionStatus = Field(description="True, False or Unknown.")
    reason: str = Field(
        min_length=1, max_length=128, pattern=r"^[A-Za-z][A-Za-z0-9]*$", description="One CamelCase word."
    )
    message: str = Field(max_length=1024, description="One sentence.")
    last_transition_time: Timestamp = Field(description="When `status` last changed, RFC 3339 in UTC.")
    observed_generation: int = Field(default=0, description="metadata.generation that the condition speaks of.")


class LimitsOnTrial(Contract):
    """Batch limits that one replica has before all others do."""

    replica: str = Field(max_length=253, description="Name of the replica.")
    max_sequences: int = Field(description="Requests that may run at the same time on it.")
    max_batched_tokens: int = Field(description="Tokens that one step of it may compute.")
    since: Timestamp = Field(description="When the trial began, RFC 3339 in UTC.")


class EffectiveBatchLimits(Contract):
    """The batch limits in force."""

    max_sequences: int = Field(description="Requests that may run at the same time on one replica.")
    max_batched_tokens: int = Field(description="Tokens that one step may compute.")
    applied_replicas: int = Field(description="Replicas on which these limits are in force.")
    last_change_time: Timestamp | None = Field(default=None, description="When they last changed, RFC 3339 in UTC.")
    reason: str = Field(default="", description="Why they last changed, one sentence.")
    on_trial: LimitsOnTrial | None = Field(
        default=None, description="Limits that are tried on one replica first; absent while nothing is tried."
    )


class SloStatus(Contract):
    """One class over the recent window of measurement."""

    name: str = Field(max_length=63, description="Name of the class.")
    ttft_milliseconds: int | None = Field(default=None, description="TTFT at the class's own percentile.")
    tpot_milliseconds: int | None = Field(default=None, description="TPOT at the class's own percentile.")
    attainment_percent: str | None = Field(default=None, description="Good requests over all, a decimal number.")
    error_budget_remaining_percent: str | None = Field(
        default=None, description="Share of the error budget that is left, a decimal number; negative when overdrawn."
    )
    requests: int = Field(default=0, description="Requests that the figures rest on.")


class DecisionAction(StrEnum):
    """What a decision did."""

    HOLD = "Hold"
    SET_LIMITS = "SetLimits"
    SCALE_UP = "ScaleUp"
    SCALE_DOWN = "ScaleDown"
    ROLL = "Roll"


class DecisionStatus(Contract):
    """One decision as people read it; the full record with its inputs is in the decision log."""

    time: Timestamp = Field(description="When it was taken, RFC 3339 in UTC.")
    action: DecisionAction = Field(description="What was done.")
    reason: str = Field(description="One CamelCase word: the binding constraint.")
    message: str = Field(description="One sentence.")
    from_value: str = Field(default="", description="The value before.")
    to_value: str = Field(default="", description="The value after.")
    inputs_hash: str = Field(description="Digest of the inputs; finds the full record in the decision log.")


class StartupPhaseStatus(Contract):
    """How long recent replicas took for one part of their start."""

    name: str = Field(
        max_length=63, description="Scheduling, Fetching, Loading, Warming: in this order, those that were seen."
    )
    p50_seconds: int | None = Field(default=None, description="Median.")
    p90_seconds: int | None = Field(default=None, description="90th percentile.")


class StartupStatus(Contract):
    """How long recent replicas took from start to ready."""

    p50_seconds: int | None = Field(default=None, description="Median.")
    p90_seconds: int | None = Field(default=None, description="90th percentile.")
    samples: int = Field(default=0, description="Starts that the figures rest on.")
    phases: Annotated[list[StartupPhaseStatus], Distinct(by="name")] = Field(
        default_factory=list, description="The same by phase of the start."
    )


class UsageStatus(Contract):
    """What was spent."""

    replica_hours: str = Field(default="0", description="Sum of all replicas' running time, a decimal number.")
    accelerator_hours: str = Field(
        default="0", description="Sum of the running time of their accelerators; 0 on processors only."
    )
    cost: str = Field(default="0", description="Sum of costPerHour over the replica hours, a decimal number.")
    since: Timestamp | None = Field(default=None, description="Start of the count, RFC 3339 in UTC.")


class Summary(Contract):
    """Ready-made texts for the columns of `kubectl get`; the figures behind them are elsewhere in status."""

    model: str = Field(default="", max_length=256, description="What is served, as requests name it.")
    variant: str = Field(default="", max_length=63, description="How it is run.")
    replicas: str = Field(default="", max_length=32, description="Ready over desired replicas, such as 3/4.")
    slo: str = Field(default="", max_length=32, description="Met, Missed or Unknown; the worst class counts.")
    ttft: str = Field(
        default="",
        max_length=32,
        description="TTFT over its threshold, such as 412/1000ms; p99 is added if it is not p95.",
    )
    tpot: str = Field(default="", max_length=32, description="TPOT over its threshold, such as 38/60ms, likewise.")
    batch: str = Field(default="", max_length=32, description="Sequences and tokens of the limits, such as 64x2048.")
    budget: str = Field(default="", max_length=16, description="Error budget that is left, in per cent; the least one.")


class InferenceDeploymentStatus(Contract):
    """The observed state. Written by the operator only."""

    observed_generation: int = Field(default=0, description="metadata.generation that this status answers.")
    replicas: Count = Field(default=0, description="Replicas that exist, in whatever phase.")
    ready_replicas: Count = Field(default=0, description="Replicas that take requests.")
    pending_replicas: Count = Field(default=0, description="Replicas that nothing runs yet, for lack of room mostly.")
    starting_replicas: Count = Field(default=0, description="Replicas that run and are not ready yet.")
    draining_replicas: Count = Field(default=0, description="Replicas that finish what they accepted, then stop.")
    desired_replicas: Count = Field(default=0, description="Replicas wanted by the last decision.")
    selector: str = Field(
        default="", max_length=1024, description="Label selector of the engine pods, for the scale subresource."
    )
    revision: str = Field(default="", max_length=63, description="Digest of the part of spec that engines run with.")
    stable_revision: str = Field(
        default="",
        max_length=63,
        description="The last revision whose replicas all became ready; rollbacks return to it.",
    )
    effective_batch_limits: EffectiveBatchLimits | None = None
    slos: Annotated[list[SloStatus], Distinct(by="name")] = Field(
        default_factory=list, description="Results by SLO class."
    )
    startup: StartupStatus = Field(default_factory=StartupStatus)
    usage: UsageStatus = Field(default_factory=UsageStatus)
    last_decision: DecisionStatus | None = Field(default=None, description="The newest decision.")
    decision_history: list[DecisionStatus] = Field(
        default_factory=list, max_length=10, description="Recent decisions, newest first."
    )
    recommendation: DecisionStatus | None = Field(default=None, description="What mode Shadow would have done.")
    endpoint: str | None = Field(default=None, description="Where clients reach the OpenAI-compatible door.")
    conditions: Annotated[list[Condition], Distinct(by="type")] = Field(
        default_factory=list, description="Continuous states."
    )
    summary: Summary = Field(default_factory=Summary)
    memory: str = Field(default="", max_length=65_536, description="The law's own state, opaque.")


def summarize(
    model: str,
    variant: str,
    classes: list[Slo],
    results: list[SloStatus],
    limits: BatchLimits | EffectiveBatchLimits | None,
    ready: int,
    desired: int,
) -> Summary:
    """The columns' texts. Latencies are those of the first class that declares such a threshold; `-` is unmeasured."""
    measured = {result.name: result for result in results}
    verdicts = {_verdict(c, measured.get(c.name)) for c in classes}
    ttft = next((_against(_measured(measured, c.name, "ttft"), c.ttft) for c in classes if c.ttft), "")
    tpot = next((_against(_measured(measured, c.name, "tpot"), c.tpot) for c in classes if c.tpot), "")
    left = [float(r.error_budget_remaining_percent) for r in results if r.error_budget_remaining_percent is not None]
    return Summary.made(
        model=model,
        variant=variant,
        replicas=f"{ready}/{desired}",
        slo=next((v for v in ("Missed", "Met") if v in verdicts), "Unknown"),
        ttft=ttft,
        tpot=tpot,
        batch=f"{limits.max_sequences}x{limits.max_batched_tokens}" if limits else "",
        budget=f"{min(left):.1f}" if left else "",
    )


def _verdict(declared: Slo, result: SloStatus | None) -> str:
    if result is None or result.attainment_percent is None:
        return "Unknown"
    return "Met" if float(result.attainment_percent) >= float(declared.objective_percent) else "Missed"


def _measured(results: dict[str, SloStatus], name: str, latency: str) -> int | None:
    value: int | None = getattr(results[name], f"{latency}_milliseconds") if name in results else None
    return value


def _against(milliseconds: int | None, declared: Objective) -> str:
    # The column's head says P95.
    suffix = "" if declared.percentile == _USUAL_PERCENTILE else f" p{declared.percentile}"
    return f"{'-' if milliseconds is None else milliseconds}/{declared.threshold_milliseconds}ms{suffix}"
