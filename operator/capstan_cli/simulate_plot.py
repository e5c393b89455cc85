"""A simulation as one picture: load, what became of it, and the fleet, on one axis of time; several policies in one.

Knows only the plain data of a report. Of one policy it also shows why requests missed, minute by minute.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from capstan_cli import output
from capstan_cli.plot import COLOURS, STYLE, right_scale
from capstan_sim.report import Cause

_LOAD = "#999999"
_BEST = 100.0
_LEAST_SPAN = 5.0
"""Of the scale of attainment, in percent: less would make a trifle look like a failure."""


def draw(path: Path, reports: Mapping[str, Mapping[str, Any]], title: str) -> None:
    """Write a PNG of the reports, by policy; they are of the same requests."""
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(reports)}
    first = next(iter(reports.values()))
    is_alone = len(reports) == 1
    heights = [1.0, 1.2, *([0.9] if is_alone else []), 1.4, 1.0]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 1.9 * sum(heights)), layout="constrained")
        load, attainment, *middle, fleet, limits = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
        _load(load, first["timeline"])
        load.set_title(title, loc="left", fontsize=10)
        for name, report in reports.items():
            _attainment(attainment, report["timeline"], colours[name], _label(name, report))
            _fleet(fleet, report, colours[name], is_alone=is_alone)
        attainment.set_ylabel("attainment\nper minute, %")
        attainment.set_ylim(min(attainment.get_ylim()[0], _BEST - _LEAST_SPAN), _BEST + 1)
        # Beside the lines of a bad minute no corner is free.
        attainment.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=min(2, len(reports)), borderaxespad=0.1)
        for axes in middle:
            _missed(axes, first["timeline"])
        fleet.set_ylim(bottom=0)
        fleet.yaxis.set_major_locator(MaxNLocator(integer=True))
        _limits(limits, reports, colours)
        limits.set_xlabel("minutes")
        limits.set_xlim(0, len(first["timeline"]))
        figure.align_ylabels()
        output.write_picture(path, figure)


def _load(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    rates = [row["requests_per_s"] for row in rows]
    axes.fill_between(range(len(rates) + 1), [*rates, rates[-1]], step="post", color=_LOAD, alpha=0.5, linewidth=0)
    axes.set_ylabel("requests/s")
    axes.set_ylim(bottom=0)


def _label(name: str, report: Mapping[str, Any]) -> str:
    figures = f"{report['attainment_percent']:.2f} %, {report['gpu_hours']:.1f} GPU-h"
    return f"{name}: {figures}, {report['scale_events']} scale events"


def _attainment(axes: Axes, rows: Sequence[Mapping[str, Any]], colour: str, label: str) -> None:
    known = [row for row in rows if row["attainment_percent"] is not None]
    minutes = [row["t"] / 60 + 0.5 for row in known]
    axes.plot(minutes, [row["attainment_percent"] for row in known], color=colour, linewidth=1.2, label=label)
    missed = [row for row in known if row["violated"]]
    places = [row["t"] / 60 + 0.5 for row in missed]
    axes.scatter(places, [row["attainment_percent"] for row in missed], s=14, color=colour, zorder=3)


def _missed(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Bars of the missed requests of each minute, one colour for each cause."""
    minutes = [row["t"] / 60 + 0.5 for row in rows]
    below = [0] * len(rows)
    met = {cause for row in rows for cause in row["violations"]}
    # Every cause keeps its colour from picture to picture.
    for colour, cause in [both for both in zip(COLOURS, Cause, strict=True) if both[1] in met]:
        counts = [row["violations"].get(cause, 0) for row in rows]
        axes.bar(minutes, counts, bottom=below, width=1.0, color=colour, label=cause.replace("_", " "))
        below = [low + count for low, count in zip(below, counts, strict=True)]
    axes.set_ylabel("missed\nper minute")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if any(below):
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(COLOURS), borderaxespad=0.1)
    else:
        axes.set_ylim(0, 1)


def _fleet(axes: Axes, report: Mapping[str, Any], colour: str, *, is_alone: bool) -> None:
    """Ready replicas as an area or, where several would hide each other, as a line; wanted ones as dots."""
    rows, targets = report["timeline"], report["targets"]
    ready = [targets[0]["replicas"], *(row["ready"] for row in rows)]
    if is_alone:
        axes.fill_between(range(len(ready)), ready, step="pre", color=colour, alpha=0.25, linewidth=0)
    else:
        axes.step(range(len(ready)), ready, where="pre", color=colour, linewidth=1.4)
    _step(axes, targets, "replicas", len(rows), colour, "-" if is_alone else ":")
    axes.set_ylabel("replicas: ready (area),\nwanted (line)" if is_alone else "replicas: ready,\nwanted (dotted)")


def _limits(axes: Axes, reports: Mapping[str, Mapping[str, Any]], colours: Mapping[str, str]) -> None:
    right = right_scale(axes)
    for name, report in reports.items():
        end = len(report["timeline"])
        _step(axes, report["limits"], "max_batched_tokens", end, colours[name], "-")
        _step(right, report["limits"], "max_sequences", end, colours[name], "--")
    # Two constants do not hide each other.
    for side, label, room in ((axes, "limits:\ntokens", 1.1), (right, "sequences\n(dashed)", 1.3)):
        side.set_ylim(0, room * side.get_ylim()[1])
        side.set_ylabel(label)


def _step(axes: Axes, changes: Sequence[Mapping[str, Any]], key: str, end: float, colour: str, linestyle: str) -> None:
    moments = [*(change["t"] / 60 for change in changes), end]
    values = [*(change[key] for change in changes), changes[-1][key]]
    axes.step(moments, values, where="post", color=colour, linewidth=1.4, linestyle=linestyle)
