"""`InferenceDeployment.status`: what the operator saw, decided and must remember over a restart.

Everything here can be lost without harm except `memory`, which carries the law's own state; it is opaque to people
and to every part but `capstan_operator.decide`. Floats do not exist in the contract: latencies are whole milliseconds,
shares and costs are decimal strings.
"""

from enum import StrEnum

from pydantic import Field

from capstan_api.spec import Contract, Count


class ConditionStatus(StrEnum):
    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class ConditionType(StrEnum):
    """Conditions in the sense of kstatus; `READY` is the summary that `kubectl wait` and GitOps tools read."""

    READY = "Ready"
    AVAILABLE = "Available"
    PROGRESSING = "Progressing"
    SLO_MET = "SLOMet"
    SCALING_ACTIVE = "ScalingActive"
    METRICS_FRESH = "MetricsFresh"
    BATCH_LIMITS_APPLIED = "BatchLimitsApplied"


class Condition(Contract):
    type: ConditionType
    status: ConditionStatus
    reason: str = Field(min_length=1, max_length=128, pattern=r"^[A-Za-z][A-Za-z0-9]*$")
    message: str = Field(max_length=1024)
    last_transition_time: str = Field(description="RFC 3339, UTC.")
    observed_generation: int = 0


class EffectiveBatchLimits(Contract):
    max_sequences: int
    max_batched_tokens: int
    applied_replicas: int = Field(description="Replicas on which they are in force.")
    last_change_time: str | None = None
    reason: str = ""


class SloStatus(Contract):
    """One class over the recent window of measurement."""

    name: str
    ttft_milliseconds: int | None = Field(default=None, description="At the class's own percentile.")
    tpot_milliseconds: int | None = None
    attainment_percent: str | None = Field(default=None, description="Good requests over all, recent window.")
    error_budget_remaining_percent: str | None = None
    requests: int = Field(default=0, description="Requests that the figures rest on.")


class DecisionAction(StrEnum):
    HOLD = "Hold"
    SET_LIMITS = "SetLimits"
    SCALE_UP = "ScaleUp"
    SCALE_DOWN = "ScaleDown"
    ROLL = "Roll"


class DecisionStatus(Contract):
    """One decision as people read it; the full record with its inputs is in the decision log."""

    time: str
    action: DecisionAction
    reason: str = Field(description="One CamelCase word: the binding constraint.")
    message: str = Field(description="One sentence.")
    from_value: str = ""
    to_value: str = ""
    inputs_hash: str


class StartupStatus(Contract):
    p50_seconds: int | None = None
    p90_seconds: int | None = None
    samples: int = 0


class UsageStatus(Contract):
    replica_hours: str = "0"
    cost: str = "0"
    since: str | None = None


class InferenceDeploymentStatus(Contract):
    """The observed state."""

    observed_generation: int = 0
    replicas: Count = 0
    ready_replicas: Count = 0
    starting_replicas: Count = 0
    draining_replicas: Count = 0
    desired_replicas: Count = 0
    selector: str = ""
    revision: str = ""
    effective_batch_limits: EffectiveBatchLimits | None = None
    slos: list[SloStatus] = Field(
        default_factory=list,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    startup: StartupStatus = Field(default_factory=StartupStatus)
    usage: UsageStatus = Field(default_factory=UsageStatus)
    last_decision: DecisionStatus | None = None
    decision_history: list[DecisionStatus] = Field(default_factory=list, max_length=10)
    recommendation: DecisionStatus | None = Field(default=None, description="What mode Shadow would have done.")
    endpoint: str | None = Field(default=None, description="Where clients reach the OpenAI-compatible door.")
    conditions: list[Condition] = Field(
        default_factory=list,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    memory: str = Field(default="", max_length=65_536, description="The law's own state, opaque.")
