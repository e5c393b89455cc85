"""When requests arrive and how long they are: traces, Poisson load, and what may be done to their time.

Pure but for `read`: the same input and seed give the same arrivals. Knows nothing of text, HTTP or models.

The surprising idea: a `Speed` may vary over the replay. It only moves real arrivals nearer together or further apart,
in their own order, so a quiet trace can be made to rise, burst and fall without inventing a request.
"""

import csv
import gzip
import math
import random
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

from capstan_cli.errors import InputError

MAX_REQUESTS = 1_000_000


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request before it has any text. `at_s` counts from the start of the run."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    slo_class: str | None = None


@dataclass(frozen=True)
class Speed:
    """Trace seconds per replay second, linear between knots `(replay second, speed)` and constant outside them."""

    knots: tuple[tuple[float, float], ...] = ((0.0, 1.0),)

    @staticmethod
    def parse(text: str) -> "Speed":
        """Read `20` or `0:8,60:8,75:30,110:30,125:8`; raises `InputError`."""
        try:
            if ":" not in text:
                knots = [(0.0, float(text))]
            else:
                knots = [
                    (float(at), float(speed)) for at, _, speed in (part.partition(":") for part in text.split(","))
                ]
        except ValueError:
            raise InputError(
                f"--speedup {text!r} is neither a number nor a list SECOND:SPEED,SECOND:SPEED,… as in 0:8,60:8,75:30"
            ) from None
        times = [at for at, _ in knots]
        if times != sorted(set(times)) or times[0] < 0:
            raise InputError(f"--speedup {text!r}: the seconds must start at 0 or later and increase")
        if not all(0 < speed < math.inf and at < math.inf for at, speed in knots):
            raise InputError(f"--speedup {text!r}: every speed must be a positive number")
        return Speed(((0.0, knots[0][1]), *knots) if times[0] > 0 else tuple(knots))

    def replay_s(self, trace_s: float) -> float:
        """The replay second at which trace second `trace_s` is reached: the inverse of the speed's integral."""
        done = 0.0
        for (start, v0), (stop, v1) in zip(self.knots, self.knots[1:], strict=False):
            area = (v0 + v1) / 2 * (stop - start)
            if done + area >= trace_s:
                slope = (v1 - v0) / (stop - start)
                left = trace_s - done
                # The stable root of slope/2·x² + v0·x = left; it also holds for slope 0.
                return start + 2 * left / (v0 + math.sqrt(max(v0 * v0 + 2 * slope * left, 0.0)))
            done += area
        start, speed = self.knots[-1]
        return start + (trace_s - done) / speed

    def __str__(self) -> str:
        if len(self.knots) == 1:
            return f"{self.knots[0][1]:g}"
        return ",".join(f"{at:g}:{speed:g}" for at, speed in self.knots)


def read(path: Path) -> list[Arrival]:
    """The trace in a CSV file, gzipped or not; raises `InputError`."""
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            return parse(file, str(path))
    except (OSError, UnicodeDecodeError, EOFError, csv.Error, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot read the trace {path}: {reason}") from None


def parse(lines: Iterable[str], name: str = "trace") -> list[Arrival]:
    """Arrivals from CSV lines with the columns `t` (seconds), `prompt` and `output` (tokens); others are passed over.

    Lines that start with `#` are comments. Times are shifted so that the first request arrives at 0.
    Raises `InputError` that names the line.
    """
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    missing = {"t", "prompt", "output"} - set(rows.fieldnames or ())
    if missing:
        raise InputError(f"{name}: the header lacks the column(s) {', '.join(sorted(missing))}; t,prompt,output needed")
    arrivals: list[Arrival] = []
    for number, row in enumerate(rows, 1):
        try:
            arrival = Arrival(float(row["t"]), int(float(row["prompt"])), int(float(row["output"])))
        except (TypeError, ValueError, OverflowError):
            raise InputError(f"{name}: request {number} is not three numbers t,prompt,output: {row}") from None
        if not math.isfinite(arrival.at_s) or arrival.prompt_tokens < 1 or arrival.output_tokens < 1:
            raise InputError(f"{name}: request {number} needs a finite t and at least one token each way: {row}")
        if arrivals and arrival.at_s < arrivals[-1].at_s:
            raise InputError(f"{name}: request {number} arrives before the one above it; sort the file by t")
        if len(arrivals) == MAX_REQUESTS:
            raise InputError(f"{name}: more than {MAX_REQUESTS:,} requests; cut a window from it first")
        arrivals.append(arrival)
    if not arrivals:
        raise InputError(f"{name}: holds no request")
    return _from_zero(arrivals)


def span(text: str) -> tuple[float, float]:
    """Read `A:B`, seconds from the start of a trace; either may be left out. Raises `InputError`."""
    first, colon, last = text.partition(":")
    try:
        start, stop = float(first or 0), float(last or math.inf)
    except ValueError:
        start, stop = 0.0, -1.0
    if not colon or not start < stop:
        raise InputError(f"--window {text!r} is not START:STOP in trace seconds, as in 600:1200")
    return start, stop


def window(arrivals: Sequence[Arrival], text: str) -> list[Arrival]:
    """Requests that arrive in `A:B` (trace seconds, either may be left out), shifted to start at 0."""
    start, stop = span(text)
    kept = [a for a in arrivals if start <= a.at_s < stop]
    if not kept:
        raise InputError(f"--window {text}: no request arrives in it; the trace lasts {arrivals[-1].at_s:.0f} s")
    return _from_zero(kept)


def every(arrivals: Sequence[Arrival], n: int) -> list[Arrival]:
    """Each n-th request: what one of n servers behind a round robin would have got."""
    return list(arrivals[::n])


def thinned(arrivals: Sequence[Arrival], share: float) -> list[Arrival]:
    """An even `share` (0 to 1) of the requests, in order: what that share of a fleet would have got."""
    return [a for i, a in enumerate(arrivals) if math.floor((i + 1) * share) > math.floor(i * share)]


def peak_rate(arrivals: Sequence[Arrival], window_s: float = 10.0) -> float:
    """Requests/s in the busiest `window_s` seconds."""
    most, first = 0, 0
    for last, arrival in enumerate(arrivals):
        while arrivals[first].at_s <= arrival.at_s - window_s:
            first += 1
        most = max(most, last - first + 1)
    return most / window_s


def capped(arrivals: Iterable[Arrival], max_prompt: int | None, max_output: int | None) -> list[Arrival]:
    """Lengths above a cap become the cap; times stay."""
    return [
        replace(
            a,
            prompt_tokens=min(a.prompt_tokens, max_prompt or a.prompt_tokens),
            output_tokens=min(a.output_tokens, max_output or a.output_tokens),
        )
        for a in arrivals
    ]


def cloned(arrivals: Sequence[Arrival], copies: int, seed: int, mean_shift_s: float = 5.0) -> list[Arrival]:
    """The trace superposed `copies` times: the first as it is, each request of the others shifted by Exp(mean 5 s)."""
    rng = random.Random(seed)
    shifted = (replace(a, at_s=a.at_s + rng.expovariate(1 / mean_shift_s)) for _ in range(copies - 1) for a in arrivals)
    return sorted([*arrivals, *shifted], key=lambda a: a.at_s)


def replayed(arrivals: Iterable[Arrival], speed: Speed) -> list[Arrival]:
    """The same requests at the times at which a replay with `speed` reaches them."""
    return [replace(a, at_s=speed.replay_s(a.at_s)) for a in arrivals]


def poisson(rate: float, duration_s: float, prompt_tokens: int, output_tokens: int, seed: int) -> list[Arrival]:
    """Memoryless arrivals at `rate` requests/s for `duration_s`, all of one length."""
    rng = random.Random(seed)
    arrivals: list[Arrival] = []
    at = rng.expovariate(rate)
    while at < duration_s and len(arrivals) < MAX_REQUESTS:
        arrivals.append(Arrival(at, prompt_tokens, output_tokens))
        at += rng.expovariate(rate)
    return arrivals


@dataclass(frozen=True)
class ClassMix:
    """Shares of the SLO classes among the requests. Empty: requests name no class."""

    names: tuple[str, ...] = ()
    cumulative: tuple[float, ...] = ()

    @staticmethod
    def parse(text: str) -> "ClassMix":
        """Read `interactive=0.8,batch=0.2`; shares are relative. Raises `InputError`."""
        shares: dict[str, float] = {}
        for part in filter(None, text.split(",")):
            name, _, share = part.partition("=")
            try:
                shares[name.strip()] = float(share)
            except ValueError:
                shares[name.strip()] = -1.0
        if any(not 0 <= share < math.inf or not name for name, share in shares.items()) or not sum(shares.values()):
            raise InputError(f"--slo-class-mix {text!r} is not CLASS=SHARE,… as in interactive=0.8,batch=0.2")
        total = sum(shares.values())
        return ClassMix(tuple(shares), tuple(running / total for running in accumulate(shares.values())))

    def assigned(self, arrivals: Iterable[Arrival], seed: int) -> list[Arrival]:
        """Each request with a class drawn by its share."""
        if not self.names:
            return list(arrivals)
        rng = random.Random(seed)
        last = len(self.names) - 1
        return [
            replace(a, slo_class=self.names[min(bisect_right(self.cumulative, rng.random()), last)]) for a in arrivals
        ]


def _from_zero(arrivals: Sequence[Arrival]) -> list[Arrival]:
    start = arrivals[0].at_s
    return [replace(a, at_s=a.at_s - start) for a in arrivals]
