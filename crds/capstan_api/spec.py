"""`InferenceDeployment.spec`: what a platform engineer declares.

Python names are snake_case, the resource's are camelCase; both are accepted from Python, only camelCase is written.
Rules of the house: no floats, units in the names, CamelCase enums, lists of named things are maps by `name`, defaults
live in the schema, cross-field rules are CEL (`cel_rules`) and are checked here a second time for the worlds that have
no API server. A field that nothing acts on is not here.
"""

from enum import StrEnum
from typing import Annotated, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic.alias_generators import to_camel

from capstan_api.engine_args import MetricsCompatibility, Precision

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", min_length=1, max_length=63)]
# A decimal number as a string: the contract has no floats.
Decimal = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}(\.[0-9]{1,6})?$", max_length=16)]
Percent = Annotated[str, StringConstraints(pattern=r"^([0-9]{1,2}(\.[0-9]{1,4})?|100)$", max_length=8)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]
Seconds = Annotated[int, Field(ge=0, le=31_536_000)]


class Rule(BaseModel):
    """One cross-field rule in CEL, with the sentence that a person gets when it is broken."""

    model_config = ConfigDict(frozen=True)

    rule: str
    message: str


class Contract(BaseModel):
    """Base of everything inside the resource."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        extra="forbid",
        frozen=True,
    )
    cel_rules: ClassVar[tuple[Rule, ...]] = ()


class Mode(StrEnum):
    """Who moves a value."""

    AUTO = "Auto"
    SHADOW = "Shadow"
    MANUAL = "Manual"


class LimitsMode(StrEnum):
    AUTO = "Auto"
    FIXED = "Fixed"


class Switch(StrEnum):
    ENABLED = "Enabled"
    DISABLED = "Disabled"


class RoutingPolicy(StrEnum):
    PREFIX_AWARE = "PrefixAware"
    LEAST_LOADED = "LeastLoaded"


class ModelSource(Contract):
    """Where the checkpoint lies."""

    uri: Annotated[
        str, StringConstraints(pattern=r"^(bundled://[a-z0-9][a-z0-9._-]*|file:///.+)$", min_length=1, max_length=1024)
    ] = Field(description="`bundled://NAME` for a model shipped with Capstan, or `file:///DIRECTORY`.")


class ModelSpec(Contract):
    """What is served."""

    source: ModelSource
    served_model_names: Annotated[
        list[Annotated[str, StringConstraints(min_length=1, max_length=256)]], Field(max_length=8)
    ] = Field(default_factory=list, description="Names that requests may use; the resource's name when empty.")
    max_model_length: int = Field(
        default=8192, ge=16, le=10_000_000, description="Longest prompt plus output, in tokens."
    )


class Resources(Contract):
    """What one replica gets."""

    cpu_millicores: int = Field(default=1000, ge=100, le=1_024_000, description="CPU share of one replica.")


class Variant(Contract):
    """One way of running the model."""

    name: Name
    precision: Precision = Field(default=Precision.AUTO, description="Auto takes the checkpoint's own.")
    resources: Resources = Field(default_factory=Resources)
    cost_per_hour: Decimal = Field(default="0", description="Cost of one replica for one hour, in your currency.")


class Batching(Contract):
    """The envelope: what an engine allocates for once, and within which its limits move live."""

    max_sequences: int = Field(default=64, ge=1, le=8192)
    max_batched_tokens: int = Field(default=2048, ge=1, le=1_048_576)
    min_sequences: int = Field(default=4, ge=1, le=8192)
    min_batched_tokens: int = Field(default=64, ge=1, le=1_048_576)

    cel_rules = (
        Rule(rule="self.minSequences <= self.maxSequences", message="minSequences must not exceed maxSequences"),
        Rule(
            rule="self.minBatchedTokens <= self.maxBatchedTokens",
            message="minBatchedTokens must not exceed maxBatchedTokens",
        ),
        Rule(
            rule="self.maxBatchedTokens >= self.maxSequences",
            message="maxBatchedTokens must be at least maxSequences: every running request needs a token a step",
        ),
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _require(self.min_sequences <= self.max_sequences, self.cel_rules[0])
        _require(self.min_batched_tokens <= self.max_batched_tokens, self.cel_rules[1])
        _require(self.max_batched_tokens >= self.max_sequences, self.cel_rules[2])
        return self


class KvCache(Contract):
    block_size: int = Field(default=16, ge=1, le=256, description="KV slots in one block.")
    memory_mebibytes: int = Field(default=512, ge=1, le=4_194_304)


class Toggle(Contract):
    mode: Switch = Switch.ENABLED


class EngineSpec(Contract):
    """How each replica runs. A change here starts a new revision."""

    batching: Batching = Field(default_factory=Batching)
    kv_cache: KvCache = Field(default_factory=KvCache)
    prefix_caching: Toggle = Field(default_factory=Toggle)
    max_queued_requests: int = Field(
        default=256, ge=0, le=100_000, description="Waiting requests per replica beyond which 429 is answered."
    )


class Objective(Contract):
    """A latency threshold that the given percentile of requests must meet."""

    percentile: int = Field(default=95, ge=50, le=99)
    threshold_milliseconds: int = Field(ge=1, le=3_600_000)


class Selector(Contract):
    """Which requests belong to the class. Without one, the header's value is the class's name."""

    header_value: Annotated[str, StringConstraints(min_length=1, max_length=63)] | None = None
    model_alias: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = None


class Slo(Contract):
    """One SLO class. The first class in the list takes the requests that name none."""

    name: Name
    priority: int = Field(default=0, ge=-1000, le=1000, description="Higher is admitted first and preempted last.")
    selector: Selector = Field(default_factory=Selector)
    ttft: Objective | None = None
    tpot: Objective | None = None
    objective_percent: Percent = Field(default="95", description="Share of requests that must meet every threshold.")
    window_seconds: int = Field(default=2_419_200, ge=60, le=7_776_000, description="Window of the error budget.")

    cel_rules = (Rule(rule="has(self.ttft) || has(self.tpot)", message="ttft or tpot is required"),)

    @model_validator(mode="after")
    def _has_objective(self) -> Self:
        _require(self.ttft is not None or self.tpot is not None, self.cel_rules[0])
        return self


class BatchLimitsPolicy(Contract):
    """How the live limits move inside the envelope."""

    mode: LimitsMode = LimitsMode.AUTO
    adjustment_interval_seconds: int = Field(default=5, ge=1, le=600)
    max_step_percent: int = Field(default=25, ge=1, le=100, description="Largest change in one adjustment.")


class Idle(Contract):
    scale_to_zero_after_seconds: int = Field(
        default=900, ge=1, le=31_536_000, description="Without a request for this long, minReplicas 0 is used."
    )


class Stabilization(Contract):
    stabilization_window_seconds: Seconds


class Behavior(Contract):
    scale_up: Stabilization = Field(default_factory=lambda: Stabilization(stabilization_window_seconds=15))
    scale_down: Stabilization = Field(default_factory=lambda: Stabilization(stabilization_window_seconds=180))


class StaleMetrics(Contract):
    max_age_seconds: int = Field(
        default=30, ge=1, le=3600, description="Older measurements are not acted upon: the last decision holds."
    )


class Scaling(Contract):
    """How many replicas, and who decides."""

    mode: Mode = Mode.AUTO
    min_replicas: int = Field(default=1, ge=0, le=10_000)
    max_replicas: int = Field(default=1, ge=1, le=10_000)
    replicas: int | None = Field(default=None, ge=0, le=10_000, description="Replicas in mode Manual.")
    batch_limits: BatchLimitsPolicy = Field(default_factory=BatchLimitsPolicy)
    idle: Idle = Field(default_factory=Idle)
    behavior: Behavior = Field(default_factory=Behavior)
    stale_metrics: StaleMetrics = Field(default_factory=StaleMetrics)

    cel_rules = (
        Rule(rule="self.minReplicas <= self.maxReplicas", message="minReplicas must not exceed maxReplicas"),
        Rule(rule="self.mode != 'Manual' || has(self.replicas)", message="mode Manual needs replicas"),
    )

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        _require(self.min_replicas <= self.max_replicas, self.cel_rules[0])
        _require(self.mode is not Mode.MANUAL or self.replicas is not None, self.cel_rules[1])
        return self


class Hold(Contract):
    """Requests that wait at the gateway while no replica is ready."""

    max_requests: int = Field(default=200, ge=0, le=100_000)
    timeout_seconds: int = Field(default=120, ge=1, le=3600)


class Routing(Contract):
    policy: RoutingPolicy = RoutingPolicy.PREFIX_AWARE
    hold: Hold = Field(default_factory=Hold)


class Rollout(Contract):
    """How replicas of a new revision take over."""

    max_surge: int = Field(default=1, ge=0, le=1000)
    max_unavailable: int = Field(default=0, ge=0, le=1000)

    cel_rules = (
        Rule(rule="self.maxSurge + self.maxUnavailable > 0", message="maxSurge and maxUnavailable must not both be 0"),
    )

    @model_validator(mode="after")
    def _can_move(self) -> Self:
        _require(self.max_surge + self.max_unavailable > 0, self.cel_rules[0])
        return self


class Disruption(Contract):
    drain_timeout_seconds: int = Field(
        default=60, ge=0, le=86_400, description="How long a replica may take to finish what it accepted."
    )


class Observability(Contract):
    metrics_compatibility: MetricsCompatibility = MetricsCompatibility.NONE
    step_log: Switch = Field(default=Switch.DISABLED, description="Write one line per step for calibration.")


class InferenceDeploymentSpec(Contract):
    """The desired state."""

    model: ModelSpec
    variants: Annotated[
        list[Variant],
        Field(
            min_length=1,
            max_length=1,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = Field(default_factory=lambda: [Variant(name="default")], description="Exactly one today.")
    engine: EngineSpec = Field(default_factory=EngineSpec)
    slos: Annotated[
        list[Slo],
        Field(
            min_length=1,
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ]
    scaling: Scaling = Field(default_factory=Scaling)
    routing: Routing = Field(default_factory=Routing)
    rollout: Rollout = Field(default_factory=Rollout)
    disruption: Disruption = Field(default_factory=Disruption)
    observability: Observability = Field(default_factory=Observability)

    cel_rules = (
        Rule(
            rule="self.model.maxModelLength >= self.engine.kvCache.blockSize",
            message="model.maxModelLength must be at least engine.kvCache.blockSize",
        ),
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [s.name for s in self.slos]
        if len(set(names)) != len(names):
            raise ValueError("slos: names must be unique")
        _require(self.model.max_model_length >= self.engine.kv_cache.block_size, self.cel_rules[0])
        return self

    @property
    def variant(self) -> Variant:
        return self.variants[0]


def _require(holds: bool, rule: Rule) -> None:
    if not holds:
        raise ValueError(rule.message)
