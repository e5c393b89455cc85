"""The report of one simulation as plain data: figures in all and per class, why requests missed, and the time line.

Equal records give equal text: no wall time, no path and no unordered thing is in it.

A request that missed has exactly one cause, the first that applies:

    unfinished   it had no answer 1800 s after the last arrival
    failure      a replica that had it died
    cold_start   its first token was late, and while it waited for its first step a replica was being started
    queue        its first token was late, and it waited longer for its first step than it was computed
    prefill      its first token was late all the same
    tpot         its first token was in time, the others were too slow
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capstan_sim.fleet import PodPhase
from capstan_sim.measure import attained, summary
from capstan_sim.policy import Objective
from capstan_sim.simulation import Record

_BIN_S = 60.0
_PERCENTILES = (50, 95, 99)


class Cause(StrEnum):
    UNFINISHED = "unfinished"
    FAILURE = "failure"
    COLD_START = "cold_start"
    QUEUE = "queue"
    PREFILL = "prefill"
    TPOT = "tpot"


def report(
    record: Record, objectives: Mapping[str, Objective], *, cost_per_replica_hour: float = 0.0
) -> dict[str, Any]:
    """Figures of `record`; `objectives` are those of the classes, by name, in their order."""
    of_class = np.array(record.book.slo_class)
    thresholds = tuple(objectives.values())
    good = attained(record, thresholds)
    causes = _causes(record, thresholds)
    figures = summary(record, thresholds)
    minutes = _minutes(record, thresholds, good, causes)
    replica_hours = figures.gpu_hours / record.setting.model.num_gpus
    cost = {"cost": round(replica_hours * cost_per_replica_hour, 2)} if cost_per_replica_hour else {}
    return {
        "attainment_percent": round(figures.attainment_percent, 4),
        "gpu_hours": round(figures.gpu_hours, 4),
        **cost,
        "scale_events": figures.scale_events,
        "flips": figures.flips,
        "limit_changes": figures.limit_changes,
        "violation_minutes": sum(1 for row in minutes if row["violated"]),
        "requests": len(record.book),
        "preemptions": record.fleet.num_preemptions,
        "violations": _counted(causes, ~good),
        "classes": {
            name: _class_figures(record, of_class == index, good, causes) for index, name in enumerate(objectives)
        },
        "targets": [{"t": round(at, 3), "replicas": replicas} for at, replicas in record.targets],
        "limits": [{"t": round(at, 3), **limits.model_dump()} for at, limits in record.limits],
        "timeline": minutes,
    }


def _class_figures(
    record: Record, chosen: NDArray[np.bool_], good: NDArray[np.bool_], causes: NDArray[np.int64]
) -> dict[str, Any]:
    book = record.book
    done, first = np.array(book.done), np.array(book.first)
    ttft = (first - np.array(book.arrival))[chosen & (first >= 0)]
    several = chosen & (done >= 0) & (np.array(book.output) > 1)
    tpot = ((done - first) / np.maximum(1, np.array(book.output) - 1))[several]
    return {
        "requests": int(chosen.sum()),
        "attainment_percent": round(100 * float(good[chosen].mean()), 4) if chosen.any() else None,
        "ttft_ms": _percentiles(ttft),
        "tpot_ms": _percentiles(tpot),
        "violations": _counted(causes, chosen & ~good),
    }


def _percentiles(seconds: NDArray[np.float64]) -> dict[str, float]:
    if not len(seconds):
        return {}
    return {f"p{p}": round(1000 * float(np.percentile(seconds, p)), 3) for p in _PERCENTILES}


def _counted(causes: NDArray[np.int64], chosen: NDArray[np.bool_]) -> dict[str, int]:
    return _named(np.bincount(causes[chosen], minlength=len(Cause)))


def _named(counts: NDArray[np.int64]) -> dict[str, int]:
    """Those of the counts by cause that are not 0."""
    return {cause.value: int(count) for cause, count in zip(Cause, counts, strict=True) if count}


def _causes(record: Record, objectives: Sequence[Objective]) -> NDArray[np.int64]:
    """[requests] Why each missed, as a place among the causes; of those that did not it means nothing."""
    book = record.book
    arrival, first, started = np.array(book.arrival), np.array(book.first), np.array(book.started)
    late = first - arrival > np.array([o.ttft_s for o in objectives])[np.array(book.slo_class)]
    queued = started - arrival > first - started
    conditions = [
        np.array(book.done) < 0,
        np.array(book.num_retries) > 0,
        late & _met_a_start(record),
        late & queued,
        late,
    ]
    places = list(range(len(Cause)))
    causes: NDArray[np.int64] = np.select(conditions, places[:-1], places[-1])
    return causes


def _met_a_start(record: Record) -> NDArray[np.bool_]:
    """[requests] Whether some replica was being started between the request's arrival and its first step."""
    fleet, arrival, started = record.fleet, np.array(record.book.arrival), np.array(record.book.started)
    until = np.where(started < 0, np.inf, started)
    unfinished = [(pod.starting_since, np.inf) for pod in fleet.phase(PodPhase.PENDING, PodPhase.STARTING)]
    met = np.zeros(len(arrival), dtype=np.bool_)
    for begin, end in (*fleet.starts, *unfinished):
        met |= (arrival < end) & (until > begin)
    return met


def _minutes(
    record: Record, objectives: Sequence[Objective], good: NDArray[np.bool_], causes: NDArray[np.int64]
) -> list[dict[str, Any]]:
    """One row for each minute of arrivals: load, what became of it, and the fleet at its end."""
    of_class, minute = np.array(record.book.slo_class), (np.array(record.book.arrival) // _BIN_S).astype(np.int64)
    num_minutes = int(minute[-1]) + 1
    arrived = np.zeros((num_minutes, len(objectives)), dtype=np.int64)
    met = np.zeros_like(arrived)
    np.add.at(arrived, (minute, of_class), 1)
    np.add.at(met, (minute, of_class), good)
    missed = np.zeros((num_minutes, len(Cause)), dtype=np.int64)
    np.add.at(missed, (minute[~good], causes[~good]), 1)
    needed = arrived * np.array([o.percent for o in objectives]) / 100
    looks = np.array([at for at, *_ in record.timeline])
    rows = []
    for index in range(num_minutes):
        end = (index + 1) * _BIN_S
        _, ready, coming, present = record.timeline[max(0, int(np.searchsorted(looks, end, "right")) - 1)]
        total = int(arrived[index].sum())
        rows.append(
            {
                "t": index * _BIN_S,
                "requests_per_s": round(total / _BIN_S, 3),
                "attainment_percent": round(100 * int(met[index].sum()) / total, 3) if total else None,
                "violated": bool((met[index] < needed[index]).any()),
                "violations": _named(missed[index]),
                "ready": ready,
                "starting": coming,
                "in_system": present,
            }
        )
    return rows
