"""What the operator saw in one look at the world: replicas, gateway and their metrics, unjudged.

Knows no HTTP and no clock: every part carries the moment at which it was measured (`at`, epoch seconds). Nothing here
is trusted: a scraped number may be NaN, negative or absurd until `signals` has looked at it.

The surprising idea: counters are kept raw and cumulative. A difference of two of them is the same type again, so that
windows are sums of differences and a counter that ran backwards is seen in one place, `minus`.
"""

import math
from enum import StrEnum
from itertools import pairwise
from typing import NamedTuple

from pydantic import Field

from capstan_api.footprint import MemoryFigures
from capstan_api.limits import LimitsState
from capstan_api.replicas import ReplicaEntry
from capstan_api.startup import StartupReport
from capstan_operator.decide.values import Value

# Larger than anything that a real engine counts in a year: values beyond are damage or malice.
LARGEST_COUNT = 1e15


class Phase(StrEnum):
    """Where a replica is in its life.

    `Pending` exists and nothing runs it yet; `Failed` waits for its restart; `Draining` takes no new requests.
    """

    PENDING = "Pending"
    STARTING = "Starting"
    READY = "Ready"
    DRAINING = "Draining"
    FAILED = "Failed"


class StepSample(NamedTuple):
    """One engine step as the latency model sees it; the fields are those of the engine's `/admin/steps`."""

    number: int
    time: float
    seconds: float
    prefill_tokens: int
    decode_sequences: int
    context_tokens: int
    attention_pairs: float


def believable(*counts: float) -> bool:
    """Whether all are finite, not negative and not absurdly large."""
    return all(math.isfinite(count) and 0 <= count <= LARGEST_COUNT for count in counts)


class Histogram(Value):
    """Cumulative counts: `counts[i]` observations were at most `bounds[i]` seconds; the last one counts all."""

    bounds: tuple[float, ...] = ()
    counts: tuple[float, ...] = (0.0,)

    @property
    def total(self) -> float:
        return self.counts[-1] if self.counts else 0.0

    @property
    def is_believable(self) -> bool:
        rising = all(low <= high for low, high in pairwise(self.counts))
        ordered = all(low < high for low, high in pairwise(self.bounds))
        return (
            len(self.counts) == len(self.bounds) + 1 and believable(*self.counts, *self.bounds) and rising and ordered
        )

    def minus(self, earlier: "Histogram") -> "Histogram | None":
        """What came since `earlier`; None when the counter was reset or has other bounds."""
        if not earlier.bounds and not earlier.total:
            # There was no series of it yet.
            return self if self.is_believable else None
        if self.bounds != earlier.bounds or len(self.counts) != len(earlier.counts):
            return None
        counts = tuple(now - then for now, then in zip(self.counts, earlier.counts, strict=True))
        difference = Histogram(bounds=self.bounds, counts=counts)
        return difference if difference.is_believable else None

    def plus(self, other: "Histogram") -> "Histogram":
        """The sum; the one with observations when the bounds differ."""
        if self.bounds != other.bounds:
            return other if other.total else self
        return Histogram(
            bounds=self.bounds, counts=tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        )

    def above(self, seconds: float) -> float:
        """Observations longer than that; exact when it is one of the bounds, else those above the next one."""
        for bound, count in zip(self.bounds, self.counts, strict=False):
            if bound >= seconds * (1 - 1e-9):
                return self.total - count
        return 0.0

    def quantile(self, share: float) -> float | None:
        """Seconds that `share` of the observations stay below, interpolated within a bucket; None without any.

        Observations above the last bound are reported as that bound: the smallest value that is certain.
        """
        if self.total <= 0 or not self.bounds:
            return None
        rank = share * self.total
        below, lower = 0.0, 0.0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            if count >= rank and count > below:
                return lower + (bound - lower) * (rank - below) / (count - below)
            below, lower = count, bound
        return self.bounds[-1]


class ClassCounters(Value):
    """The gateway's counters of one SLO class."""

    arrived: float = 0
    arrived_tokens: float = 0
    """Prompt tokens of those that arrived, as well as a gateway can tell."""
    completed: float = 0
    rejected: float = 0
    failed: float = 0
    """Outcomes `failed` and `truncated` together."""
    slo_total: float = 0
    slo_good: float = 0
    prompt_tokens: float = 0
    output_tokens: float = 0
    ttft: Histogram = Histogram()
    tpot: Histogram = Histogram()

    @property
    def numbers(self) -> dict[str, float]:
        return {name: value for name, value in self if isinstance(value, (int, float))}

    @property
    def is_believable(self) -> bool:
        return believable(*self.numbers.values()) and self.ttft.is_believable and self.tpot.is_believable

    def minus(self, earlier: "ClassCounters") -> "ClassCounters | None":
        """What came since `earlier`; None when any of the counters ran backwards."""
        ttft, tpot = self.ttft.minus(earlier.ttft), self.tpot.minus(earlier.tpot)
        before = earlier.numbers
        difference = {name: value - before[name] for name, value in self.numbers.items()}
        if ttft is None or tpot is None or not believable(*difference.values()):
            return None
        return ClassCounters(**difference, ttft=ttft, tpot=tpot)

    def plus(self, other: "ClassCounters") -> "ClassCounters":
        numbers = {name: value + other.numbers[name] for name, value in self.numbers.items()}
        return ClassCounters(**numbers, ttft=self.ttft.plus(other.ttft), tpot=self.tpot.plus(other.tpot))


class GatewayMetrics(Value):
    """One scrape of the gateway."""

    at: float
    classes: dict[str, ClassCounters] = Field(default_factory=dict)
    held: float = 0
    in_flight: dict[str, float] = Field(default_factory=dict)
    """Requests being proxied, by replica id."""


class EngineMetrics(Value):
    """One scrape of an engine, with the steps that it took since the last look."""

    at: float
    heartbeat: float
    running: float = 0
    waiting: float = 0
    prefill_backlog: float = 0
    """Prompt tokens of accepted requests that are not computed yet."""
    kv_usage: float = 0
    kv_blocks: float = 0
    """Blocks in the KV cache, whatever their state."""
    steps: float = 0
    busy_seconds: float = 0
    prefix_queries: float = 0
    prefix_hits: float = 0
    samples: tuple[StepSample, ...] = ()


class Replica(Value):
    """One engine process or pod."""

    id: str
    revision: str
    phase: Phase
    created_at: float
    ready_at: float | None = None
    restarts: int = 0
    url: str | None = None
    """Where its API answers, once it listens."""
    message: str = ""
    """Why it is pending or failed last, for people."""
    startup: StartupReport | None = None
    """What it is busy with while it starts, as it tells itself."""
    metrics: EngineMetrics | None = None
    limits: LimitsState | None = None
    figures: MemoryFigures | None = None
    """What the model takes of memory; asked for at the first look, and until it is remembered."""


class Gateway(Value):
    """One gateway process or pod."""

    id: str
    revision: str
    phase: Phase
    restarts: int = 0
    message: str = ""
    table: tuple[ReplicaEntry, ...] | None = None
    """The replicas that it knows; None when it could not be asked."""
    metrics: GatewayMetrics | None = None


class ConfigurationFault(Value):
    """Why the newest resource is not the one in force."""

    message: str
    generation: int = 0
    """metadata.generation of that newest one, 0 when it is not known."""


class Observation(Value):
    """One look at the world."""

    at: float
    replicas: tuple[Replica, ...] = ()
    gateways: tuple[Gateway, ...] = ()
    endpoint: str | None = None
    """Where clients reach the gateways."""
    configuration_fault: ConfigurationFault | None = None
    model_directory: str | None = None
    """Where this world keeps the checkpoint; None when it has none, and `faults` then says why."""
    refused: tuple[str, ...] = ()
    """What could not be carried out since the look before, one clause each, beginning with the action."""
    faults: tuple[str, ...] = ()
    """What could not be read, or was not believed, one clause each."""

    def with_phase(self, *phases: Phase) -> tuple[Replica, ...]:
        return tuple(replica for replica in self.replicas if replica.phase in phases)

    @property
    def ready_gateways(self) -> tuple[Gateway, ...]:
        return tuple(gateway for gateway in self.gateways if gateway.phase is Phase.READY)

    @property
    def refused_starts(self) -> tuple[str, ...]:
        """Of `refused`, what keeps replicas from being started; a gateway that will not listen does not."""
        return tuple(dict.fromkeys(clause for clause in self.refused if clause.startswith("StartReplica")))
