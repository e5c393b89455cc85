"""What happened to each request, and the figures that sum it up. Pure: no clock, no network.

Times of an `Outcome` are seconds since the start of the run, as the client saw them. TTFT counts from the moment the
request was sent; what the generator itself was late by is reported apart (`lateness_ms`), so a slow generator shows as
itself and never hides in, or flatters, the server's figures.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class Result(StrEnum):
    """How a request ended. All but `REJECTED` were accepted."""

    COMPLETED = "completed"
    """A finish reason, every token asked for and, on a stream, `[DONE]`."""
    REJECTED = "rejected"
    """429 or 503: refused before any work, to be tried again later."""
    FAILED = "failed"
    """Any other error status."""
    LOST = "lost"
    """No answer, no end within the time limit, or a connection dropped."""
    TRUNCATED = "truncated"
    """An answer that stops early: no finish reason, no `[DONE]`, an error event, or fewer tokens than asked for."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request from the client's side."""

    index: int
    slo_class: str | None
    planned_s: float
    sent_s: float
    ended_s: float
    result: Result
    detail: str = ""
    first_token_s: float | None = None
    last_token_s: float | None = None
    wanted_prompt_tokens: int = 0
    wanted_output_tokens: int = 0
    prompt_tokens: int | None = None
    output_tokens: int = 0
    replica: str | None = None

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_token_s is None else self.first_token_s - self.sent_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time between output tokens; None below two tokens."""
        if self.first_token_s is None or self.last_token_s is None or self.output_tokens < 2:
            return None
        return (self.last_token_s - self.first_token_s) / (self.output_tokens - 1)

    @property
    def e2e_s(self) -> float:
        return self.ended_s - self.sent_s

    @property
    def lateness_s(self) -> float:
        return self.sent_s - self.planned_s


@dataclass(frozen=True)
class Thresholds:
    """What makes a request of a class good. None is always met."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None

    def met_by(self, outcome: Outcome) -> bool:
        """Whether a completed `outcome` keeps both thresholds; one without a TPOT (a single token) keeps that one."""
        return (
            outcome.result is Result.COMPLETED
            and _within(outcome.ttft_s, self.ttft_ms)
            and (outcome.tpot_s is None or _within(outcome.tpot_s, self.tpot_ms))
        )


def _within(value_s: float | None, threshold_ms: float | None) -> bool:
    return threshold_ms is None or (value_s is not None and value_s * 1000 <= threshold_ms)


@dataclass(frozen=True)
class Spread:
    """Percentiles in milliseconds; None where there is no value."""

    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    max: float | None = None

    @staticmethod
    def of(seconds: Iterable[float | None]) -> "Spread":
        values = sorted(1000 * s for s in seconds if s is not None)
        if not values:
            return Spread()
        mean = round(sum(values) / len(values), 2)
        return Spread(mean, *(round(percentile(values, p), 2) for p in (50, 90, 95, 99, 100)))


@dataclass(frozen=True)
class ClassSummary:
    """One SLO class over the whole run. Rejected, failed, lost and truncated requests are not good."""

    name: str
    ttft_threshold_ms: float | None
    tpot_threshold_ms: float | None
    requests: int
    results: dict[str, int]
    good: int
    attainment_percent: float | None
    goodput_per_s: float
    ttft_ms: Spread
    tpot_ms: Spread
    e2e_ms: Spread


@dataclass(frozen=True)
class Summary:
    """A whole run."""

    seconds: float
    requests: int
    accepted: int
    completed: int
    rejected: int
    failed: int
    lost: int
    truncated: int
    requests_per_s: float
    output_tokens_per_s: float
    prompt_tokens: int
    output_tokens: int
    goodput_per_s: float
    attainment_percent: float | None
    lateness_ms: Spread
    # Largest difference between the prompt length wanted and the one that the server counted.
    prompt_tokens_off_by_max: int
    errors: dict[str, int] = field(default_factory=dict)
    by_replica: dict[str, int] = field(default_factory=dict)
    classes: tuple[ClassSummary, ...] = ()


def percentile(ordered: Sequence[float], p: float) -> float:
    """The p-th percentile of sorted values, linear between neighbours (Hyndman and Fan's type 7)."""
    rank = (len(ordered) - 1) * p / 100
    low = math.floor(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


def class_name(outcome: Outcome, declared: Iterable[str]) -> str:
    """The class that the server counts a request under: the one that it names, or else the first one declared."""
    return outcome.slo_class or next(iter(declared), "default")


def summarise(
    outcomes: Sequence[Outcome], thresholds: Mapping[str, Thresholds], default: Thresholds | None = None
) -> Summary:
    """Figures of a run. A class without `thresholds` of its own is held to `default`, or to none."""
    fallback = default or Thresholds()
    seconds = max((o.ended_s for o in outcomes), default=0.0) - min((o.sent_s for o in outcomes), default=0.0)
    groups: dict[str, list[Outcome]] = {name: [] for name in thresholds}
    for outcome in outcomes:
        groups.setdefault(class_name(outcome, thresholds), []).append(outcome)
    classes = tuple(_class(name, group, thresholds.get(name, fallback), seconds) for name, group in groups.items())
    results = Counter(o.result for o in outcomes)
    output_tokens = sum(o.output_tokens for o in outcomes)
    good = sum(c.good for c in classes)
    return Summary(
        seconds=round(seconds, 3),
        requests=len(outcomes),
        accepted=len(outcomes) - results[Result.REJECTED],
        completed=results[Result.COMPLETED],
        rejected=results[Result.REJECTED],
        failed=results[Result.FAILED],
        lost=results[Result.LOST],
        truncated=results[Result.TRUNCATED],
        requests_per_s=_rate(len(outcomes), seconds),
        output_tokens_per_s=_rate(output_tokens, seconds),
        prompt_tokens=sum(o.prompt_tokens or 0 for o in outcomes),
        output_tokens=output_tokens,
        goodput_per_s=_rate(good, seconds),
        attainment_percent=_percent(good, len(outcomes)),
        lateness_ms=Spread.of(o.lateness_s for o in outcomes),
        prompt_tokens_off_by_max=max(
            (abs(o.prompt_tokens - o.wanted_prompt_tokens) for o in outcomes if o.prompt_tokens is not None), default=0
        ),
        errors=dict(Counter(f"{o.result}: {o.detail}" for o in outcomes if o.detail).most_common(20)),
        by_replica=dict(sorted(Counter(o.replica for o in outcomes if o.replica).items())),
        classes=classes,
    )


def _class(name: str, group: Sequence[Outcome], thresholds: Thresholds, seconds: float) -> ClassSummary:
    good = sum(thresholds.met_by(o) for o in group)
    done = [o for o in group if o.result is Result.COMPLETED]
    return ClassSummary(
        name=name,
        ttft_threshold_ms=thresholds.ttft_ms,
        tpot_threshold_ms=thresholds.tpot_ms,
        requests=len(group),
        results=dict(Counter(str(o.result) for o in group)),
        good=good,
        attainment_percent=_percent(good, len(group)),
        goodput_per_s=_rate(good, seconds),
        ttft_ms=Spread.of(o.ttft_s for o in done),
        tpot_ms=Spread.of(o.tpot_s for o in done),
        e2e_ms=Spread.of(o.e2e_s for o in done),
    )


def _rate(count: float, seconds: float) -> float:
    return round(count / seconds, 3) if seconds > 0 else 0.0


def _percent(part: int, whole: int) -> float | None:
    return round(100 * part / whole, 2) if whole else None
