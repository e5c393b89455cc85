"""The sliding window: what came between looks at the world, in slots that are summed and dropped.

Holds differences of counters only; judging them is `judgement`'s work and reading them `signals`'. Bounded: a window is
a handful of slots however often it is looked at, and one track for each replica.
"""

from operator import attrgetter
from typing import NamedTuple

import numpy as np
from pydantic import Field

from capstan_operator.decide.curve import Array
from capstan_operator.decide.seen.counters import ClassCounters
from capstan_operator.decide.seen.observation import GatewayMetrics
from capstan_operator.decide.seen.tracks import Passed, Tracks
from capstan_operator.decide.values import Value

_NUM_SLOTS = 8


class Progress(NamedTuple):
    """What the engines did between two looks: sums, the first four over their steps."""

    step_seconds: float = 0
    """The time that the steps took."""
    sequence_seconds: float = 0
    context_seconds: float = 0
    decode_tokens: float = 0
    replica_seconds: float = 0
    busy_seconds: float = 0
    """Of the `replica_seconds` those in which they were computing."""
    prefix_queries: float = 0
    prefix_hits: float = 0

    @classmethod
    def of(cls, steps: Array, times: Array, passed: Passed) -> "Progress":
        """The sums over `steps` [N, 7], samples as rows, each of which stands for `times` [N] steps, and what `passed`
        beside.
        """
        # Columns as in `StepSample`: 2 the seconds, 4 and 5 the sequences and their context.
        seconds = times * steps[:, 2]
        total = (np.add.reduce(seconds), seconds @ steps[:, 4], seconds @ steps[:, 5], times @ steps[:, 4])
        return cls._make((*map(float, total), *passed))

    def plus(self, *others: "Progress") -> "Progress":
        return Progress._make(map(sum, zip(self, *others, strict=True)))

    @property
    def sequences(self) -> float:
        """Mean number of decoding sequences in a step, steps weighing by their time."""
        return self.sequence_seconds / self.step_seconds if self.step_seconds > 0 else 0.0

    @property
    def context(self) -> float:
        """Mean of the sum of their contexts, likewise."""
        return self.context_seconds / self.step_seconds if self.step_seconds > 0 else 0.0

    @property
    def inter_token_s(self) -> float | None:
        """Mean step time as a decoding sequence sees it."""
        return self.sequence_seconds / self.decode_tokens if self.decode_tokens > 0 else None

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

    def plus(self, *later: "Slot") -> "Slot":
        slots = (self, *later)
        names = sorted({name for slot in slots for name in slot.classes})
        counted = {name: [slot.classes[name] for slot in slots if name in slot.classes] for name in names}
        classes = {name: first.plus(*others) for name, (first, *others) in counted.items()}
        progress = self.progress.plus(*[slot.progress for slot in later])
        return Slot.made(start=self.start, end=slots[-1].end, classes=classes, progress=progress)


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
    tracks: Tracks = Tracks()

    @property
    def total(self) -> Slot:
        """Everything in the window."""
        return self.slots[0].plus(*self.slots[1:]) if self.slots else Slot(start=0, end=0)

    @property
    def seen_s(self) -> float:
        """Seconds that the slots cover; less than the span after a start or a gap."""
        return sum([slot.end - slot.start for slot in self.slots], 0.0)

    @property
    def busiest(self) -> Progress:
        """The slot with most decoding sequences: who steers by it follows a rise at once, and a fall only as the
        window moves."""
        return max([slot.progress for slot in self.slots], key=attrgetter("sequences"), default=Progress())


def appended(slots: tuple[Slot, ...], new: Slot, span_s: float, now: float) -> tuple[Slot, ...]:
    """The slots with one more look in them, and without those that have left the span."""
    if slots and slots[-1].end - slots[-1].start < span_s / _NUM_SLOTS:
        slots = (*slots[:-1], slots[-1].plus(new))
    else:
        slots = (*slots, new)
    # The newest stays even when it is older than the span, so that a slow turn still has a rate.
    return tuple(slot for slot in slots[:-1] if slot.end > now - span_s)[-2 * _NUM_SLOTS :] + slots[-1:]
