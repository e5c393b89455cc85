"""The bank of virtual fleets: which of the requests that really came each number of replicas would have missed.

Each fleet is a small fluid queue, fed with the arrivals of every turn. It keeps apart what a single "demand" would mix
up: prompts must be computed within the TTFT, decoding is spread over minutes and may run above capacity for a while,
and the KV cache is a cliff of its own. In one slice of length h, for a fleet of M replicas with n sequences decoding
and X prompt tokens waiting, where λ prompt tokens arrive per second and B is the token budget:

    base = a + (c + d·ctx)·n/M         a step without prefill, of the fitted engine model
    full = base + β·(B − n/M)          one that is filled up; top = M·(B − n/M) / full  prompt tokens/s at most
    r    = min(X/h + λ, top, KV room)  what is computed; X += (λ − r)·h, n += r·h/I − n·h/(O·step)
    wait = X / r                       for the newest arrival, plus its own prompt and half a step

The requests that are late are those whose wait exceeds the threshold, and a share of the others: the router
counts requests, most of which decode, and so still puts long prompts behind one another. The wait of an M/G/1 queue has
the tail ρ·exp(−2(1 − ρ)·slack·E[S] / E[S²]) (Kingman, 1962); with two replicas to choose from the exponent doubles.
That factor is the one constant here that was fitted: to fleets of fixed size in simulation, whose misses the bank then
tells within about a third. Lengths being exponential, exp(−2·tokens·E[I] / E[I²]) of the prompts are longer than the
tokens that the threshold has room for, and late without any queue.

The surprising idea: the fleets also obey the batch limits' own rule (the budget rises while prompts queue), and the one
of the real size is held against what really runs, so that output lengths need not be known before requests finish.
Knows no objective and no decision: `replicas` reads it. Nothing here looks at a clock; time comes as a difference.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

from capstan_operator.decide.curve import NUM_BYTES, Array, Curve, curve, values
from capstan_operator.decide.fleets.engine_model import EngineModel
from capstan_operator.decide.fleets.latencies import TPOT_S, TTFT_S, Latencies
from capstan_operator.decide.values import Value

BURST_WAIT: Final = 0.4
"""Share of the TTFT threshold that queueing prompts may take before the token budget rises."""
_SLICE_S: Final = 1.0
_MOST_SLICES: Final = 60
_NONE_READY: Final = 0.01
# A fitted model may find a step that computes nothing to be free.
_SHORTEST_STEP_S: Final = 1e-5
NUM_SLOTS: Final = 20
_DURABLE_SLOTS: Final = 4
_TAIL: Final = 4.0
# Above this load, an M/G/1 queue's tail says nothing any more: the backlog itself does.
_HIGHEST_LOAD: Final = 0.85
_KV_FULL, _KV_OVERFULL = 0.9, 0.95
# Of the longest TTFT threshold: a queue that is longer loses its clients as fast as it gets them. A fleet that was too
# small for a while is not judged by a backlog that no fleet of its size would ever have.
_PATIENCE: Final = 10.0
# In which a fleet's sequences are drawn towards what really runs.
_CORRECTION_S: Final = 10.0
_STAY_S, _LONGEST_STAY = 60.0, 4.0
# Of a mean answer: over how much of it the time between tokens is averaged, as TPOT is.
_ANSWER_SHARE: Final = 0.5
# Of the look-back, after which a latency counts half.
_FRESH_SHARE: Final = 0.5


class Engine(NamedTuple):
    """What one replica is and does, as learnt by now."""

    model: EngineModel
    token_s: float
    """Seconds per prefill token, attention at the usual depth included."""
    budget: float
    """Token budget while nothing queues."""
    burst: float
    """Token budget while prompts queue."""
    kv_tokens: float
    """KV slots; 0 when not known."""
    max_sequences: float
    prompt: float
    """Mean of the prompt tokens to be computed."""
    long_prompt: float
    """The same, prompts weighing by their length: E[I²]/E[I]."""
    output: float
    context: float
    """KV slots that a running request holds."""


class Class(NamedTuple):
    """Thresholds of one SLO class; infinite where it has none."""

    name: str
    priority: int
    ttft_s: float
    tpot_s: float


class Arrived(NamedTuple):
    """What came of one class since the last turn."""

    requests: float
    tokens: float
    """Prompt tokens that have to be computed."""


class Slot(Value):
    """A piece of the look-back: per class, requests that arrived and those that each fleet would have missed."""

    start: float
    end: float
    arrived: tuple[float, ...]
    missed: tuple[Curve, ...]

    def plus(self, later: "Slot", num_fleets: int) -> "Slot":
        both = zip(self.missed, later.missed, strict=True)
        return Slot.made(
            start=self.start,
            end=later.end,
            arrived=tuple(a + b for a, b in zip(self.arrived, later.arrived, strict=True)),
            missed=tuple(curve(values(a, num_fleets) + values(b, num_fleets)) for a, b in both),
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
    backlog: tuple[Curve, ...] = ()
    """Prompt tokens that wait, of the class and those that go before it."""
    sequences: Curve = b""
    step_s: Curve = b""
    gap_s: Curve = b""
    """Time between tokens, averaged as the TPOT of a request is."""
    stay: float = 1.0
    """By how much requests run longer than those that have finished: long answers are the last to be known."""
    slots: tuple[Slot, ...] = ()
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
        return Bank(classes=self.classes, since=self.since, slots=tuple(merged))

    def advanced(
        self,
        sizes: Array,
        engine: Engine,
        classes: Sequence[Class],
        arrived: Sequence[Arrived],
        *,
        seconds: float,
        now: float,
        span_s: float,
        running: float,
        num_ready: int,
    ) -> "Bank":
        """The bank after one more turn of `seconds`, in which `arrived` came to `classes`.

        `running` requests are on the `num_ready` real replicas. The look-back is `span_s` long.
        """
        names = tuple([c.name for c in classes])
        before = self if self.classes == names else Bank(classes=names)
        real = sizes.copy()
        real[0] = max(num_ready, _NONE_READY)
        fleets = _Fleets(before, real, engine, tuple(classes))
        share = fleets.run(arrived, seconds)
        fleets.correct(running if num_ready else 0.0, seconds)
        requests = tuple(a.requests for a in arrived)
        new = Slot.made(
            start=now - seconds,
            end=now,
            arrived=requests,
            missed=tuple(curve(share[k] * requests[k]) for k in range(len(classes))),
        )
        slots = before.slots
        if slots and new.end - slots[-1].start <= span_s / NUM_SLOTS:
            slots = (*slots[:-1], slots[-1].plus(new, len(sizes)))
        else:
            slots = (*(slot for slot in slots if slot.end > now - span_s), new)
        return Bank.made(
            classes=names,
            since=before.since if before.since is not None else now - seconds if any(requests) else None,
            backlog=tuple(curve(row) for row in fleets.backlog),
            sequences=curve(fleets.sequences),
            step_s=curve(fleets.step_s),
            gap_s=curve(fleets.gap_s),
            stay=fleets.stay,
            slots=slots,
            latencies=before.latencies.after(
                requests, fleets.above_ttft, fleets.above_tpot, 0.5 ** (seconds / (_FRESH_SHARE * span_s))
            ),
            last_missed=tuple(curve(row) for row in share),
        )

    def misses(self, num_fleets: int) -> Misses:
        """What each fleet would have missed over the look-back."""
        num_classes, size = len(self.classes), NUM_BYTES * num_fleets
        requests = np.sum([slot.arrived for slot in self.slots], axis=0) if self.slots else np.zeros(num_classes)
        rows = [row for slot in self.slots for row in slot.missed]
        together = b"".join(row if len(row) == size else curve(values(row, num_fleets)) for row in rows)
        of_slots = np.frombuffer(together, dtype="<f4").reshape(len(self.slots), num_classes, num_fleets)
        missed = of_slots.sum(axis=0, dtype=np.float64)
        seconds = self.slots[-1].end - self.slots[0].start if self.slots else 0.0
        return Misses(tuple(requests.tolist()), missed / np.maximum(requests, 1.0)[:, None], seconds)

    @property
    def told(self) -> tuple[float, ...]:
        """Per class, the share of the newest arrivals that the real fleet is expected to miss."""
        return tuple(float(np.frombuffer(row, dtype="<f4", count=1)[0]) for row in self.last_missed)


class _Fleets:
    """All fleets in one slice after the other, as arrays over their sizes."""

    def __init__(self, bank: Bank, sizes: Array, engine: Engine, classes: Sequence[Class]) -> None:
        num_fleets = len(sizes)
        self.stay = bank.stay
        self._sizes, self._engine, self._classes = sizes, engine._replace(output=engine.output * bank.stay), classes
        rows = bank.backlog or (b"",) * len(classes)
        self.backlog = np.array([values(row, num_fleets) for row in rows])
        self.sequences = values(bank.sequences, num_fleets)
        self.step_s = np.maximum(values(bank.step_s, num_fleets), _SHORTEST_STEP_S)
        self.gap_s = values(bank.gap_s, num_fleets)
        self._before, self._last, self._tightest_s, patience_s = _order(classes)
        self._longest_wait_s = np.full(num_fleets, patience_s)
        # The real one has the queue that it has.
        self._longest_wait_s[0] = np.inf
        self._places = self._places_of(sizes)
        # Of each class in the newest slice: the least TTFT, the load, and how fast longer ones become rare.
        self._ttfts: list[tuple[Array, Array, Array]] = []
        self._rate = np.zeros(num_fleets)
        """Prompt tokens a second that one replica computes at most."""

    def run(self, arrived: Sequence[Arrived], seconds: float) -> Array:
        """[K, F] Share of the arrivals of each class that each fleet misses."""
        num_slices = min(_MOST_SLICES, max(1, round(seconds / _SLICE_S)))
        rates = self._before @ np.array([a.tokens for a in arrived]) / seconds
        missed = sum(self._slice(rates, seconds / num_slices) for _ in range(num_slices))
        return np.asarray(missed) / num_slices

    @property
    def above_ttft(self) -> Array:
        """[K, G, F] Share of the newest arrivals whose TTFT is above each of the bounds."""
        return np.array([_later(TTFT_S[:, None], *of_class) for of_class in self._ttfts])

    @property
    def above_tpot(self) -> Array:
        """[G, F] Likewise of the TPOT, of all classes."""
        return (self.gap_s > TPOT_S[:, None]).astype(np.float64)

    def _slice(self, rates: Array, h: float) -> Array:
        engine, sizes, n = self._engine, self._sizes, self.sequences
        a, _, c, d, _ = engine.model.coefficients
        own = n / sizes
        waiting = self.backlog[self._last]
        hurried = engine.token_s * waiting / sizes > BURST_WAIT * self._tightest_s
        chunk = np.maximum(np.where(hurried, engine.burst, engine.budget) - own, 1.0)
        base_s = np.maximum(_SHORTEST_STEP_S, a + (c + d * engine.context) * own)
        full_s = base_s + engine.token_s * chunk
        top = sizes * chunk / full_s

        wanted = waiting / h + rates[self._last]
        free = np.maximum(0.0, self._places - n)
        leaving = n / (engine.output * self.step_s)
        computed = np.minimum(np.minimum(wanted, top), engine.prompt * (free / h + leaving))
        # [K, F]: what goes before the others is computed first, and nobody waits for ever.
        queued = np.minimum(self.backlog + rates[:, None] * h, top * self._longest_wait_s)
        served = np.minimum(queued / h, computed)
        self.backlog = queued - served * h

        busy = np.minimum(engine.token_s * computed / sizes, 0.999)
        is_full = computed >= top * (1 - 1e-6)
        step_s = np.where(is_full, full_s, np.minimum(full_s, base_s / (1 - busy)))
        self.step_s = step_s
        finishing = n * h / (engine.output * step_s)
        self.sequences = np.maximum(0.0, n + computed * h / engine.prompt - finishing)
        self.gap_s += (step_s - self.gap_s) * np.minimum(1.0, h / (_ANSWER_SHARE * engine.output * step_s))
        self._rate = rate = top / sizes
        own_s = np.maximum(step_s, engine.prompt / rate) + step_s / 2
        self._ttfts = [
            self._ttft(own_s, rate, backlog, of_class, top)
            for backlog, of_class in zip(self.backlog, served, strict=True)
        ]
        pairs = zip(self._classes, self._ttfts, strict=True)
        return np.array([self._missed(threshold, ttft) for threshold, ttft in pairs])

    def _places_of(self, sizes: Array) -> Array:
        """[F] Requests that may run at the same time."""
        engine, most = self._engine, self._engine.max_sequences
        if engine.kv_tokens > 0:
            most = min(most, _KV_FULL * engine.kv_tokens / engine.context)
        return sizes * most

    def _ttft(self, own_s: Array, rate: Array, backlog: Array, served: Array, top: Array) -> tuple[Array, Array, Array]:
        """[F] Of one class: the least TTFT, the load, and how fast longer ones become rare."""
        wait_s = backlog / np.maximum(np.minimum(served, top), 1e-9)
        load = np.minimum(1.0, served / top)
        decay = _TAIL * rate / self._engine.long_prompt * np.maximum(1 - load, 1 - _HIGHEST_LOAD)
        return own_s + wait_s, load, decay

    def _missed(self, threshold: Class, ttft: tuple[Array, Array, Array]) -> Array:
        """[F] Share of the class that is late, by either threshold."""
        late: Array = (self.gap_s > threshold.tpot_s).astype(np.float64)
        if threshold.ttft_s == np.inf:
            return late
        queued, least_s = _later(threshold.ttft_s, *ttft), ttft[0]
        # Who has not waited may bring a prompt that takes too long by itself: no number of replicas helps it.
        spare_tokens = np.maximum(0.0, threshold.ttft_s - least_s) * self._rate + self._engine.prompt
        alone = np.exp(-2 * spare_tokens / self._engine.long_prompt)
        return np.maximum(late, queued + (1 - queued) * alone)

    def correct(self, running: float, seconds: float) -> None:
        """Draw all fleets towards what really runs, in the proportion in which the one of the real size is off."""
        if running > 0:
            off = min(max((running + 1) / (self.sequences[0] + 1), 0.5), 2.0)
            self.sequences = self.sequences * (1 + (off - 1) * (1 - np.exp(-seconds / _CORRECTION_S)))
            self.stay *= 1 + (off - 1) * float(1 - np.exp(-seconds / _STAY_S))
            self.stay = min(max(self.stay, 0.5), _LONGEST_STAY)
        if self._engine.kv_tokens > 0:
            held = _KV_OVERFULL * self._engine.kv_tokens * self._sizes / self._engine.context
            excess = np.maximum(0.0, self.sequences - held)
            self.sequences = self.sequences - excess
            # Preempted: the newest of the least urgent class is computed again.
            self.backlog[self._last] += excess * self._engine.prompt


@lru_cache(maxsize=1024)
def _order(classes: tuple[Class, ...]) -> tuple[Array, int, float, float]:
    """Who goes before whom [K, K], the class that goes last, the shortest TTFT threshold, and the longest wait.

    The backlog of a class is its own and that of all at least as urgent.
    """
    before = np.array([[a.priority >= b.priority for a in classes] for b in classes], dtype=float)
    last = int(np.argmin([c.priority for c in classes]))
    patience_s = _PATIENCE * max((c.ttft_s for c in classes if c.ttft_s < np.inf), default=1.0)
    return before, last, min(c.ttft_s for c in classes), patience_s


def _later(ttft_s: float | Array, least_s: Array, load: Array, decay: Array) -> Array:
    """Share of requests with a longer TTFT: all while it is below the least one, then ever fewer."""
    slack_s = ttft_s - least_s
    later: Array = np.where(slack_s <= 0, 1.0, load * np.exp(-decay * np.maximum(slack_s, 0.0)))
    return later
