"""From a record to the figures of a report: who was served in time, at what price, with how much commotion."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from capstan_sim.policy import Objective
from capstan_sim.simulation import Record


@dataclass(frozen=True, slots=True)
class Summary:
    """Attainment is the share of all requests with TTFT and TPOT within their class's thresholds."""

    attainment_percent: float
    gpu_hours: float
    scale_events: int
    flips: int
    limit_changes: int


def attained(record: Record, objectives: Sequence[Objective]) -> NDArray[np.bool_]:
    """[requests] Which of them met both thresholds of their class; one without an end met none."""
    book = record.book
    done, first = np.array(book.done), np.array(book.first)
    output, of_class = np.array(book.output), np.array(book.slo_class)
    ttft_s = np.array([o.ttft_s for o in objectives])[of_class]
    tpot_s = np.array([o.tpot_s for o in objectives])[of_class]
    ttft = first - np.array(book.arrival)
    tpot = (done - first) / np.maximum(1, output - 1)
    good: NDArray[np.bool_] = (done >= 0) & (ttft <= ttft_s) & (tpot <= tpot_s)
    return good


def gpu_hours(record: Record) -> float:
    """From launch to retirement times GPUs, up to the last arrival."""
    pods = [*record.fleet.pods, *record.fleet.retired]
    return sum(pod.seconds(record.end_s) * pod.model.num_gpus for pod in pods) / 3600


def flips(levels: Sequence[int]) -> int:
    """Changes against the direction of the change before."""
    moves = [after - before for before, after in pairwise(levels)]
    return sum(1 for before, after in pairwise(moves) if before * after < 0)


def summary(record: Record, objectives: Sequence[Objective]) -> Summary:
    good = attained(record, objectives)
    return Summary(
        attainment_percent=100 * float(good.mean()),
        gpu_hours=gpu_hours(record),
        scale_events=len(record.targets) - 1,
        flips=flips([replicas for _, replicas in record.targets]),
        limit_changes=len(record.limits) - 1,
    )
