"""`InferenceDeployment.spec`: what a platform engineer declares.

Python names are snake_case, the resource's are camelCase; both are accepted from Python, only camelCase is written.
Rules of the house: no floats, units in the names, CamelCase enums, lists of named things are maps by `name`, defaults
live in the schema, cross-field rules are `Rule`s. A field that nothing acts on is not here, and nothing here is
immutable: every change is either applied live or starts a new revision.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from capstan_api.contract import Contract, Decimal, Distinct, ModelName, Name, Percent, Rule
from capstan_api.engine_args import MetricsCompatibility, Precision, Quantization
from capstan_api.model import ModelSpec
from capstan_api.scaling import Scaling
from capstan_api.scheduling import Scheduling
from capstan_api.step_time import StepTime


class Switch(StrEnum):
    """On or off, with room for a third state."""

    ENABLED = "Enabled"
    DISABLED = "Disabled"


class RoutingPolicy(StrEnum):
    """How the gateway picks a replica."""

    PREFIX_AWARE = "PrefixAware"
    LEAST_LOADED = "LeastLoaded"


class Accelerator(Contract):
    """Devices of a cluster's nodes, as their device plugin offers them."""

    resource_name: Annotated[
        str, StringConstraints(pattern=r"^[a-z0-9][-a-z0-9.]*/[A-Za-z0-9][-A-Za-z0-9._]*$", max_length=253)
    ] = Field(default="nvidia.com/gpu", description="Extended resource that nodes offer.")
    count: int = Field(
        default=1,
        ge=1,
        le=1_000_000,
        description="How much of it one replica asks for. An engine computes on one device; more than 1 is for plugins "
        "that count parts of one, such as GiB of its memory.",
    )


class Resources(Contract):
    """What one replica gets."""

    cpu_millicores: int = Field(
        default=1000, ge=100, le=1_024_000, description="CPU share of one replica, in thousandths of a processor."
    )
    memory_mebibytes: int = Field(
        default=4096,
        ge=64,
        le=16_777_216,
        description="Memory of one replica in a cluster, in MiB: weights, KV cache and about 1 GiB for the rest.",
    )
    accelerator: Accelerator | None = Field(
        default=None,
        description="What each replica asks a cluster's nodes for besides; absent means processors only. Which nodes "
        "have it is said by `scheduling`.",
    )


class Variant(Contract):
    """One way of running the model. A change here starts a new revision, but for cost and step time."""

    name: Name = Field(description="Name of the variant, as it appears in status.")
    precision: Precision = Field(
        default=Precision.AUTO,
        description="Data type of weights, activations and KV cache. Auto takes the checkpoint's own.",
    )
    quantization: Quantization = Field(
        default=Quantization.NONE,
        description="Rounds the weights of linear layers while loading: to 8 bits, or to 4 with a scale for each N "
        "inputs. Int8 leaves activations as they are, Int8Dynamic and Int4GroupN round them to 8 bits as well: "
        "Int8Dynamic reads long prompts the fastest, Int4GroupN writes the fastest. CPU only.",
    )
    resources: Resources = Field(default_factory=Resources)
    cost_per_hour: Decimal = Field(
        default="0", description="Cost of one replica for one hour, a decimal number in your currency."
    )
    step_time: StepTime | None = Field(
        default=None,
        description="What a step takes, as `capstan bench --calibrate` has measured it: the law begins with it instead "
        "of learning it from the first requests, and `capstan simulate` counts with it. Measured steps soon "
        "outweigh it.",
    )

    rules = (
        Rule(
            cel="self.quantization == 'None' || self.precision != 'Float32'",
            holds=lambda v: v.quantization is Quantization.NONE or v.precision is not Precision.FLOAT32,
            message="quantization computes in BFloat16; set precision to BFloat16 or Auto",
        ),
    )


class Batching(Contract):
    """The envelope: what an engine allocates for once, and within which its limits move live."""

    max_sequences: int = Field(default=64, ge=1, le=8192, description="Most requests that run at the same time.")
    max_batched_tokens: int = Field(
        default=2048, ge=1, le=1_048_576, description="Most tokens of one step, prefill and decode together."
    )
    min_sequences: int = Field(default=4, ge=1, le=8192, description="Lowest value of the limit on running requests.")
    min_batched_tokens: int = Field(
        default=64, ge=1, le=1_048_576, description="Lowest value of the limit on tokens of one step."
    )

    rules = (
        Rule(
            cel="self.minSequences <= self.maxSequences",
            holds=lambda b: b.min_sequences <= b.max_sequences,
            message="minSequences must not exceed maxSequences",
        ),
        Rule(
            cel="self.minBatchedTokens <= self.maxBatchedTokens",
            holds=lambda b: b.min_batched_tokens <= b.max_batched_tokens,
            message="minBatchedTokens must not exceed maxBatchedTokens",
        ),
        Rule(
            cel="self.maxBatchedTokens >= self.maxSequences",
            holds=lambda b: b.max_batched_tokens >= b.max_sequences,
            message="maxBatchedTokens must be at least maxSequences: every running request needs a token a step",
        ),
    )


class KvCache(Contract):
    """The paged KV cache of one replica."""

    block_size: int = Field(default=16, ge=1, le=256, description="KV slots (tokens) in one block.")
    memory_mebibytes: int | None = Field(
        default=None,
        ge=1,
        le=4_194_304,
        description="Memory of one replica's KV cache, in MiB. Absent: nine tenths of what weights and steps leave of "
        "the accelerator's memory, measured when an engine starts, or else of `resources.memoryMebibytes`.",
    )


class PrefixCaching(Contract):
    """Reuse of KV blocks between requests whose prompts begin alike."""

    mode: Switch = Field(default=Switch.ENABLED, description="Enabled or Disabled.")


class EngineSpec(Contract):
    """How each replica runs. A change here starts a new revision."""

    batching: Batching = Field(default_factory=Batching)
    kv_cache: KvCache = Field(default_factory=KvCache)
    prefix_caching: PrefixCaching = Field(default_factory=PrefixCaching)
    max_queued_requests: int = Field(
        default=256, ge=0, le=100_000, description="Waiting requests per replica beyond which 429 is answered."
    )


class Objective(Contract):
    """A latency threshold that the given percentile of requests must meet."""

    percentile: int = Field(default=95, ge=50, le=99, description="Percentile that is measured and reported.")
    threshold_milliseconds: int = Field(ge=1, le=3_600_000, description="Longest latency that counts as good.")


class Selector(Contract):
    """Which requests belong to the class."""

    header_value: Annotated[str, StringConstraints(min_length=1, max_length=63)] | None = Field(
        default=None, description="A value of the header x-capstan-slo-class that selects the class, as its name does."
    )
    model_alias: ModelName | None = Field(
        default=None, description="A further model name: a request that asks for it belongs to this class."
    )


class Slo(Contract):
    """One SLO class. The first class in the list takes the requests that name none."""

    name: Name = Field(description="Name of the class, as it appears in metrics and status.")
    priority: int = Field(default=0, ge=-1000, le=1000, description="Higher is admitted first and preempted last.")
    selector: Selector = Field(default_factory=Selector)
    ttft: Objective | None = Field(
        default=None,
        description="Time to first token, from arrival at the gateway. Requests that can no longer meet it let others "
        "go first.",
    )
    tpot: Objective | None = Field(default=None, description="Time per output token after the first, per request.")
    objective_percent: Percent = Field(
        default="95", description="Share of requests that must meet every threshold, a decimal number up to 100."
    )
    window_seconds: int = Field(default=2_419_200, ge=60, le=7_776_000, description="Window of the error budget.")

    rules = (
        Rule(
            cel="has(self.ttft) || has(self.tpot)",
            holds=lambda s: s.ttft is not None or s.tpot is not None,
            message="ttft or tpot is required: a class without a threshold promises nothing",
        ),
    )

    @property
    def header_values(self) -> frozenset[str]:
        """Values of the class header that select this class."""
        return frozenset({self.name, self.selector.header_value or self.name})


class Hold(Contract):
    """Requests that wait at the gateway while no replica is ready. Beyond these bounds: 429 with Retry-After."""

    max_requests: int = Field(default=200, ge=0, le=100_000, description="Most requests that wait at the same time.")
    timeout_seconds: int = Field(default=120, ge=1, le=3600, description="Longest wait of one request.")


class Routing(Contract):
    """How requests reach replicas."""

    policy: RoutingPolicy = Field(
        default=RoutingPolicy.PREFIX_AWARE,
        description="PrefixAware prefers the replica that has the prompt's beginning cached; LeastLoaded does not.",
    )
    hold: Hold = Field(default_factory=Hold)
    gateway_replicas: int = Field(default=1, ge=1, le=10, description="Gateways that share the requests, in a cluster.")
    inference_pool: Switch = Field(
        default=Switch.DISABLED,
        description="Enabled makes an InferencePool of the Gateway API inference extension, where a cluster has it.",
    )


class Rollout(Contract):
    """How replicas of a new revision take over from the old ones."""

    max_surge: int = Field(default=1, ge=0, le=1000, description="Replicas above the wanted number during a rollout.")
    max_unavailable: int = Field(
        default=0, ge=0, le=1000, description="Ready replicas that may be missing during a rollout."
    )
    progress_deadline_seconds: int = Field(
        default=600,
        ge=1,
        le=86_400,
        description="A rollout of which no further replica has become ready for so long has failed.",
    )
    auto_rollback: Switch = Field(
        default=Switch.ENABLED,
        description="Enabled returns from a failed rollout to the last revision that worked, until the spec changes.",
    )

    rules = (
        Rule(
            cel="self.maxSurge + self.maxUnavailable > 0",
            holds=lambda r: r.max_surge + r.max_unavailable > 0,
            message="maxSurge and maxUnavailable must not both be 0: no replica could ever be replaced",
        ),
    )


class Disruption(Contract):
    """How replicas go, and how many at once."""

    drain_timeout_seconds: int = Field(
        default=60, ge=0, le=86_400, description="How long a replica may take to finish what it accepted."
    )
    budget: Switch = Field(
        default=Switch.ENABLED,
        description="Enabled makes a PodDisruptionBudget, so that nodes are drained one replica at a time.",
    )


class Observability(Contract):
    """What is measured and written beyond the ordinary."""

    metrics_compatibility: MetricsCompatibility = Field(
        default=MetricsCompatibility.NONE, description="VLLM exposes the engine's series under vLLM's names as well."
    )
    step_log: Switch = Field(default=Switch.DISABLED, description="Enabled writes one line per step, for calibration.")
    pod_monitor: Switch = Field(
        default=Switch.ENABLED, description="Enabled makes a PodMonitor, where a cluster has the Prometheus operator."
    )


class InferenceDeploymentSpec(Contract):
    """The desired state."""

    model: ModelSpec
    variants: Annotated[list[Variant], Field(min_length=1, max_length=1), Distinct(by="name")] = Field(
        default_factory=lambda: [Variant(name="default")], description="How the model is run. Exactly one today."
    )
    engine: EngineSpec = Field(default_factory=EngineSpec)
    slos: Annotated[list[Slo], Field(min_length=1, max_length=16), Distinct(by="name")] = Field(
        description="SLO classes. The first takes the requests that name none. A change starts a new revision."
    )
    scaling: Scaling = Field(default_factory=Scaling)
    scheduling: Scheduling = Field(default_factory=Scheduling)
    routing: Routing = Field(default_factory=Routing)
    rollout: Rollout = Field(default_factory=Rollout)
    disruption: Disruption = Field(default_factory=Disruption)
    observability: Observability = Field(default_factory=Observability)

    rules = (
        Rule(
            cel="self.model.maxModelLength >= self.engine.kvCache.blockSize",
            holds=lambda s: s.model.max_model_length >= s.engine.kv_cache.block_size,
            message="model.maxModelLength must be at least engine.kvCache.blockSize",
        ),
        Rule(
            cel=(
                "!has(self.engine.kvCache.memoryMebibytes) ||"
                " self.variants.all(v, v.resources.memoryMebibytes > self.engine.kvCache.memoryMebibytes)"
            ),
            holds=lambda s: all(
                v.resources.memory_mebibytes > (s.engine.kv_cache.memory_mebibytes or 0) for v in s.variants
            ),
            message="variants: resources.memoryMebibytes must exceed engine.kvCache.memoryMebibytes, a part of it",
        ),
        Rule(
            cel=(
                "self.slos.all(a, !has(a.selector.headerValue) || self.slos.exists_one(b,"
                " b.name == a.selector.headerValue ||"
                " (has(b.selector.headerValue) && b.selector.headerValue == a.selector.headerValue)))"
            ),
            holds=lambda s: _all_distinct([value for c in s.slos for value in c.header_values]),
            message="slos: each selector.headerValue must be unique and not the name of another class",
        ),
        Rule(
            cel=(
                "self.slos.all(a, !has(a.selector.modelAlias) ||"
                " (!(a.selector.modelAlias in self.model.servedModelNames) && self.slos.exists_one(b,"
                " has(b.selector.modelAlias) && a.selector.modelAlias == b.selector.modelAlias)))"
            ),
            holds=lambda s: _all_distinct([*s.model_aliases, *s.model.served_model_names]),
            message="slos: each selector.modelAlias must be unique and none of model.servedModelNames",
        ),
    )

    @property
    def variant(self) -> Variant:
        """The one variant."""
        return self.variants[0]

    @property
    def model_aliases(self) -> tuple[str, ...]:
        """Model names that select an SLO class, in order of the classes."""
        return tuple(c.selector.model_alias for c in self.slos if c.selector.model_alias is not None)


def _all_distinct(values: list[str]) -> bool:
    return len(set(values)) == len(values)
