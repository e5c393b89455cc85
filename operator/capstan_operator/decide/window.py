"""The sliding window: what came between looks at the world, in slots that are summed and dropped.

Holds differences of counters only; judging them is `judgement`'s work and reading them `signals`'. Bounded: a window is
a handful of slots however often it is looked at, and one track for each replica.
"""

from bisect import bisect_right
from collections.abc import Sequence
from operator import attrgetter
from typing import Final, NamedTuple

from pydantic import Field

from capstan_operator.decide.curve import Array
from capstan_operator.decide.observation import (
    ClassCounters,
    EngineMetrics,
    GatewayMetrics,
    Replica,
    StepSample,
)
from capstan_operator.decide.values import Value

_NUM_SLOTS = 8
_HITS_HALF_LIFE_S = 60.0
_NOTHING = (0.0, 0.0, 0.0, 0.0)


class Work(Value):
    """Sums over engine steps; `seconds` is the time that they took."""

    seconds: float = 0
    sequence_seconds: float = 0
    context_seconds: float = 0
    decode_tokens: float = 0

    @classmethod
    def of(cls, steps: Array, times: Array) -> "Work":
        """The sums over `steps` [N, 7], samples as rows, each of which stands for `times` [N] steps."""
        # Columns as in `StepSample`: 2 the seconds, 4 and 5 the sequences and their context.
        seconds = times * steps[:, 2]
        total = (seconds.sum(), seconds @ steps[:, 4], seconds @ steps[:, 5], times @ steps[:, 4])
        return cls.made(**dict(zip(_WORK, map(float, total), strict=True)))

    def plus(self, *others: "Work") -> "Work":
        return Work.made(**_summed(_WORK, self, *others))

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

    def plus(self, *others: "Progress") -> "Progress":
        work = self.work.plus(*(other.work for other in others))
        return Progress.made(work=work, **_summed(_PROGRESS, self, *others))

    @property
    def utilisation(self) -> float | None:
        return min(1.0, self.busy_seconds / self.replica_seconds) if self.replica_seconds > 0 else None

    @property
    def cached_share(self) -> float | None:
        """Share of prompt tokens found in the prefix cache; None without prompts."""
        return min(1.0, self.prefix_hits / self.prefix_queries) if self.prefix_queries > 0 else None


_WORK: Final = tuple(Work.model_fields)
_PROGRESS: Final = tuple(Progress.model_fields)[1:]


def _summed(names: Sequence[str], *values: Value) -> dict[str, float]:
    """The sums of these fields."""
    rows = map(attrgetter(*names), values)
    return dict(zip(names, map(sum, zip(*rows, strict=True)), strict=True))


class Slot(Value):
    """What came between two moments."""

    start: float
    end: float
    classes: dict[str, ClassCounters] = Field(default_factory=dict)
    progress: Progress = Progress()

    def plus(self, *later: "Slot") -> "Slot":
        slots = (self, *later)
        names = sorted({name for slot in slots for name in slot.classes})
        none = ClassCounters()
        classes = {name: none.plus(*(slot.classes[name] for slot in slots if name in slot.classes)) for name in names}
        progress = self.progress.plus(*(slot.progress for slot in later))
        return Slot.made(start=self.start, end=slots[-1].end, classes=classes, progress=progress)


class Track(NamedTuple):
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
    slo_total: float = 0
    slo_good: float = 0
    ttft_good: float = 0
    tpot_good: float = 0

    def is_of(self, replica: Replica) -> bool:
        """Whether it is the same process: another one under the same id counts from zero."""
        return self.created_at == replica.created_at and self.restarts == replica.restarts

    @classmethod
    def after(cls, replica: Replica, metrics: EngineMetrics, before: "Track | None") -> "Track":
        """The track after one more look; `before` is that of the same process, if there was one."""
        at, samples = metrics.at, metrics.samples
        advanced_at, last_step, recent_hits = at, 0, 0.0
        if before is not None:
            last_step = before.last_step
            if metrics.heartbeat == before.heartbeat:
                advanced_at = before.advanced_at
            if at >= before.at:
                kept = 0.5 ** ((at - before.at) / _HITS_HALF_LIFE_S)
                recent_hits = before.recent_hits * kept + max(0.0, metrics.prefix_hits - before.prefix_hits)
        if samples:
            last_step = max(last_step, samples[-1].number)
        return cls(
            replica.created_at,
            replica.restarts,
            at,
            metrics.heartbeat,
            advanced_at,
            last_step,
            metrics.busy_seconds,
            metrics.prefix_queries,
            metrics.prefix_hits,
            recent_hits,
            metrics.slo_total,
            metrics.slo_good,
            metrics.ttft_good,
            metrics.tpot_good,
        )

    def since(self, before: "Track | None") -> tuple[float, float, float, float]:
        """Seconds, busy ones, prefix queries and hits; nothing when any of them ran backwards."""
        if before is None:
            return _NOTHING
        passed = (
            self.at - before.at,
            self.busy_seconds - before.busy_seconds,
            self.prefix_queries - before.prefix_queries,
            self.prefix_hits - before.prefix_hits,
        )
        return passed if min(passed) >= 0 else _NOTHING


def unseen(samples: Sequence[StepSample], before: Track | None, most: int) -> tuple[Sequence[StepSample], float]:
    """An even choice of the steps that are newer than the track, at most so many and oldest first, with how many
    steps each of them stands for. What is not believable is left out.
    """
    last_step = before.last_step if before is not None else 0
    if samples and samples[0].number <= last_step:
        # An engine tells its steps in their order.
        samples = samples[bisect_right(samples, last_step, key=attrgetter("number")) :]
    every = -(-len(samples) // most) or 1
    chosen = [sample for sample in samples[::-every] if sample.is_believable][::-1]
    return chosen, len(samples) / len(chosen) if chosen else 1.0


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
        return self.slots[0].plus(*self.slots[1:]) if self.slots else Slot(start=0, end=0)

    @property
    def seen_s(self) -> float:
        """Seconds that the slots cover; less than the span after a start or a gap."""
        return sum((slot.end - slot.start for slot in self.slots), 0.0)

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
