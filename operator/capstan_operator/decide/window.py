"""The sliding window: what came between looks at the world, in slots that are summed and dropped.

Holds differences of counters only; judging them is `judgement`'s work and reading them `signals`'. Bounded: a window is
a handful of slots however often it is looked at, and one track for each replica.
"""

from collections.abc import Iterable

from pydantic import Field

from capstan_operator.decide.observation import (
    ClassCounters,
    EngineMetrics,
    GatewayMetrics,
    Replica,
    StepSample,
    believable,
)
from capstan_operator.decide.values import Value

_NUM_SLOTS = 8
_HITS_HALF_LIFE_S = 60.0


class Work(Value):
    """Sums over engine steps; `seconds` is the time that they took."""

    seconds: float = 0
    sequence_seconds: float = 0
    context_seconds: float = 0
    decode_tokens: float = 0

    @classmethod
    def of(cls, samples: Iterable[StepSample]) -> "Work":
        samples = tuple(samples)
        return cls(
            seconds=sum(s.seconds for s in samples),
            sequence_seconds=sum(s.seconds * s.decode_sequences for s in samples),
            context_seconds=sum(s.seconds * s.context_tokens for s in samples),
            decode_tokens=sum(s.decode_sequences for s in samples),
        )

    def times(self, factor: float) -> "Work":
        return Work(
            seconds=factor * self.seconds,
            sequence_seconds=factor * self.sequence_seconds,
            context_seconds=factor * self.context_seconds,
            decode_tokens=factor * self.decode_tokens,
        )

    def plus(self, other: "Work") -> "Work":
        return Work(
            seconds=self.seconds + other.seconds,
            sequence_seconds=self.sequence_seconds + other.sequence_seconds,
            context_seconds=self.context_seconds + other.context_seconds,
            decode_tokens=self.decode_tokens + other.decode_tokens,
        )

    @property
    def sequences(self) -> float:
        """Mean number of decoding sequences in a step, steps weighing by their time."""
        return self.sequence_seconds / self.seconds if self.seconds > 0 else 0.0

    @property
    def context(self) -> float:
        """Mean of the sum of their contexts, likewise."""
        return self.context_seconds / self.seconds if self.seconds > 0 else 0.0

    @property
    def inter_token_s(self) -> float | None:
        """Mean step time as a decoding sequence sees it."""
        return self.sequence_seconds / self.decode_tokens if self.decode_tokens > 0 else None


class Progress(Value):
    """What the engines did between two looks. `busy_seconds` of `replica_seconds` they were computing."""

    work: Work = Work()
    busy_seconds: float = 0
    replica_seconds: float = 0
    prefix_queries: float = 0
    prefix_hits: float = 0

    def plus(self, other: "Progress") -> "Progress":
        return Progress(
            work=self.work.plus(other.work),
            busy_seconds=self.busy_seconds + other.busy_seconds,
            replica_seconds=self.replica_seconds + other.replica_seconds,
            prefix_queries=self.prefix_queries + other.prefix_queries,
            prefix_hits=self.prefix_hits + other.prefix_hits,
        )

    @property
    def utilisation(self) -> float | None:
        return min(1.0, self.busy_seconds / self.replica_seconds) if self.replica_seconds > 0 else None

    @property
    def cached_share(self) -> float | None:
        """Share of prompt tokens found in the prefix cache; None without prompts."""
        return min(1.0, self.prefix_hits / self.prefix_queries) if self.prefix_queries > 0 else None


class Slot(Value):
    """What came between two moments."""

    start: float
    end: float
    classes: dict[str, ClassCounters] = Field(default_factory=dict)
    progress: Progress = Progress()

    def plus(self, later: "Slot") -> "Slot":
        none = ClassCounters()
        names = sorted({*self.classes, *later.classes})
        return Slot(
            start=self.start,
            end=later.end,
            classes={name: self.classes.get(name, none).plus(later.classes.get(name, none)) for name in names},
            progress=self.progress.plus(later.progress),
        )


class Track(Value):
    """The last believable counters of one replica."""

    created_at: float
    restarts: int
    at: float
    heartbeat: float
    advanced_at: float
    """When the heartbeat was last seen to move."""
    last_step: int = 0
    busy_seconds: float = 0
    prefix_queries: float = 0
    prefix_hits: float = 0
    recent_hits: float = 0
    """Prompt tokens found in the prefix cache, forgotten by half every `_HITS_HALF_LIFE_S`."""

    def is_of(self, replica: Replica) -> bool:
        """Whether it is the same process: another one under the same id counts from zero."""
        return (self.created_at, self.restarts) == (replica.created_at, replica.restarts)

    @classmethod
    def after(
        cls, replica: Replica, metrics: EngineMetrics, before: "Track | None", most_samples: int
    ) -> tuple["Track", tuple[StepSample, ...], float]:
        """The track after one more look, an even choice of the steps that it has not seen before, at most so many,
        and how many steps each of them stands for.
        """
        stands_still = before is not None and metrics.heartbeat == before.heartbeat
        recent_hits = 0.0
        if before is not None and metrics.at >= before.at:
            kept = 0.5 ** ((metrics.at - before.at) / _HITS_HALF_LIFE_S)
            recent_hits = before.recent_hits * kept + max(0.0, metrics.prefix_hits - before.prefix_hits)
        last_step = before.last_step if before is not None else 0
        unseen = [s for s in metrics.samples if s.number > last_step]
        every = -(-len(unseen) // most_samples) or 1
        fresh = tuple(s for s in unseen[::-every] if believable(*s))[::-1]
        track = cls(
            created_at=replica.created_at,
            restarts=replica.restarts,
            at=metrics.at,
            heartbeat=metrics.heartbeat,
            advanced_at=before.advanced_at if before is not None and stands_still else metrics.at,
            last_step=max((s.number for s in fresh), default=last_step),
            busy_seconds=metrics.busy_seconds,
            prefix_queries=metrics.prefix_queries,
            prefix_hits=metrics.prefix_hits,
            recent_hits=recent_hits,
        )
        return track, fresh, len(unseen) / len(fresh) if fresh else 1.0

    def progress_since(self, before: "Track | None", work: Work) -> Progress:
        """What the replica did since, `work` in its steps; counters that ran backwards count for nothing."""
        if before is None:
            return Progress(work=work)
        differences = (
            self.at - before.at,
            self.busy_seconds - before.busy_seconds,
            self.prefix_queries - before.prefix_queries,
            self.prefix_hits - before.prefix_hits,
        )
        if min(differences) < 0:
            return Progress(work=work)
        replica_s, busy_s, queries, hits = differences
        return Progress(
            work=work, busy_seconds=busy_s, replica_seconds=replica_s, prefix_queries=queries, prefix_hits=hits
        )


class Window(Value):
    """The state that the next look is compared with. Lost over a restart, and filled again within seconds."""

    since: float | None = None
    """When this window began to look: silence from before then is nobody's fault."""
    gateways: dict[str, GatewayMetrics] = Field(default_factory=dict)
    """What each gateway that exists last told."""
    met: dict[str, float] = Field(default_factory=dict)
    """When each gateway that exists was first seen ready: silence from before then is nobody's fault either."""
    looked_at: float | None = None
    """The moment that the newest of all looks at gateways tells of."""
    slots: tuple[Slot, ...] = ()
    tracks: dict[str, Track] = Field(default_factory=dict)

    @property
    def total(self) -> Slot:
        """Everything in the window."""
        if not self.slots:
            return Slot(start=0, end=0)
        total = self.slots[0]
        for slot in self.slots[1:]:
            total = total.plus(slot)
        return total

    @property
    def seen_s(self) -> float:
        """Seconds that the slots cover; less than the span after a start or a gap."""
        return sum(slot.end - slot.start for slot in self.slots)

    @property
    def busiest(self) -> Work:
        """The slot with most decoding sequences: who steers by it follows a rise at once, and a fall only as the
        window moves."""
        return max((slot.progress.work for slot in self.slots), key=lambda work: work.sequences, default=Work())


def appended(slots: tuple[Slot, ...], new: Slot, span_s: float, now: float) -> tuple[Slot, ...]:
    """The slots with one more look in them, and without those that have left the span."""
    if slots and slots[-1].end - slots[-1].start < span_s / _NUM_SLOTS:
        slots = (*slots[:-1], slots[-1].plus(new))
    else:
        slots = (*slots, new)
    # The newest stays even when it is older than the span, so that a slow turn still has a rate.
    return tuple(slot for slot in slots[:-1] if slot.end > now - span_s)[-2 * _NUM_SLOTS :] + slots[-1:]
