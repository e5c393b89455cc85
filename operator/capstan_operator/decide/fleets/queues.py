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
simulation, whose misses are then told within about a tenth on the trace with most of them. Elsewhere fewer are late,
and `chance` learns how many. Lengths being exponential, exp(−2·tokens·E[I] / E[I²]) of the prompts are longer than the
tokens that the threshold has room for, and late without any queue.

The surprising idea: the fleet of the real size is held against what really runs, so that output lengths need not be
known before requests finish. Knows no objective, no look-back and no clock; time comes as a difference.
"""

from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from math import exp
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from capstan_operator.decide.curve import Array, Curve, curves, rows
from capstan_operator.decide.fleets.engine_model import EngineModel
from capstan_operator.decide.fleets.latencies import TOLD, TPOT_S, TTFT_S
from capstan_operator.decide.values import Value

# Numbers that meet arrays again and again are arrays themselves: from a float numpy makes one each time.
_SLICE_S: Final = 1.0
_MOST_SLICES: Final = 60
# A fitted model may find a step that computes nothing to be free.
_SHORTEST_STEP_S: Final = np.array(1e-5)
_LEAST_RATE: Final = np.array(1e-9)
_LEAST_EXPONENT: Final = np.array(-1e-9)
_NEARLY: Final = np.array(1 - 1e-6)
_BUSIEST: Final = np.array(0.999)
_ZERO, _HALF, _ONE = np.array(0.0), np.array(0.5), np.array(1.0)
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
_TTFT_BOUNDS: Final[Sequence[float]] = TTFT_S.tolist()


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


class _Computed(NamedTuple):
    """[F] Prompt tokens a second that are computed in one slice."""

    tokens: Array
    """Of all classes."""
    served: Sequence[Array]
    """Of each class and those that go before it."""
    top: Array
    """As many as could be."""
    is_full: NDArray[np.bool_]
    """Whether they are."""
    own_s: Array
    """TTFT of a prompt of mean length that finds nobody before it."""


class _FirstTokens(NamedTuple):
    """What first tokens of one class meet: [F] in one slice, or [S, F] in all of them."""

    own_s: Array
    """As in `_Computed`, and so are `served` and `top`."""
    alone_s: Array
    """With what more urgent classes have waiting before it."""
    over: Array
    """Prompt tokens for which no time is left."""
    is_short: Array | NDArray[np.bool_]
    """1 where it is time to compute that is short."""
    speed: Array
    """Prompt tokens a second by which what waits gets less."""
    served: Array
    top: Array
    gap_s: Array
    """Time between the tokens that follow."""


class _Newest(NamedTuple):
    """Of one class, what its latencies in the newest slice are told from: [F], and first tokens in all slices."""

    first: _FirstTokens
    load: Array
    pace: Array
    late: Array
    """Share that is late by the class's own threshold."""


class Fleets:
    """All fleets in one slice after the other, as arrays over their sizes; the first one is the real one."""

    def __init__(
        self,
        queues: Queues,
        sizes: Array,
        engine: Engine,
        classes: Sequence[Class],
        dispersion: float,
        chances: Sequence[float],
    ) -> None:
        """`dispersion` is the index of it: 1 where requests come independently of each other. Of those of each class
        that may be late by chance, the share in `chances` is.
        """
        num_classes = len(classes)
        none = (b"",) * num_classes
        kept = (*(queues.backlog or none), *(queues.in_time or none), queues.sequences, queues.step_s, queues.gap_s)
        state = rows(kept, len(sizes)).astype(np.float64)
        self._backlog, self._in_time = state[:num_classes], list(state[num_classes:-3])
        self._sequences, self._step_s, self._gap_s = state[-3], np.maximum(state[-2], _SHORTEST_STEP_S), state[-1]
        self._stay = queues.stay
        self._sizes, self._engine, self._classes = sizes, engine, classes
        self._ttft_s = [np.array(each.ttft_s) for each in classes]
        self._before, self._above, self._last, self._patience_s = _order(tuple(classes))
        a, _, c, d, _ = engine.model.coefficients
        self._a, self._c = np.array(a), np.array(c + d * engine.context)
        self._token_s, self._full_s = np.array(engine.token_s), np.array(engine.full_s)
        self._budget, self._prompt = np.array(engine.budget), np.array(engine.prompt)
        self._output = np.array(engine.output * queues.stay)
        self._places = self._places_of(sizes)
        self._tail = _TAIL * np.sqrt(np.maximum(1.0, sizes)) / dispersion
        self._typical = engine.prompt / max(engine.prompt, engine.long_prompt)
        """Of the requests whose tokens are lost: a prompt of mean length for one of those that are long."""
        self._chances = chances
        self.bounds: list[tuple[float, float]] = []
        """For each class: share of the newest arrivals that the real fleet misses if nobody of it is late by chance,
        and if all are who may be."""
        self._newest: list[_Newest] = []

    @property
    def queues(self) -> Queues:
        num_classes = len(self._classes)
        kept = curves(np.array([*self._backlog, *self._in_time, self._sequences, self._step_s, self._gap_s]))
        return Queues.made(
            backlog=kept[:num_classes],
            in_time=kept[num_classes:-3],
            sequences=kept[-3],
            step_s=kept[-2],
            gap_s=kept[-1],
            stay=self._stay,
        )

    def run(self, arrived: Sequence[Arrived], seconds: float) -> Array:
        """[K, F] Share of the arrivals of each class that each fleet misses."""
        num_slices = min(_MOST_SLICES, max(1, round(seconds / _SLICE_S)))
        h = seconds / num_slices
        rates = self._before @ np.array([a.tokens for a in arrived]) / seconds
        slices = [self._slice(rates, h) for _ in range(num_slices)]
        missed = []
        for k, in_slices in enumerate(zip(*slices, strict=True)):
            first = _stacked(in_slices)
            missed.append(np.add.reduce(self._missed(k, first, self._new(k, rates.tolist()) * h)))
        return np.array(missed) / num_slices

    @property
    def above_ttft(self) -> list[Array]:
        """[G, L] for each class: share of the newest arrivals whose TTFT is above each of the bounds, of the fleets of
        which latencies are told. Of what has `run`, before it is corrected.
        """
        return [self._longer(k, newest) for k, newest in enumerate(self._newest)]

    @property
    def above_tpot(self) -> Array:
        """[G, L] Likewise of the TPOT, of all classes."""
        above: Array = (self._gap_s[TOLD] > TPOT_S[:, None]).astype(np.float64)
        return above

    def _slice(self, rates: Array, seconds: float) -> list[_FirstTokens]:
        """One slice, in which `rates` [K] prompt tokens a second come to each class and those that go before it."""
        sizes, n, h = self._sizes, self._sequences, np.array(seconds)
        own = n / sizes
        base_s = np.maximum(_SHORTEST_STEP_S, self._a + self._c * own)
        room = (self._full_s - base_s) / self._token_s
        chunk = np.maximum(np.minimum(self._budget - own, room), _ONE)
        full_s = base_s + self._token_s * chunk
        top = sizes * chunk / full_s

        wanted = self._backlog[self._last] / h + rates[self._last]
        free = np.maximum(_ZERO, self._places - n)
        leaving = n / (self._output * self._step_s)
        computed = np.minimum(np.minimum(wanted, top), self._prompt * (free / h + leaving))
        # What goes before the others is computed first, and nobody waits for ever.
        longest = top * self._patience_s
        # The real one has the queue that it has.
        longest[0] = np.inf
        queued = np.minimum(self._backlog + (rates * h)[:, None], longest)
        served = np.minimum(queued / h, computed)
        self._backlog = queued - served * h

        busy = np.minimum(self._token_s * computed / sizes, _BUSIEST)
        is_full = computed >= top * _NEARLY
        step_s = np.minimum(full_s, base_s / (_ONE - busy))
        np.putmask(step_s, is_full, full_s)
        answer_s = self._output * step_s
        self._step_s = step_s
        self._sequences = np.maximum(_ZERO, n + computed * h / self._prompt - n * h / answer_s)
        self._gap_s = self._gap_s + (step_s - self._gap_s) * np.minimum(_ONE, seconds / _ANSWER_SHARE / answer_s)
        own_s = np.maximum(step_s, self._prompt / (top / sizes)) + step_s * _HALF
        of_all = _Computed(computed, served, top, is_full, own_s)
        return [self._first_tokens(k, of_all, rates.tolist(), h) for k in range(len(self._classes))]

    def _places_of(self, sizes: Array) -> Array:
        """[F] Requests that may run at the same time."""
        engine, most = self._engine, self._engine.max_sequences
        if engine.kv_tokens > 0:
            most = min(most, _KV_FULL * engine.kv_tokens / engine.context)
        return sizes * most

    def _first_tokens(self, k: int, of_all: _Computed, rates: Sequence[float], h: Array) -> _FirstTokens:
        """Those of class `k`, after what it has in time got its share of what was computed."""
        own_s, above = of_all.own_s, self._above[k]
        behind, free, got, is_short = self._backlog[k], of_all.top, of_all.tokens, of_all.is_full
        if above is not None:
            ahead = self._backlog[above]
            behind, free, got = behind - ahead, free - rates[above], np.maximum(_ZERO, got - of_all.served[above])
            is_short = got >= free * _NEARLY
        # While others wait for places or KV, less is computed than could be.
        speed = free.copy()
        np.putmask(speed, behind > _ZERO, got)
        speed = np.maximum(speed, _LEAST_RATE)
        waiting = self._in_time[k] + self._new(k, rates) * h
        waiting = waiting - np.minimum(waiting, got * h)
        most = (self._ttft_s[k] - own_s) * speed
        over = np.maximum(_ZERO, waiting - np.maximum(_ZERO, most if above is None else most - ahead))
        self._in_time[k] = np.maximum(_ZERO, np.minimum(waiting - over, behind))
        return _FirstTokens(
            own_s=own_s,
            alone_s=own_s if above is None else own_s + ahead / speed,
            over=over,
            is_short=is_short,
            speed=speed,
            served=of_all.served[k],
            top=of_all.top,
            gap_s=self._gap_s,
        )

    def _new(self, k: int, rates: Sequence[float]) -> float:
        """Prompt tokens a second of class `k` itself."""
        above = self._above[k]
        return rates[k] if above is None else rates[k] - rates[above]

    def _missed(self, k: int, first: _FirstTokens, new: float) -> Array:
        """[S, F] Share of class `k` that is late by either threshold; `new` prompt tokens of it came in each slice."""
        engine, threshold = self._engine, self._classes[k]
        rate = first.top / self._sizes
        load = np.minimum(_ONE, first.served / first.top)
        # Of an idle fleet: how fast longer waits become rare, per second.
        pace = self._tail * rate / engine.long_prompt
        spare_s = np.maximum(_ZERO, threshold.ttft_s - first.alone_s)
        slow: Array = (first.gap_s > threshold.tpot_s).astype(np.float64)
        if threshold.ttft_s == np.inf:
            lost = unlucky = np.zeros(slow.shape)
        else:
            tokens = np.minimum(_ONE, first.over / np.maximum(new, _LEAST_RATE))
            # Those with the longest prompts give up first, where it is time to compute that is short.
            few = np.where(first.is_short > _ZERO, self._typical, _ONE)
            lost = tokens * (few + (_ONE - few) * tokens)
            lost[first.own_s >= threshold.ttft_s] = 1.0
            unlucky = _unlucky(load, pace * spare_s)
        late = np.maximum(lost, self._chances[k] * unlucky)
        self._newest.append(_Newest(first, load[-1], pace[-1], late[-1]))
        # Who has not waited may bring a prompt that takes too long by itself: no number of replicas helps it.
        alone = np.exp((spare_s * rate + engine.prompt) / (-engine.long_prompt / 2))
        self.bounds.append(_bounds(*(of_fleets[:, 0].tolist() for of_fleets in (slow, lost, unlucky, alone))))
        return _either(slow, late, alone)

    def _longer(self, k: int, newest: _Newest) -> Array:
        """[G, L] Share of class `k` whose TTFT is above each bound; the late ones wait for what the others leave."""
        first, load, pace, late = newest
        above, threshold_s, own_s = self._above[k], self._classes[k].ttft_s, first.own_s[-1]
        ahead = self._in_time[k] if above is None else self._backlog[above] + self._in_time[k]
        alone_s, beyond_s = (own_s + ahead / first.speed[-1])[TOLD], (own_s + self._backlog[k] / first.top[-1])[TOLD]
        load, pace, late = load[TOLD], pace[TOLD], late[TOLD]
        num_below = bisect_left(_TTFT_BOUNDS, threshold_s)
        slack_s = TTFT_S[:num_below, None] - alone_s
        # If nobody yielded: all have a longer one than what is below the least, and ever fewer than what is above it.
        slower = load * np.exp((load - 1) * pace * np.maximum(slack_s, 0.0))
        slower[slack_s < 0] = 1.0
        beyond = late * np.exp((threshold_s - TTFT_S[num_below:, None]) / beyond_s)
        return np.concatenate([np.maximum(late, slower), beyond])

    def correct(self, running: float, seconds: float) -> None:
        """Draw all fleets towards what really runs, in the proportion in which the one of the real size is off."""
        # What runs where prompts queue is what fits there, and no measure of how long answers are.
        if running > 0 and self._backlog[self._last][0] <= 0:
            off = min(max((running + 1) / (float(self._sequences[0]) + 1), 0.5), 2.0)
            self._sequences = self._sequences * (1 + (off - 1) * (1 - exp(-seconds / _CORRECTION_S)))
            self._stay *= 1 + (off - 1) * (1 - exp(-seconds / _STAY_S))
            self._stay = min(max(self._stay, 0.5), _LONGEST_STAY)
        if self._engine.kv_tokens > 0:
            held = _KV_OVERFULL * self._engine.kv_tokens * self._sizes / self._engine.context
            excess = np.maximum(0.0, self._sequences - held)
            self._sequences = self._sequences - excess
            # Preempted: the newest of the least urgent class is computed again.
            self._backlog[self._last] = self._backlog[self._last] + excess * self._engine.prompt


def _stacked(slices: Sequence[_FirstTokens]) -> _FirstTokens:
    """[S, F] Each field in all slices."""
    if len(slices) == 1:
        return _FirstTokens._make([field[None] for field in slices[0]])
    return _FirstTokens._make(np.array(list(zip(*slices, strict=True))))


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


def _either(slow: Array, late: Array, alone: Array) -> Array:
    """Share of requests that miss a threshold: all the `slow` ones, else by what waits before them, else `alone`."""
    missed: Array = np.maximum(slow, late + (_ONE - late) * alone)
    return missed


def _bounds(*of_slices: list[float]) -> tuple[float, float]:
    """Means of `_either` with what is lost, and with all the unlucky ones beside; of one fleet, slice by slice."""
    least = most = 0.0
    for slow, lost, unlucky, alone in zip(*of_slices, strict=True):
        late = max(lost, unlucky)
        least += max(slow, lost + (1 - lost) * alone)
        most += max(slow, late + (1 - late) * alone)
    num_slices = len(of_slices[0])
    return least / num_slices, most / num_slices


def _unlucky(load: Array, slack: Array) -> Array:
    """Share of requests that are late by chance, those that are late yielding to the others."""
    # (1 − ρ)·Ω / (1 − ρ·Ω), without its gap at ρ = 1, of all the time that there is: a queue of those in time is never
    # longer than that, and what finds it full has been counted as lost.
    exponent = np.minimum((load - _ONE) * slack, _LEAST_EXPONENT)
    share: Array = load * np.exp(exponent) / (_ONE + load + load**2 * slack * np.expm1(exponent) / exponent)
    return share
