"""What the operator saw in one look at the world: replicas, gateway and their metrics, unjudged.

Knows no HTTP and no clock: every part carries the moment at which it was measured (`at`, epoch seconds). Nothing here
is trusted: a scraped number may be NaN, negative or absurd until `signals` has looked at it.

The surprising idea: counters are kept raw and cumulative. A difference of two of them is the same type again, so that
windows are sums of differences and a counter that ran backwards is seen in one place, `minus`.
"""

from collections.abc import Iterable
from enum import StrEnum
from operator import attrgetter, le, lt, sub
from typing import Final, NamedTuple

from pydantic import Field

from capstan_api.footprint import MemoryFigures
from capstan_api.limits import LimitsState
from capstan_api.replicas import ReplicaEntry
from capstan_api.startup import StartupReport
from capstan_operator.decide.lifelong import lifelong
from capstan_operator.decide.values import Value

# Larger than anything that a real engine counts in a year: values beyond are damage or malice.
LARGEST_COUNT = 1e15
_LONGEST_STEP_S = 600.0
# The contract allows no envelope beyond a million tokens; contexts are bounded by what any memory holds.
_MOST_STEP_TOKENS, _MOST_CONTEXT_TOKENS, _LONGEST_CONTEXT = float(1 << 20), 1e9, 1e7


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

    @property
    def is_believable(self) -> bool:
        """Whether any engine could have taken such a step: it computes no more than an envelope may allow."""
        number, time, seconds, prefill, sequences, context, pairs = self
        return (
            0 <= number <= LARGEST_COUNT
            and 0 <= time <= LARGEST_COUNT
            and 0 <= seconds <= _LONGEST_STEP_S
            and 0 <= prefill <= _MOST_STEP_TOKENS
            and 0 <= sequences <= _MOST_STEP_TOKENS
            and 0 <= context <= _MOST_CONTEXT_TOKENS
            and 0 <= pairs <= _LONGEST_CONTEXT * prefill
        )


def believable(*counts: float) -> bool:
    """Whether all are finite, not negative and not absurdly large."""
    # Neither NaN nor an infinity lies between the two.
    return not [count for count in counts if not 0 <= count <= LARGEST_COUNT]


class Histogram(Value):
    """Cumulative counts: `counts[i]` observations were at most `bounds[i]` seconds; the last one counts all."""

    bounds: tuple[float, ...] = ()
    counts: tuple[float, ...] = (0.0,)

    @property
    def total(self) -> float:
        return self.counts[-1] if self.counts else 0.0

    @property
    def is_believable(self) -> bool:
        bounds, counts = self.bounds, self.counts
        if len(counts) != len(bounds) + 1 or not believable(*bounds[:1], *bounds[-1:], counts[0], counts[-1]):
            return False
        return all(map(le, counts, counts[1:])) and all(map(lt, bounds, bounds[1:]))

    def minus(self, earlier: "Histogram") -> "Histogram | None":
        """What came since `earlier`; None when the counter was reset or has other bounds."""
        if not earlier.bounds and not earlier.total:
            # There was no series of it yet.
            return self if self.is_believable else None
        if self.bounds != earlier.bounds or len(self.counts) != len(earlier.counts):
            return None
        counts = tuple(map(sub, self.counts, earlier.counts))
        difference = Histogram.made(bounds=self.bounds, counts=counts)
        return difference if difference.is_believable else None

    def plus(self, *others: "Histogram") -> "Histogram":
        """The sum of all with the bounds of the last that has observations."""
        summed = [histogram for histogram in (self, *others) if histogram.total] or [self]
        bounds = summed[-1].bounds
        counts = zip(*(histogram.counts for histogram in summed if histogram.bounds == bounds), strict=True)
        return Histogram.made(bounds=bounds, counts=tuple(map(sum, counts)))

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
    def numbers(self) -> tuple[float, ...]:
        """Everything but the histograms, in the order of the fields."""
        return _COUNTED(self)

    @property
    def is_believable(self) -> bool:
        return believable(*self.numbers) and self.ttft.is_believable and self.tpot.is_believable

    def minus(self, earlier: "ClassCounters") -> "ClassCounters | None":
        """What came since `earlier`; None when any of the counters ran backwards."""
        ttft, tpot = self.ttft.minus(earlier.ttft), self.tpot.minus(earlier.tpot)
        difference = tuple(map(sub, self.numbers, earlier.numbers))
        if ttft is None or tpot is None or not believable(*difference):
            return None
        return _counters(difference, ttft, tpot)

    def plus(self, *others: "ClassCounters") -> "ClassCounters":
        numbers = map(sum, zip(self.numbers, *(other.numbers for other in others), strict=True))
        ttft = self.ttft.plus(*(other.ttft for other in others))
        return _counters(numbers, ttft, self.tpot.plus(*(other.tpot for other in others)))


_COUNTS: Final = tuple(ClassCounters.model_fields)[:-2]
_COUNTED: Final = attrgetter(*_COUNTS)


def _counters(numbers: Iterable[float], ttft: Histogram, tpot: Histogram) -> ClassCounters:
    """Counters made of others: what has been judged once need not be validated again."""
    return ClassCounters.made(**dict(zip(_COUNTS, numbers, strict=True)), ttft=ttft, tpot=tpot)


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
    slo_total: float = 0
    """Requests of all classes that ended here; those that met their thresholds, all and each, follow."""
    slo_good: float = 0
    ttft_good: float = 0
    tpot_good: float = 0
    samples: tuple[StepSample, ...] = ()

    @property
    def numbers(self) -> tuple[float, ...]:
        """Everything but the samples, in the order of the fields."""
        return _MEASURED(self)


_MEASURED: Final = attrgetter(*tuple(EngineMetrics.model_fields)[:-1])


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


class Allowance(Value):
    """What an accelerator budget leaves to one resource."""

    budget: str
    """Its name."""
    replicas: int
    most: int
    """Replicas that the whole of it has room for."""


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
    allowance: Allowance | None = None
    """None where no accelerator budget is shared."""
    refused: tuple[str, ...] = ()
    """What could not be carried out since the look before, one clause each, beginning with the action."""
    faults: tuple[str, ...] = ()
    """What could not be read, or was not believed, one clause each."""

    def with_phase(self, *phases: Phase) -> tuple[Replica, ...]:
        return _with_phase(self, phases)

    @property
    def ready_gateways(self) -> tuple[Gateway, ...]:
        return tuple(gateway for gateway in self.gateways if gateway.phase is Phase.READY)

    @property
    def refused_starts(self) -> tuple[str, ...]:
        """Of `refused`, what keeps replicas from being started; a gateway that will not listen does not."""
        return tuple(dict.fromkeys(clause for clause in self.refused if clause.startswith("StartReplica")))


@lifelong
def _with_phase(observation: Observation, phases: tuple[Phase, ...]) -> tuple[Replica, ...]:
    """Kept, because everybody asks."""
    return tuple([replica for replica in observation.replicas if replica.phase in phases])
