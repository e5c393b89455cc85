"""A simulation as one picture: load, what it met, and the fleet, on one axis of time; several policies in one picture.

Knows only the plain data of a report.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from capstan_cli.plot import COLOURS, STYLE

_LOAD = "#999999"


def draw(path: Path, reports: Mapping[str, Mapping[str, Any]], title: str) -> None:
    """Write a PNG of the reports, by policy; they are of the same requests."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 8.5), layout="constrained")
        load, attainment, fleet, limits = figure.subplots(4, 1, sharex=True, height_ratios=(1, 1.2, 1.4, 0.9))
        colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(reports)}
        rows = next(iter(reports.values()))["timeline"]
        minutes = [row["t"] / 60 for row in rows]
        load.fill_between(minutes, [row["requests_per_s"] for row in rows], step="post", color=_LOAD, alpha=0.5)
        load.set_ylabel("requests/s")
        load.set_ylim(bottom=0)
        load.set_title(title, loc="left", fontsize=10)
        for name, report in reports.items():
            _attainment(attainment, report["timeline"], colours[name], _label(name, report))
            _fleet(fleet, report, colours[name])
            _limits(limits, report["limits"], minutes[-1] + 1, colours[name])
        attainment.set_ylabel("attainment per minute, %")
        attainment.set_ylim(top=101)
        attainment.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=min(3, len(reports)), borderaxespad=0.1)
        fleet.set_ylabel("replicas:\nwanted, ready (filled)")
        fleet.set_ylim(bottom=0)
        fleet.yaxis.set_major_locator(MaxNLocator(integer=True))
        limits.set_ylabel("limits: tokens,\nsequences (dashed)")
        limits.set_ylim(bottom=0)
        limits.set_xlabel("minutes")
        limits.set_xlim(0, minutes[-1] + 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without the version of the library, so that the same report gives the same bytes.
        figure.savefig(path, dpi=130, metadata={"Software": None})


def _label(name: str, report: Mapping[str, Any]) -> str:
    figures = f"{report['attainment_percent']:.1f} %, {report['gpu_hours']:.1f} GPU-h"
    return f"{name}: {figures}, {report['scale_events']} scale events"


def _attainment(axes: Axes, rows: Sequence[Mapping[str, Any]], colour: str, label: str) -> None:
    known = [row for row in rows if row["attainment_percent"] is not None]
    minutes = [row["t"] / 60 + 0.5 for row in known]
    axes.plot(minutes, [row["attainment_percent"] for row in known], color=colour, linewidth=1.2, label=label)
    missed = [row for row in known if row["violated"]]
    places = [row["t"] / 60 + 0.5 for row in missed]
    axes.scatter(places, [row["attainment_percent"] for row in missed], s=14, color=colour, zorder=3)


def _fleet(axes: Axes, report: Mapping[str, Any], colour: str) -> None:
    rows, targets = report["timeline"], report["targets"]
    minutes = [0.0, *(row["t"] / 60 + 1 for row in rows)]
    ready = [targets[0]["replicas"], *(row["ready"] for row in rows)]
    axes.fill_between(minutes, ready, step="pre", color=colour, alpha=0.18, linewidth=0)
    _step(axes, targets, "replicas", minutes[-1], colour, "-")


def _limits(axes: Axes, limits: Sequence[Mapping[str, Any]], end: float, colour: str) -> None:
    _step(axes, limits, "max_batched_tokens", end, colour, "-")
    _step(axes, limits, "max_sequences", end, colour, "--")


def _step(axes: Axes, changes: Sequence[Mapping[str, Any]], key: str, end: float, colour: str, linestyle: str) -> None:
    moments = [*(change["t"] / 60 for change in changes), end]
    values = [*(change[key] for change in changes), changes[-1][key]]
    axes.step(moments, values, where="post", color=colour, linewidth=1.4, linestyle=linestyle)
