"""The requests of a simulation: read from a trace, cut, and superposed.

Knows no fleet. Columns of a trace are `t` (seconds), `prompt` and `output` (tokens), and where the source gives them
`cached` (prompt tokens that an endless prefix cache would have found), `session` (of which they are guessed when
`cached` is missing) and `slo_class`.
"""

import csv
import gzip
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from capstan_api.access import Access
from capstan_sim.errors import SimulationError

_MEAN_SHIFT_S = 5.0
_LARGEST = 1e12


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests in order of arrival, one array for each of their properties."""

    arrival: NDArray[np.float64]
    prompt: NDArray[np.int64]
    output: NDArray[np.int64]
    cached: NDArray[np.int64]
    """Prompt tokens that need not be computed."""
    slo_class: NDArray[np.int64]
    """Index into the classes of the simulation."""

    def __len__(self) -> int:
        return len(self.arrival)

    @classmethod
    def of(
        cls,
        arrival: Sequence[float] | NDArray[np.float64],
        prompt: Sequence[int] | NDArray[np.int64],
        output: Sequence[int] | NDArray[np.int64],
        cached: Sequence[int] | NDArray[np.int64] | None = None,
    ) -> "Workload":
        """Requests of one class; times must rise."""
        times = np.asarray(arrival, dtype=np.float64)
        zeros = np.zeros(len(times), dtype=np.int64)
        return cls(
            arrival=times,
            prompt=np.asarray(prompt, dtype=np.int64),
            output=np.asarray(output, dtype=np.int64),
            cached=zeros if cached is None else np.asarray(cached, dtype=np.int64),
            slo_class=zeros,
        )

    def taken(self, index: NDArray[np.bool_] | NDArray[np.int64]) -> "Workload":
        """The requests that `index` selects, in its order."""
        return Workload(
            arrival=self.arrival[index],
            prompt=self.prompt[index],
            output=self.output[index],
            cached=self.cached[index],
            slo_class=self.slo_class[index],
        )

    def window(self, start_s: float, stop_s: float) -> "Workload":
        """Requests that arrive in [start, stop), times counted from `start_s`."""
        kept = self.taken((self.arrival >= start_s) & (self.arrival < stop_s))
        if not len(kept):
            raise SimulationError(f"window {start_s:g}:{stop_s:g}: no request of the trace arrives in it")
        return replace(kept, arrival=kept.arrival - start_s)

    def with_prompts_up_to(self, tokens: int) -> "Workload":
        """Without the requests whose prompt is longer."""
        kept = self.taken(self.prompt <= tokens)
        if not len(kept):
            raise SimulationError(f"no prompt of the trace has at most {tokens} tokens; raise the cap")
        return kept

    def cloned(self, copies: int, seed: int) -> "Workload":
        """Superposed `copies` times: the first as it is, each request of the others shifted by Exp(mean 5 s)."""
        rng = np.random.default_rng(seed)
        shifts = [np.zeros(len(self)), *(rng.exponential(_MEAN_SHIFT_S, len(self)) for _ in range(copies - 1))]
        several = self.taken(np.tile(np.arange(len(self)), copies))
        moved = replace(several, arrival=several.arrival + np.concatenate(shifts))
        return moved.taken(np.argsort(moved.arrival, kind="stable"))

    def with_classes(self, shares: Sequence[float], seed: int) -> "Workload":
        """Each request with a class drawn by the share at its place."""
        rng = np.random.default_rng(seed)
        drawn = rng.choice(len(shares), size=len(self), p=np.asarray(shares) / sum(shares))
        return replace(self, slo_class=drawn.astype(np.int64))

    def without_cache(self) -> "Workload":
        """The same requests, all of whose prompts have to be computed."""
        return replace(self, cached=np.zeros_like(self.cached))


def read(path: Path, classes: Sequence[str] = ()) -> Workload:
    """The requests in a CSV file, or in the log of one of our gateways; gzipped or not.

    Classes are looked up in `classes`; where no class is named every request is of the first one. Of a log only the
    requests are taken that got an answer: how long those would have been that got none, nobody knows.
    """
    try:
        with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as file:
            lines = [line for line in file if not line.startswith("#")]
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SimulationError(f"cannot read the trace {path}: {reason}") from None
    answered = sorted(access for access in map(Access.found, lines) if access is not None and access.output_tokens)
    if answered:
        return _logged(path, answered, classes)
    try:
        table = list(csv.reader(lines))
    except csv.Error as error:
        raise SimulationError(f"{path} is no table: {error}") from None
    try:
        columns = {name: column for name, *column in zip(*table, strict=True)}
    except ValueError:
        raise SimulationError(f"{path}: not every row has the {len(table[0])} columns of the header") from None
    missing = [name for name in ("t", "prompt", "output") if not columns.get(name)]
    if missing:
        raise SimulationError(
            f"{path}: needs rows with the columns t, prompt and output, or a gateway's log; {missing[0]} is missing"
        )
    numbers: dict[str, NDArray[np.float64]] = {
        name: _numbers(path, name, columns) for name in ("t", "prompt", "output", "cached") if name in columns
    }
    arrival = numbers["t"]
    if np.any(np.diff(arrival) < 0):
        row = int(np.argmax(np.diff(arrival) < 0)) + 2
        raise SimulationError(f"{path}: request {row} arrives before the one above it; sort the file by t")
    named = columns.get("slo_class")
    return Workload(
        arrival=arrival,
        prompt=np.maximum(1, numbers["prompt"].astype(np.int64)),
        output=np.maximum(1, numbers["output"].astype(np.int64)),
        cached=numbers["cached"].astype(np.int64) if "cached" in numbers else _cached_by_session(columns, numbers),
        slo_class=np.zeros(len(arrival), dtype=np.int64) if named is None else _places(path, named, classes),
    )


def _logged(path: Path, answered: Sequence[Access], classes: Sequence[str]) -> Workload:
    start = answered[0].arrived_at
    return Workload(
        arrival=np.array([access.arrived_at - start for access in answered]),
        prompt=np.array([max(1, access.prompt_tokens) for access in answered], dtype=np.int64),
        output=np.array([access.output_tokens for access in answered], dtype=np.int64),
        cached=np.zeros(len(answered), dtype=np.int64),
        slo_class=_places(path, [access.slo_class for access in answered], classes),
    )


def _numbers(path: Path, name: str, columns: Mapping[str, Sequence[str]]) -> NDArray[np.float64]:
    try:
        numbers = np.array(columns[name], dtype=np.float64)
    except ValueError as error:
        raise SimulationError(f"{path}: column {name}: {error}") from None
    # Not a number is neither.
    sane = (numbers >= 0) & (numbers <= _LARGEST)
    if not sane.all():
        row = int(np.argmin(sane)) + 1
        raise SimulationError(
            f"{path}: request {row} has {name} {columns[name][row - 1]}; a number from 0 to {_LARGEST:g} is needed"
        )
    return numbers


def _cached_by_session(
    columns: Mapping[str, Sequence[str]], numbers: Mapping[str, NDArray[np.float64]]
) -> NDArray[np.int64]:
    """What a conversation's next prompt finds: the prompt and the answer before it, as far as it is longer."""
    cached = np.zeros(len(numbers["t"]), dtype=np.int64)
    known: dict[str, float] = {}
    for index, session in enumerate(columns.get("session", ())):
        prompt = numbers["prompt"][index]
        cached[index] = min(known.get(session, 0.0), prompt)
        known[session] = prompt + numbers["output"][index]
    return cached


def _places(path: Path, named: Sequence[str], classes: Sequence[str]) -> NDArray[np.int64]:
    """[requests] The place of each one's class among `classes`."""
    place = {name: index for index, name in enumerate(classes)}
    unknown = sorted(set(named) - place.keys())
    if unknown:
        raise SimulationError(f"{path}: SLO class {unknown[0]!r} is not declared; known are {', '.join(classes)}")
    return np.array([place[name] for name in named], dtype=np.int64)
