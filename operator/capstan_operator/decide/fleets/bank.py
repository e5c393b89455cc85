"""The bank of virtual fleets: which of the requests that really came each number of replicas would have missed.

Feeds the arrivals of every turn to the fleets' `queues` and remembers, over the look-back, what each fleet would have
missed. Knows no objective and no decision: `sizing` reads it. Nothing here looks at a clock.

The surprising idea: no demand is estimated. Fleets of every size are tried on what really came, and the one that would
have done is the one that is needed.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from capstan_operator.decide.curve import NUM_BYTES, Array, Curve, curves, rows
from capstan_operator.decide.fleets.chance import Chance
from capstan_operator.decide.fleets.dispersion import Dispersion
from capstan_operator.decide.fleets.latencies import SAMPLED_EVERY_S, Latencies
from capstan_operator.decide.fleets.queues import Arrived, Class, Engine, Fleets, Queues
from capstan_operator.decide.values import Value

NUM_SLOTS: Final = 20
_DURABLE_SLOTS: Final = 4
_NONE_READY: Final = 0.01
# Of the look-back, after which a latency counts half.
_FRESH_SHARE: Final = 0.5


class Slot(Value):
    """A piece of the look-back: per class, requests that arrived and those that each fleet would have missed."""

    start: float
    end: float
    arrived: tuple[float, ...]
    missed: tuple[Curve, ...]

    def plus(self, later: "Slot", num_fleets: int) -> "Slot":
        return Slot.made(
            start=self.start,
            end=later.end,
            arrived=tuple(a + b for a, b in zip(self.arrived, later.arrived, strict=True)),
            missed=curves(rows(self.missed, num_fleets) + rows(later.missed, num_fleets)),
        )


class Misses(NamedTuple):
    """Per class over the look-back: requests, and the share of them that each fleet would have missed."""

    requests: tuple[float, ...]
    shares: Array
    """[K, F]"""
    seconds: float


class Bank(Value):
    """State of all fleets. Its curves belong to `classes`, in their order."""

    classes: tuple[str, ...] = ()
    since: float | None = None
    """When it saw its first arrivals."""
    queues: Queues = Queues()
    slots: tuple[Slot, ...] = ()
    dispersion: Dispersion = Dispersion()
    chances: tuple[Chance, ...] = ()
    latencies: Latencies = Latencies()
    last_missed: tuple[Curve, ...] = ()
    """Share of the newest arrivals of each class that each fleet would have missed."""

    def durable(self) -> "Bank":
        """What is worth keeping over a restart: the look-back, coarsely. The queues fill again within seconds."""
        merged: list[Slot] = []
        size = -(-len(self.slots) // _DURABLE_SLOTS) or 1
        for i in range(0, len(self.slots), size):
            slot = self.slots[i]
            num_fleets = len(slot.missed[0]) // NUM_BYTES if slot.missed else 0
            for later in self.slots[i + 1 : i + size]:
                slot = slot.plus(later, num_fleets)
            merged.append(slot)
        return Bank(
            classes=self.classes,
            since=self.since,
            slots=tuple(merged),
            dispersion=self.dispersion,
            chances=self.chances,
        )

    def advanced(
        self,
        sizes: Array,
        engine: Engine,
        classes: Sequence[Class],
        arrived: Sequence[Arrived],
        *,
        late: Sequence[float],
        seconds: float,
        now: float,
        span_s: float,
        running: float,
        num_ready: int,
    ) -> "Bank":
        """The bank after one more turn of `seconds`, in which `arrived` came to `classes`, and `late` of each ended.

        `running` requests are on the `num_ready` real replicas. The look-back is `span_s` long.
        """
        names = tuple([c.name for c in classes])
        before = self if self.classes == names else Bank(classes=names, dispersion=self.dispersion)
        real = sizes.copy()
        real[0] = max(num_ready, _NONE_READY)
        dispersion = before.dispersion.after(sum(a.tokens for a in arrived), seconds, engine.long_prompt)
        chances = before.chances or (Chance(),) * len(classes)
        fleets = Fleets(before.queues, real, engine, classes, dispersion.index, [each.share for each in chances])
        share = fleets.run(arrived, seconds)
        requests = tuple([a.requests for a in arrived])
        latencies = before.latencies
        if latencies.are_due(num_classes=len(classes), seconds=seconds, now=now):
            kept = 0.5 ** (max(seconds, SAMPLED_EVERY_S) / (_FRESH_SHARE * span_s))
            latencies = latencies.after(requests, fleets.above_ttft, fleets.above_tpot, kept)
        fleets.correct(running if num_ready else 0.0, seconds)
        new = Slot.made(
            start=now - seconds,
            end=now,
            arrived=requests,
            missed=curves(share * np.array(requests)[:, None]),
        )
        slots = before.slots
        if slots and new.end - slots[-1].start <= span_s / NUM_SLOTS:
            slots = (*slots[:-1], slots[-1].plus(new, len(sizes)))
        else:
            slots = (*[slot for slot in slots if slot.end > now - span_s], new)
        return Bank.made(
            classes=names,
            since=before.since if before.since is not None else now - seconds if any(requests) else None,
            queues=fleets.queues,
            slots=slots,
            dispersion=dispersion,
            chances=tuple(
                each.after(ended, least * came, most * came, seconds)
                for each, ended, (least, most), came in zip(chances, late, fleets.bounds, requests, strict=True)
            ),
            latencies=latencies,
            last_missed=curves(share),
        )

    def misses(self, num_fleets: int) -> Misses:
        """What each fleet would have missed over the look-back."""
        num_classes = len(self.classes)
        arrived = [slot.arrived for slot in self.slots] or [(0.0,) * num_classes]
        requests = tuple(map(sum, zip(*arrived, strict=True)))
        of_slots = rows([row for slot in self.slots for row in slot.missed], num_fleets)
        missed = np.add.reduce(of_slots.reshape(len(self.slots), num_classes, num_fleets), dtype=np.float64)
        seconds = self.slots[-1].end - self.slots[0].start if self.slots else 0.0
        return Misses(requests, missed / np.array([[max(each, 1.0)] for each in requests]), seconds)

    def growth(self, seconds: float) -> float:
        """By what factor more requests came in the last `seconds` than in those before them; 1 where that is not known.

        What came in a slot came evenly.
        """
        end = self.slots[-1].end if self.slots else 0.0
        before = self._arrived(end - 2 * seconds, end - seconds)
        return self._arrived(end - seconds, end) / before if before > 0 else 1.0

    def _arrived(self, start: float, end: float) -> float:
        """Requests a second of all classes between two moments, as far as they lie within the look-back."""
        requests = covered = 0.0
        for slot in reversed(self.slots):
            if slot.end <= start:
                break
            length, common = slot.end - slot.start, min(slot.end, end) - max(slot.start, start)
            if common > 0:
                requests += sum(slot.arrived) * common / length
                covered += common
        return requests / covered if covered > 0 else 0.0

    @property
    def told(self) -> tuple[float, ...]:
        """Per class, the share of the newest arrivals that the real fleet is expected to miss."""
        return tuple(float(np.frombuffer(row, dtype="<f4", count=1)[0]) for row in self.last_missed)
