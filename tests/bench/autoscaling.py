"""The table of autoscalers: attainment, GPU-hours and scale events of every policy on every development case.

    python tests/bench/autoscaling.py --traces DIR [--cases az-conv,mc-syn] [--policies capstan,keda_slo:0.6]
        [--cold-starts 30,120,300] [--seeds 0,1,2] [--rule outstanding] [--bounds] [--processes 2]
        [--output build/bench]

Without `--policies`: the law and every peer at its three knobs; a peer also gets a line with its best knob in each
case: the cheapest that attains 99 %, else the one that attains most. A cell is the median over the clone seeds. The
bounds (fluid, static oracle, causal limit, clairvoyant) are made for the first seed. GPU-hours are also given as
ratios: over the clairvoyant with `--bounds`, else over the cheapest policy that attains 99 %. Writes autoscaling.json
and autoscaling.png.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from capstan_sim import bounds
from capstan_sim.cases import CASES
from capstan_sim.clairvoyant import clairvoyant
from capstan_sim.measure import Summary, summary
from capstan_sim.policies import KNOBS, PEERS
from capstan_sim.router import Rule
from capstan_sim.what_if import LAW

DEFAULT_CASES = ("az-conv", "sg-large", "sg-mid", "mc-syn")
ATTAINED_PERCENT = 99.0


@dataclass(frozen=True)
class Job:
    """One simulation, or one search for bounds when `policy` is one of `BOUNDS`."""

    traces: Path
    case: str
    policy: str
    cold_start_s: float
    seed: int
    rule: Rule = Rule.GATEWAY


@dataclass(frozen=True)
class Cell:
    """What came of one policy in one case: medians over seeds."""

    case: str
    policy: str
    cold_start_s: float
    attainment_percent: float
    gpu_hours: float
    scale_events: float
    flips: float
    limit_changes: float
    wall_s: float
    note: str = ""


BOUNDS = ("fluid", "static oracle", "causal limit", "clairvoyant")


def run(job: Job) -> tuple[Summary | None, str, float]:
    """The summary, a note for people, and the wall time. No summary where no fleet within the bounds attains 99 %."""
    began = time.perf_counter()
    question = replace(CASES[job.case].question(job.traces, job.cold_start_s, seed=job.seed), rule=job.rule)
    if job.policy not in BOUNDS:
        record = question.ask(job.policy)
        return summary(record, list(question.objectives.values())), "", time.perf_counter() - began
    setting = question.setting("")
    trial = bounds.Trial(question.workload, setting)
    found: Summary | None
    note = ""
    if job.policy == "fluid":
        hours = bounds.fluid_gpu_hours(question.workload, setting.model, setting.objective)
        found = Summary(100 * bounds.SHARE, hours, 0, 0, 0)
    elif job.policy == "causal limit":
        found = bounds.causal_limit(trial)
    else:
        bound = bounds.static_oracle(trial) if job.policy == "static oracle" else clairvoyant(trial)
        found, note = (bound.summary, f"{bound.origin}, {bound.limits}") if bound else (None, "none attains 99 %")
    return found, note, time.perf_counter() - began


def cells(jobs: Sequence[Job], num_processes: int) -> list[Cell]:
    """Everything simulated, in the order of the jobs, seeds folded into medians."""
    done: dict[Job, tuple[Summary | None, str, float]] = {}
    with ProcessPoolExecutor(num_processes) as pool:
        running = {pool.submit(run, job): job for job in jobs}
        for future in as_completed(running):
            job = running[future]
            done[job] = future.result()
            found, _, wall_s = done[job]
            what = f"{job.case} {job.policy} at {job.cold_start_s:g} s, seed {job.seed}"
            print(f"{len(done)}/{len(jobs)} {what}: {_cell_text(found)} in {wall_s:.1f} s", flush=True)
    groups: dict[tuple[str, str, float], list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.case, job.policy, job.cold_start_s), []).append(job)
    return [_median(key, [done[job] for job in group]) for key, group in groups.items() if done[group[0]][0]]


def _median(key: tuple[str, str, float], results: Sequence[tuple[Summary | None, str, float]]) -> Cell:
    rows = [asdict(found) for found, _, _ in results if found is not None]
    medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    return Cell(*key, **medians, wall_s=sum(wall_s for _, _, wall_s in results), note=results[0][1])


def _cell_text(found: Summary | Cell | None) -> str:
    if found is None:
        return "-"
    return f"{found.attainment_percent:.1f}/{found.gpu_hours:.1f}/{found.scale_events:g}"


def _ratio_text(cell: Cell | None, yardstick: float | None) -> str:
    return f" ({cell.gpu_hours / yardstick:.2f})" if cell and yardstick else ""


def table(found: Sequence[Cell], cold_start_s: float) -> str:
    """Markdown: attainment %/GPU-hours/scale events per case, then totals and the ratio of the GPU-hours."""
    rows = {(cell.case, cell.policy): cell for cell in found if cell.cold_start_s == cold_start_s}
    names = list(dict.fromkeys(case for case, _ in rows))
    lines = [
        f"Cold start {cold_start_s:g} s: attainment %/GPU-hours/scale events (GPU-hours over the yardstick)",
        "",
        "|" + "|".join(["policy", *names, "total GPU-h/events/flips", "cases at 99 %"]) + "|",
        "|" + "---|" * (len(names) + 3),
    ]
    yardsticks = {case: _yardstick(case, rows) for case in names}
    policies = list(dict.fromkeys(policy for _, policy in rows))
    lines_of = {policy: [rows.get((case, policy)) for case in names] for policy in policies}
    for family, knobs in _families(policies).items():
        lines_of[f"{family}, best knob"] = [_best(rows, case, knobs) for case in names]
    for policy, found_here in lines_of.items():
        texts = [
            _cell_text(cell) + _ratio_text(cell, yardsticks[case]) for case, cell in zip(names, found_here, strict=True)
        ]
        there = [cell for cell in found_here if cell is not None]
        total = f"{sum(c.gpu_hours for c in there):.1f}/{sum(c.scale_events for c in there):g}/"
        total += f"{sum(c.flips for c in there):g}" if len(there) == len(names) else " (not all)"
        good = sum(cell.attainment_percent >= ATTAINED_PERCENT for cell in there)
        lines.append("|" + "|".join([policy, *texts, total, f"{good} of {len(names)}"]) + "|")
    return "\n".join(lines)


def _families(policies: Sequence[str]) -> dict[str, list[str]]:
    """Peers of which several knobs were run."""
    families: dict[str, list[str]] = {}
    for policy in policies:
        families.setdefault(policy.partition(":")[0], []).append(policy)
    return {family: knobs for family, knobs in families.items() if family in PEERS and len(knobs) > 1}


def _best(rows: dict[tuple[str, str], Cell], case: str, knobs: Sequence[str]) -> Cell | None:
    """The cheapest that attains 99 %, else the one that attains most."""
    here = [rows[case, policy] for policy in knobs if (case, policy) in rows]
    in_time = [cell for cell in here if cell.attainment_percent >= ATTAINED_PERCENT]
    if in_time:
        return min(in_time, key=lambda cell: cell.gpu_hours)
    return max(here, key=lambda cell: cell.attainment_percent, default=None)


def _yardstick(case: str, rows: dict[tuple[str, str], Cell]) -> float | None:
    if (case, "clairvoyant") in rows:
        return rows[case, "clairvoyant"].gpu_hours
    in_time = [cell.gpu_hours for (at, _), cell in rows.items() if at == case and cell.attainment_percent >= 99]
    return min(in_time, default=None)


def draw(found: Sequence[Cell], cold_start_s: float, path: Path) -> None:
    """One panel per case: misses, on a logarithmic scale, over GPU-hours; a line joins the knobs of one policy."""
    here = [
        cell for cell in found if cell.cold_start_s == cold_start_s and cell.policy not in ("fluid", "causal limit")
    ]
    names = list(dict.fromkeys(cell.case for cell in here))
    figure, axes = plt.subplots(1, len(names), figsize=(5.2 * len(names), 5), squeeze=False, layout="constrained")
    families = list(dict.fromkeys(cell.policy.partition(":")[0] for cell in here))
    colours = plt.get_cmap("tab20")
    for panel, case in zip(axes[0], names, strict=True):
        for index, family in enumerate(families):
            mine = [cell for cell in here if cell.case == case and cell.policy.partition(":")[0] == family]
            panel.plot(
                [cell.gpu_hours for cell in mine],
                [max(0.01, 100 - cell.attainment_percent) for cell in mine],
                "*-" if family == LAW else "o-",
                markersize=15 if family == LAW else 5,
                color="black" if family in (LAW, *BOUNDS) else colours(index % 20),
                linewidth=0.8,
                label=family,
            )
        panel.axhline(100 - ATTAINED_PERCENT, color="grey", linestyle=":")
        # From nothing on, so that what hardly differs does not look as if it did. A scale brings formatters of its own.
        panel.set(title=case, yscale="log", xlabel="GPU-hours", ylabel="requests late, %", ylim=(0.008, 120))
        panel.set_xlim(left=0, right=1.04 * max(cell.gpu_hours for cell in here if cell.case == case))
        panel.yaxis.set_major_formatter("{x:g}")
    axes[0][-1].legend(fontsize=7, loc="lower left")
    figure.suptitle(f"Cold start {cold_start_s:g} s")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _jobs(arguments: argparse.Namespace) -> Iterable[Job]:
    every_peer = [f"{name}:{knob:g}" for name in PEERS for knob in KNOBS]
    policies = arguments.policies.split(",") if arguments.policies else [LAW, *every_peer]
    with_bounds = BOUNDS if arguments.bounds else ()
    for cold_start_s in _numbers(arguments.cold_starts):
        for case in arguments.cases.split(","):
            for policy in with_bounds:
                yield Job(arguments.traces, case, policy, cold_start_s, 0, arguments.rule)
            for policy in policies:
                for seed in _numbers(arguments.seeds):
                    yield Job(arguments.traces, case, policy, cold_start_s, int(seed), arguments.rule)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, required=True, help="folder with the traces of the cases")
    parser.add_argument("--cases", default=",".join(DEFAULT_CASES))
    parser.add_argument("--policies", default="")
    parser.add_argument("--cold-starts", default="120")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--bounds", action="store_true")
    parser.add_argument("--rule", type=Rule, choices=Rule, default=Rule.GATEWAY, help="which replica gets a request")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("build/bench"))
    arguments = parser.parse_args()
    began = time.perf_counter()
    found = cells(list(_jobs(arguments)), arguments.processes)
    wall_s = time.perf_counter() - began
    arguments.output.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {"wall_s": round(wall_s, 1), "cells": [asdict(cell) for cell in found]}
    (arguments.output / "autoscaling.json").write_text(json.dumps(document, indent=1) + "\n")
    cold_starts = _numbers(arguments.cold_starts)
    for cold_start_s in cold_starts:
        print("\n" + table(found, cold_start_s))
        suffix = f"-{cold_start_s:g}s" if len(cold_starts) > 1 else ""
        draw(found, cold_start_s, arguments.output / f"autoscaling{suffix}.png")
    print(f"\n{len(found)} cells in {wall_s:.0f} s of wall time on {arguments.processes} processes")


if __name__ == "__main__":
    main()
