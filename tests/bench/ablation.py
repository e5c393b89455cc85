"""What each part of the law is worth: the development cases with the whole law, and with one part after the other out.

    python tests/bench/ablation.py --traces DIR [--cases az-conv,mc-syn] [--parts feedback,history]
        [--cold-starts 30,120,300] [--seeds 0,1,2] [--processes 2] [--output build/bench]

A part is left out by giving the constant that stands for it the value at which it does nothing; `limits` is the policy
whose batch limits stay where the peers' are. A violation-minute is one in which fewer of the requests that arrived met
their thresholds than the objective asks for. Figures are medians over the clone seeds. Writes ablation.md.
"""

import argparse
import statistics
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from capstan_engine.scheduler.prefill_pace import PrefillPace
from capstan_operator.decide import outlook
from capstan_operator.decide.fleets import chance, dispersion, queues
from capstan_operator.decide.fleets.bank import Bank
from capstan_operator.decide.limits import lateness
from capstan_operator.decide.scaling import replicas, sizing
from capstan_sim import replica
from capstan_sim.cases import CASES
from capstan_sim.measure import attained, summary
from capstan_sim.simulation import Record
from capstan_sim.what_if import LAW, REPLICAS_ONLY

DEFAULT_CASES = ("az-conv", "sg-large", "sg-mid", "mc-syn")
WHOLE, LIMITS = "nothing", "limits"
Without = tuple[ModuleType | type, str, Any]
PARTS: dict[str, tuple[Without, ...]] = {
    # Misses that the bank did not tell widen the margin.
    "feedback": ((sizing, "_LARGEST_FEEDBACK", 0.0),),
    # A short history widens it.
    "history": ((sizing, "_HISTORY_MARGIN", 0.0),),
    # A long start-up widens it.
    "start-up": ((sizing, "_STARTUP_MARGIN_PER_S", 0.0),),
    # A removal has to leave half of what may be missed.
    "caution": ((sizing, "_SAFE_SHARE", 1.0), (sizing, "_CONSOLIDATED_SHARE", 1.0)),
    # A real queue asks for replicas that work it off.
    "backlog": ((outlook, "_MOST_CATCHING_UP", 0.0),),
    # The virtual fleets' KV caches are finite.
    "KV cache": ((queues, "_KV_FULL", 1e9), (queues, "_KV_OVERFULL", 1e9)),
    # Prompts that come one behind the other, beside the queue of all.
    "tail": ((queues, "_TAIL", 1e9),),
    # What comes unevenly queues longer.
    "dispersion": ((dispersion, "_ASSUMED_TURNS", 1e12),),
    # Of those told to be late by chance, fewer may be.
    "chance": ((chance, "_PRIOR", 1e12),),
    # What is left of the error budget lets one more go.
    "consolidation": ((sizing, "_CONSOLIDATED_SHARE", sizing._SAFE_SHARE),),
    # No replica goes while the load grows.
    "growth": ((Bank, "growth", lambda *_: 1.0),),
    # Virtual fleets are drawn towards what really runs.
    "correction": ((queues, "_CORRECTION_S", 1e9), (queues, "_STAY_S", 1e9)),
    # In the engine: late requests yield to those that can still be in time. The virtual fleets go on to believe so.
    "yielding": ((replica, "LATE_HANDICAP_S", 0.0),),
    # They do so before they are late, when what is left of their prompt takes too long.
    "pace": ((PrefillPace, "seconds_for", lambda *_: 0.0),),
    # Measured TPOT corrects the modelled token budget.
    "guard": ((lateness, "_GUARD_BOUNDS", (1.0, 1.0)),),
    # One removal at a time.
    "patience": ((replicas, "_BETWEEN_REMOVALS_S", 0.0),),
    LIMITS: (),
}


class Job(NamedTuple):
    traces: Path
    case: str
    part: str
    cold_start_s: float
    seed: int


class Row(NamedTuple):
    attainment_percent: float
    gpu_hours: float
    scale_events: float
    violation_minutes: float


def run(job: Job) -> Row:
    """The case under the law without the part."""
    question = CASES[job.case].question(job.traces, job.cold_start_s, seed=job.seed)
    with ExitStack() as changed:
        for owner, name, value in PARTS.get(job.part, ()):
            changed.enter_context(patch.object(owner, name, value))
        record = question.ask(REPLICAS_ONLY if job.part == LIMITS else LAW)
    objectives = list(question.objectives.values())
    found = summary(record, objectives)
    good = attained(record, objectives)
    minutes = violation_minutes(record, good, min(objective.percent for objective in objectives) / 100)
    return Row(found.attainment_percent, found.gpu_hours, found.scale_events, minutes)


def violation_minutes(record: Record, good: NDArray[np.bool_], share: float) -> int:
    """Minutes of arrivals with less than this share in time."""
    minute = (np.array(record.book.arrival) // 60).astype(int)
    arrived, met = np.bincount(minute), np.bincount(minute, weights=good)
    return int((met < share * arrived).sum())


def table(rows: dict[Job, Row], cold_start_s: float) -> str:
    """Markdown: attainment %/GPU-hours/scale events/violation-minutes per case, and the sums."""
    jobs = [job for job in rows if job.cold_start_s == cold_start_s]
    cases = list(dict.fromkeys(job.case for job in jobs))
    lines = [
        f"Cold start {cold_start_s:g} s: attainment %/GPU-hours/scale events/violation-minutes",
        "",
        "|" + "|".join(["left out", *cases, "total GPU-h/events/violation-minutes"]) + "|",
        "|" + "---|" * (len(cases) + 2),
    ]
    for part in dict.fromkeys(job.part for job in jobs):
        medians = [_median([rows[j] for j in jobs if (j.part, j.case) == (part, case)]) for case in cases]
        cells = [
            f"{m.attainment_percent:.2f}/{m.gpu_hours:.1f}/{m.scale_events:g}/{m.violation_minutes:g}" for m in medians
        ]
        total = [sum(column) for column in zip(*medians, strict=True)]
        lines.append("|" + "|".join([part, *cells, f"{total[1]:.1f}/{total[2]:g}/{total[3]:g}"]) + "|")
    return "\n".join(lines)


def _median(rows: Sequence[Row]) -> Row:
    return Row(*(statistics.median(column) for column in zip(*rows, strict=True)))


def _jobs(arguments: argparse.Namespace) -> Iterable[Job]:
    parts = arguments.parts.split(",") if arguments.parts else list(PARTS)
    for cold_start_s in arguments.cold_starts.split(","):
        for part in (WHOLE, *parts):
            for case in arguments.cases.split(","):
                for seed in arguments.seeds.split(","):
                    yield Job(arguments.traces, case, part, float(cold_start_s), int(seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, required=True, help="folder with the traces of the cases")
    parser.add_argument("--cases", default=",".join(DEFAULT_CASES))
    parser.add_argument("--parts", default="", help=f"of: {', '.join(PARTS)}")
    parser.add_argument("--cold-starts", default="120")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("build/bench"))
    arguments = parser.parse_args()
    if unknown := set(filter(None, arguments.parts.split(","))) - PARTS.keys():
        parser.error(f"--parts: {', '.join(sorted(unknown))}: there are {', '.join(PARTS)}")
    began = time.perf_counter()
    jobs, found = list(_jobs(arguments)), dict[Job, Row]()
    with ProcessPoolExecutor(arguments.processes) as pool:
        running = {pool.submit(run, job): job for job in jobs}
        for future in as_completed(running):
            job = running[future]
            found[job] = future.result()
            print(f"{len(found)}/{len(jobs)} {job.case} at {job.cold_start_s:g} s, left out: {job.part}", flush=True)
    # In the order of the question, not of the answers.
    rows = {job: found[job] for job in jobs}
    tables = [table(rows, cold_start_s) for cold_start_s in dict.fromkeys(job.cold_start_s for job in jobs)]
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "ablation.md").write_text("\n\n".join(tables) + "\n")
    print("\n" + "\n\n".join(tables))
    print(f"\n{len(jobs)} simulations in {time.perf_counter() - began:.0f} s on {arguments.processes} processes")


if __name__ == "__main__":
    main()
