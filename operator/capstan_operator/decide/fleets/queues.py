"""The queues of virtual fleets: in fluid form, what each number of replicas would have made late.

Each fleet is a small fluid queue, fed with the arrivals of every turn. It keeps apart what a single "demand" would mix
up: prompts must be computed within the TTFT, decoding is spread over minutes and may run above capacity for a while,
and the KV cache is a cliff of its own. In one slice of length h, for a fleet of M replicas with n sequences decoding
and X prompt tokens waiting, where λ prompt tokens arrive per second and B is the token budget:

    base = a + (c + d·ctx)·n/M         a step without prefill, of the fitted engine model
    full = base + β·(B − n/M)          one that is filled up; top = M·(B − n/M) / full  prompt tokens/s at most; every
                                       fleet has the budget that its own sequences leave within the TPOT
    r    = min(X/h + λ, top, KV room)  what is computed; X += (λ − r)·h, n += r·h/I − n·h/(O·step)

Requests that can no longer be in time yield to those that can, as they do in the engine's scheduler. So of X a part Y
is in time: it holds no more than is computed within the threshold, and what comes beyond that is lost. Where time to
compute is short, those with the longest prompts give up first: with few tokens lost, E[I]² / E[I²] times as many
requests are, and with all of them, all.

Others are late by chance: the router counts requests, most of which decode, and so still puts long prompts behind one
another. The wait of an M/G/1 queue has the tail Ω = ρ·exp(−2(1 − ρ)·slack·E[S] / E[S²]) (Kingman, 1962), its exponent
divided by the index of dispersion of what comes, and growing as the root of the number of replicas that one may choose
from. Where those who have waited too long no longer hold up the others, (1 − ρ)·Ω / (1 − ρ·Ω) of all are late
(Boots and Tijms, 1999). The factor of the exponent is the one constant here that was fitted: to fleets of fixed size in
simulation, whose misses are then told within about a tenth on the trace with most of them. Lengths being exponential,
exp(−2·tokens·E[I] / E[I²]) of the prompts are longer than the tokens that the threshold has room for, and late without
any queue.

The surprising idea: the fleet of the real size is held against what really runs, so that output lengths need not be
known before requests finish. Knows no objective, no look-back and no clock; time comes as a difference.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

from capstan_operator.decide.curve import Array, Curve, curve, values
from capstan_operator.decide.fleets.engine_model import EngineModel
from capstan_operator.decide.fleets.latencies import TPOT_S, TTFT_S
from capstan_operator.decide.values import Value

_SLICE_S: Final = 1.0
_MOST_SLICES: Final = 60
# A fitted model may find a step that computes nothing to be free.
_SHORTEST_STEP_S: Final = 1e-5
_LEAST_RATE: Final = 1e-9
_LEAST_EXPONENT: Final = 1e-9
_TAIL: Final = 3.0
_KV_FULL, _KV_OVERFULL = 0.9, 0.95
# Of the longest TTFT threshold: a queue that is longer loses its clients as fast as it gets them. A fleet that was too
# small for a while is not judged by a backlog that no fleet of its size would ever have.
_PATIENCE: Final = 10.0
# In which a fleet's sequences are drawn towards what really runs.
_CORRECTION_S: Final = 10.0
_STAY_S, _LONGEST_STAY = 60.0, 4.0
# Of a mean answer: over how much of it the time between tokens is averaged, as TPOT is.
_ANSWER_SHARE: Final = 0.5


class Engine(NamedTuple):
    """What one replica is and does, as learnt by now."""

    model: EngineModel
    token_s: float
    """Seconds per prefill token, attention at the usual depth included."""
    budget: float
    """Most tokens of a step."""
    full_s: float
    """What a full step takes at most, however many tokens that are; infinite where only the budget binds."""
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


class Queues(Value):
    """State of all fleets' queues. Rows belong to the classes, in their order."""

    backlog: tuple[Curve, ...] = ()
    """Prompt tokens that wait, of the class and those that go before it."""
    in_time: tuple[Curve, ...] = ()
    """Those of the class's own priority that can still be in time."""
    sequences: Curve = b""
    step_s: Curve = b""
    gap_s: Curve = b""
    """Time between tokens, averaged as the TPOT of a request is."""
    stay: float = 1.0
    """By how much requests run longer than those that have finished: long answers are the last to be known."""


class _FirstTokens(NamedTuple):
    """[F] First tokens of one class in the newest slice."""

    own_s: Array
    """TTFT of a prompt of mean length that finds nobody before it."""
    least_s: Array
    """With all that waits before it, as far as that is in time."""
    alone_s: Array
    """With what more urgent classes have waiting before it."""
    lost: Array
    """Share for which no time is left."""
    load: Array
    pace: Array
    """Of an idle fleet: how fast longer waits become rare, per second."""
    beyond_s: Array
    """What late ones wait beyond the threshold."""


class Fleets:
    """All fleets in one slice after the other, as arrays over their sizes; the first one is the real one."""

    def __init__(
        self, queues: Queues, sizes: Array, engine: Engine, classes: Sequence[Class], dispersion: float
    ) -> None:
        """`dispersion` is the index of it: 1 where requests come independently of each other."""
        num_fleets = len(sizes)
        self._stay = queues.stay
        self._sizes, self._engine, self._classes = sizes, engine._replace(output=engine.output * queues.stay), classes
        self._backlog = _rows(queues.backlog, len(classes), num_fleets)
        self._in_time = _rows(queues.in_time, len(classes), num_fleets)
        self._sequences = values(queues.sequences, num_fleets)
        self._step_s = np.maximum(values(queues.step_s, num_fleets), _SHORTEST_STEP_S)
        self._gap_s = values(queues.gap_s, num_fleets)
        self._before, self._above, self._last, patience_s = _order(tuple(classes))
        self._longest_wait_s = np.full(num_fleets, patience_s)
        # The real one has the queue that it has.
        self._longest_wait_s[0] = np.inf
        self._places = self._places_of(sizes)
        self._tail = _TAIL * np.sqrt(np.maximum(1.0, sizes)) / dispersion
        self._typical = engine.prompt / max(engine.prompt, engine.long_prompt)
        """Of the requests whose tokens are lost: a prompt of mean length for one of those that are long."""
        self._first: list[_FirstTokens] = []
        self._rate = np.zeros(num_fleets)
        """Prompt tokens a second that one replica computes at most."""

    @property
    def queues(self) -> Queues:
        return Queues.made(
            backlog=tuple(curve(row) for row in self._backlog),
            in_time=tuple(curve(row) for row in self._in_time),
            sequences=curve(self._sequences),
            step_s=curve(self._step_s),
            gap_s=curve(self._gap_s),
            stay=self._stay,
        )

    def run(self, arrived: Sequence[Arrived], seconds: float) -> Array:
        """[K, F] Share of the arrivals of each class that each fleet misses."""
        num_slices = min(_MOST_SLICES, max(1, round(seconds / _SLICE_S)))
        rates = self._before @ np.array([a.tokens for a in arrived]) / seconds
        missed = sum(self._slice(rates, seconds / num_slices) for _ in range(num_slices))
        return np.asarray(missed) / num_slices

    @property
    def above_ttft(self) -> Array:
        """[K, G, F] Share of the newest arrivals whose TTFT is above each of the bounds."""
        pairs = zip(self._classes, self._first, strict=True)
        return np.array([_above(TTFT_S[:, None], first, of.ttft_s) for of, first in pairs])

    @property
    def above_tpot(self) -> Array:
        """[G, F] Likewise of the TPOT, of all classes."""
        return (self._gap_s > TPOT_S[:, None]).astype(np.float64)

    def _slice(self, rates: Array, h: float) -> Array:
        engine, sizes, n = self._engine, self._sizes, self._sequences
        a, _, c, d, _ = engine.model.coefficients
        own = n / sizes
        waiting = self._backlog[self._last]
        base_s = np.maximum(_SHORTEST_STEP_S, a + (c + d * engine.context) * own)
        room = (engine.full_s - base_s) / engine.token_s
        chunk = np.maximum(np.minimum(engine.budget - own, room), 1.0)
        full_s = base_s + engine.token_s * chunk
        top = sizes * chunk / full_s

        wanted = waiting / h + rates[self._last]
        free = np.maximum(0.0, self._places - n)
        leaving = n / (engine.output * self._step_s)
        computed = np.minimum(np.minimum(wanted, top), engine.prompt * (free / h + leaving))
        # [K, F]: what goes before the others is computed first, and nobody waits for ever.
        queued = np.minimum(self._backlog + rates[:, None] * h, top * self._longest_wait_s)
        served = np.minimum(queued / h, computed)
        self._backlog = queued - served * h

        busy = np.minimum(engine.token_s * computed / sizes, 0.999)
        is_full = computed >= top * (1 - 1e-6)
        step_s = np.where(is_full, full_s, np.minimum(full_s, base_s / (1 - busy)))
        self._step_s = step_s
        finishing = n * h / (engine.output * step_s)
        self._sequences = np.maximum(0.0, n + computed * h / engine.prompt - finishing)
        self._gap_s += (step_s - self._gap_s) * np.minimum(1.0, h / (_ANSWER_SHARE * engine.output * step_s))
        self._rate = rate = top / sizes
        own_s = np.maximum(step_s, engine.prompt / rate) + step_s / 2
        self._first = [self._first_tokens(k, rates, served, computed, top, own_s, h) for k in range(len(self._classes))]
        pairs = zip(self._classes, self._first, strict=True)
        return np.array([self._missed(of_class, first) for of_class, first in pairs])

    def _places_of(self, sizes: Array) -> Array:
        """[F] Requests that may run at the same time."""
        engine, most = self._engine, self._engine.max_sequences
        if engine.kv_tokens > 0:
            most = min(most, _KV_FULL * engine.kv_tokens / engine.context)
        return sizes * most

    def _first_tokens(
        self, k: int, rates: Array, served: Array, computed: Array, top: Array, own_s: Array, h: float
    ) -> _FirstTokens:
        """Those of class `k`, after what it has in time got its share of what was computed."""
        above, threshold_s, rate = self._above[k], self._classes[k].ttft_s, rates[k]
        ahead, free, got = np.zeros_like(top), top, computed
        if above is not None:
            ahead, rate = self._backlog[above], rate - rates[above]
            free, got = top - rates[above], np.maximum(0.0, computed - served[above])
        behind = self._backlog[k] - ahead
        # While others wait for places or KV, less is computed than could be.
        pace = np.maximum(np.where(behind > 0, got, free), _LEAST_RATE)
        waiting = self._in_time[k] + rate * h
        waiting = waiting - np.minimum(waiting, got * h)
        lost = np.zeros_like(top)
        if threshold_s < np.inf:
            over = np.maximum(0.0, waiting - np.maximum(0.0, (threshold_s - own_s) * pace - ahead))
            waiting = waiting - over
            tokens = np.minimum(1.0, over / max(rate * h, _LEAST_RATE))
            # Those with the longest prompts give up first, where it is time to compute that is short.
            few = np.where(got >= free * (1 - 1e-6), self._typical, 1.0)
            lost = tokens * (few + (1 - few) * tokens)
        self._in_time[k] = np.maximum(0.0, np.minimum(waiting, behind))
        load = np.minimum(1.0, served[k] / top)
        return _FirstTokens(
            own_s=own_s,
            least_s=own_s + (ahead + self._in_time[k]) / pace,
            alone_s=own_s + ahead / pace,
            lost=lost,
            load=load,
            pace=self._tail * self._rate / self._engine.long_prompt,
            beyond_s=own_s + self._backlog[k] / top,
        )

    def _missed(self, threshold: Class, first: _FirstTokens) -> Array:
        """[F] Share of the class that is late, by either threshold."""
        late: Array = (self._gap_s > threshold.tpot_s).astype(np.float64)
        if threshold.ttft_s == np.inf:
            return late
        queued = _late(threshold.ttft_s, first)
        # Who has not waited may bring a prompt that takes too long by itself: no number of replicas helps it.
        spare_tokens = np.maximum(0.0, threshold.ttft_s - first.alone_s) * self._rate + self._engine.prompt
        alone = np.exp(-2 * spare_tokens / self._engine.long_prompt)
        return np.maximum(late, queued + (1 - queued) * alone)

    def correct(self, running: float, seconds: float) -> None:
        """Draw all fleets towards what really runs, in the proportion in which the one of the real size is off."""
        # What runs where prompts queue is what fits there, and no measure of how long answers are.
        if running > 0 and self._backlog[self._last][0] <= 0:
            off = min(max((running + 1) / (self._sequences[0] + 1), 0.5), 2.0)
            self._sequences = self._sequences * (1 + (off - 1) * (1 - np.exp(-seconds / _CORRECTION_S)))
            self._stay *= 1 + (off - 1) * float(1 - np.exp(-seconds / _STAY_S))
            self._stay = min(max(self._stay, 0.5), _LONGEST_STAY)
        if self._engine.kv_tokens > 0:
            held = _KV_OVERFULL * self._engine.kv_tokens * self._sizes / self._engine.context
            excess = np.maximum(0.0, self._sequences - held)
            self._sequences = self._sequences - excess
            # Preempted: the newest of the least urgent class is computed again.
            self._backlog[self._last] += excess * self._engine.prompt


def _rows(curves: Sequence[Curve], num_classes: int, num_fleets: int) -> Array:
    """[K, F]"""
    return np.array([values(row, num_fleets) for row in curves or (b"",) * num_classes])


@lru_cache(maxsize=1024)
def _order(classes: tuple[Class, ...]) -> tuple[Array, tuple[int | None, ...], int, float]:
    """Who goes before whom [K, K], which class each one follows, the one that goes last, and the longest wait.

    The backlog of a class is its own and that of all at least as urgent.
    """
    before = np.array([[a.priority >= b.priority for a in classes] for b in classes], dtype=float)
    urgency = [c.priority for c in classes]
    above = [
        min((j for j, other in enumerate(urgency) if other > own), key=urgency.__getitem__, default=None)
        for own in urgency
    ]
    patience_s = _PATIENCE * max((c.ttft_s for c in classes if c.ttft_s < np.inf), default=1.0)
    return before, tuple(above), int(np.argmin(urgency)), patience_s


def _slower(ttft_s: float | Array, first: _FirstTokens) -> Array:
    """Share of requests that would have a longer TTFT if nobody yielded: all below the least one, then ever fewer."""
    slack_s = ttft_s - first.least_s
    rare = np.exp(-(1 - first.load) * first.pace * np.maximum(slack_s, 0.0))
    slower: Array = np.where(slack_s < 0, 1.0, first.load * rare)
    return slower


def _late(threshold_s: float, first: _FirstTokens) -> Array:
    """Share of requests that miss their threshold, those that are late yielding to the others."""
    # (1 − ρ)·Ω / (1 − ρ·Ω), without its gap at ρ = 1, of all the time that there is: a queue of those in time is never
    # longer than that, and what finds it full has been counted as lost.
    slack, load = first.pace * np.maximum(0.0, threshold_s - first.alone_s), first.load
    exponent = np.maximum((1 - load) * slack, _LEAST_EXPONENT)
    unlucky = load * np.exp(-exponent) / (1 + load + load**2 * slack * -np.expm1(-exponent) / exponent)
    late: Array = np.where(first.own_s >= threshold_s, 1.0, np.maximum(first.lost, unlucky))
    return late


def _above(ttft_s: Array, first: _FirstTokens, threshold_s: float) -> Array:
    """[G, F] Share of requests with a longer TTFT than each bound; the late ones wait for what the others leave."""
    if threshold_s == np.inf:
        return _slower(ttft_s, first)
    late = _late(threshold_s, first)
    beyond = late * np.exp(-np.maximum(0.0, ttft_s - threshold_s) / first.beyond_s)
    return np.where(ttft_s < threshold_s, np.maximum(late, _slower(ttft_s, first)), beyond)
