"""A run as one picture: stacked panels that share the time axis. Drawn with matplotlib, without a display.

Dots are single requests as clients saw them; the line through them is the p95 of the last 15 seconds; dashes are the
threshold of the class. With frames of the operator, limits and replicas stand below, and its scaling decisions are
numbered there and spelled out under the picture.
"""

import textwrap
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from capstan_api.status import DecisionAction, DecisionStatus
from capstan_cli import output
from capstan_cli.measure import Outcome, Thresholds, class_name, percentile
from capstan_cli.report import Run

# Okabe and Ito's palette: told apart by colour-blind readers and in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_LOAD, _TOKENS, _LIMIT, _SEQUENCES, _READY, _WANTED = "#999999", "#009E73", "#0072B2", "#E69F00", "#56B4E9", "#000000"
_WINDOW_S = 15.0
_BIN_S = 5.0
_MAX_SPELLED = 6
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


def draw(path: Path, outcomes: Sequence[Outcome], thresholds: Mapping[str, Thresholds], run: Run | None = None) -> None:
    """Write a PNG: load, TTFT and TPOT, and with `run` also limits and replicas."""
    decisions = _scaling(run)[:_MAX_SPELLED] if run else []
    heights = [1.0, 1.3, 1.3, *([1.0, 1.0] if run else [])]
    footer_in = 0.25 * len(decisions) + (0.3 if decisions else 0.0)
    with mpl.rc_context(STYLE):
        height = 1.75 * sum(heights) + footer_in
        # The panels leave a strip at the bottom for the decisions in words.
        layout = ConstrainedLayoutEngine(rect=(0, footer_in / height, 1, 1 - footer_in / height))
        figure = Figure(figsize=(11, height), layout=layout)
        axes = list(figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0])
        classes = _classes(outcomes, thresholds)
        _load(axes[0], outcomes)
        _latency(axes[1], "TTFT", "ttft_s", outcomes, thresholds, classes)
        _latency(axes[2], "TPOT", "tpot_s", outcomes, thresholds, classes)
        if run is not None:
            _limits(axes[3], run)
            _replicas(axes[4], run, decisions)
        ends = [o.ended_s for o in outcomes]
        if run is not None:
            ends.append(run.second(run.frames[-1]))
        axes[0].set_xlim(0, max([*ends, 1.0]))
        axes[-1].set_xlabel("seconds since the load began")
        figure.align_ylabels(axes)
        lines = [f"{n}  {textwrap.shorten(d.message, 150, placeholder=' …')}" for n, d in enumerate(decisions, 1)]
        figure.text(0.06, (footer_in - 0.1) / height, "\n".join(lines), va="top", linespacing=1.6, color="#333333")
        output.write_picture(path, figure)


def _classes(outcomes: Sequence[Outcome], thresholds: Mapping[str, Thresholds]) -> dict[str, str]:
    """Each class with its colour, declared ones first."""
    present = dict.fromkeys([*thresholds, *(class_name(o, thresholds) for o in outcomes)])
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(present)}


def _load(axes: Axes, outcomes: Sequence[Outcome]) -> None:
    last = max((o.ended_s for o in outcomes), default=0.0)
    edges = [_BIN_S * i for i in range(int(last / _BIN_S) + 2)]
    arrived, produced = [0.0] * len(edges), [0.0] * len(edges)
    for o in outcomes:
        arrived[int(o.sent_s / _BIN_S)] += 1 / _BIN_S
        if o.first_token_s is not None and o.last_token_s is not None:
            # A request's tokens are spread evenly between its first and its last.
            first, end = int(o.first_token_s / _BIN_S), int(o.last_token_s / _BIN_S)
            for index in range(first, end + 1):
                produced[index] += o.output_tokens / (end - first + 1) / _BIN_S
    axes.fill_between(edges, arrived, step="post", color=_LOAD, alpha=0.45, linewidth=0, label="requests/s (left)")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("load")
    right = right_scale(axes)
    right.step(edges, produced, where="post", color=_TOKENS, linewidth=1.4, label="output tokens/s (right)")
    right.set_ylim(bottom=0)
    _legend(axes, right)


def _latency(
    axes: Axes,
    label: str,
    attribute: str,
    outcomes: Sequence[Outcome],
    thresholds: Mapping[str, Thresholds],
    classes: Mapping[str, str],
) -> None:
    for name, colour in classes.items():
        points = sorted(
            (o.ended_s if attribute == "tpot_s" else o.first_token_s or o.ended_s, 1000 * value)
            for o in outcomes
            if class_name(o, thresholds) == name and (value := getattr(o, attribute)) is not None
        )
        threshold = getattr(thresholds.get(name, Thresholds()), attribute.replace("_s", "_ms"))
        if points:
            times, values = zip(*points, strict=True)
            axes.scatter(times, values, s=7, color=colour, alpha=0.3, linewidths=0)
            axes.plot(*_windowed_p95(points), color=colour, linewidth=1.6, label=f"{name} p95")
        if threshold is not None:
            axes.axhline(
                threshold, color=colour, linestyle=(0, (5, 3)), linewidth=1.1, label=f"{name} ≤ {threshold:g} ms"
            )
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel(f"{label} ms")
    if axes.get_legend_handles_labels()[0]:
        _legend(axes)


def _windowed_p95(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """At each point, the p95 of those in the 15 seconds up to it."""
    times, values, first = [], [], 0
    for index, (at, _) in enumerate(points):
        while points[first][0] < at - _WINDOW_S:
            first += 1
        times.append(at)
        values.append(percentile(sorted(value for _, value in points[first : index + 1]), 95))
    return times, values


def _limits(axes: Axes, run: Run) -> None:
    history = run.limit_history
    if not history:
        return
    end = run.second(run.frames[-1])
    seconds = [*(max(s, 0.0) for s, _, _ in history), end]
    tokens, sequences = [t for _, t, _ in history], [n for _, _, n in history]
    axes.step(seconds, [*tokens, tokens[-1]], where="post", color=_LIMIT, linewidth=1.6, label="batched tokens (left)")
    right = right_scale(axes)
    right.step(
        seconds, [*sequences, sequences[-1]], where="post", color=_SEQUENCES, linewidth=1.6, label="sequences (right)"
    )
    for side, values in ((axes, tokens), (right, sequences)):
        side.set_ylim(0, 1.15 * max(values))
        side.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set_ylabel("limits")
    _legend(axes, right)


def _replicas(axes: Axes, run: Run, decisions: Sequence[DecisionStatus]) -> None:
    frames = [f for f in run.frames if run.second(f) >= 0]
    seconds = [run.second(f) for f in frames]
    ready, wanted = [f.replicas_ready for f in frames], [f.replicas_wanted for f in frames]
    axes.fill_between(seconds, ready, step="post", color=_READY, alpha=0.55, linewidth=0, label="ready")
    axes.step(seconds, wanted, where="post", color=_WANTED, linewidth=1.2, linestyle=(0, (3, 2)), label="wanted")
    top = max([*ready, *wanted, 1])
    for number, decision in enumerate(decisions, 1):
        at = max(_epoch(decision.time) - run.load_started_at, 0.0)
        axes.annotate(
            str(number),
            (at, top + 0.45),
            ha="center",
            va="center",
            fontsize=8,
            color="white",
            bbox={"boxstyle": "circle,pad=0.25", "facecolor": "#333333", "edgecolor": "none"},
        )
        axes.axvline(at, color="#333333", linewidth=0.7, ymax=(top + 0.2) / (top + 0.8))
    axes.set_ylim(0, top + 0.8)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("replicas")
    _legend(axes)


def _scaling(run: Run) -> list[DecisionStatus]:
    """Scaling decisions made under the load."""
    moves = {DecisionAction.SCALE_UP, DecisionAction.SCALE_DOWN}
    return [d for d in run.decisions if d.action in moves and _epoch(d.time) >= run.load_started_at - 1]


def right_scale(axes: Axes) -> Axes:
    """A second scale on the right, without a grid of its own."""
    right = axes.twinx()
    right.grid(visible=False)
    right.spines["right"].set_visible(True)
    return right


def _legend(*sides: Axes) -> None:
    handles, labels = [], []
    for side in sides:
        more_handles, more_labels = side.get_legend_handles_labels()
        handles += more_handles
        labels += more_labels
    sides[-1].legend(handles, labels, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(handles), borderaxespad=0.1)


def _epoch(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()
