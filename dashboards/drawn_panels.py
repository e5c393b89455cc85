"""How each kind of panel is drawn with matplotlib: lines, a number, a heat map, a table.

Reads titles, units, colours and legends from the panel's JSON and values from `ask`; knows neither Prometheus nor where
the panel stands.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import Bbox

from dashboards.ask import Line

# Okabe and Ito's palette: told apart by colour-blind readers and in print.
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#000000")
_NAMED: Final = {"green": "#009E73", "orange": "#E69F00", "red": "#D55E00", "blue": "#0072B2"}
Panel = Mapping[str, Any]
Ask = Callable[[Mapping[str, Any]], list[Line]]


def draw(axes: Axes, panel: Panel, ask: Ask) -> None:
    """Draw a panel; `ask` answers one of its targets. Raises what `ask` raises."""
    _DRAWN[panel["type"]](axes, panel, ask)


def _timeseries(axes: Axes, panel: Panel, ask: Ask) -> None:
    dashed = _dashed(panel)
    field = panel["fieldConfig"]["defaults"]
    colours = iter(_COLOURS * 20)
    solid: dict[tuple[tuple[str, str], ...], str] = {}
    stacked = field.get("custom", {}).get("stacking", {}).get("mode") == "normal"
    ground: dict[float, float] = {}
    # Such as replicas: between whole numbers there is nothing to name.
    is_whole = True
    for target in panel["targets"]:
        for line in ask(target):
            name, whose = line.called(target["legendFormat"]), tuple(sorted(line.labels.items()))
            style = "--" if target["refId"] in dashed else "-"
            # A bound has the colour of what it bounds.
            colour = solid.get(whose) if style == "--" else None
            colour = colour or next(colours)
            solid.setdefault(whose, colour)
            points = [(at, value) for at, value in line.points if math.isfinite(value)]
            is_whole &= all(value.is_integer() for _, value in points)
            if stacked:
                below = [ground.get(at, 0.0) for at, _ in points]
                above = [value + low for (_, value), low in zip(points, below, strict=True)]
                axes.fill_between([at for at, _ in points], below, above, color=colour, alpha=0.35, label=name)
                ground.update({at: high for (at, _), high in zip(points, above, strict=True)})
                continue
            axes.plot([at for at, _ in points], [v for _, v in points], style, color=colour, linewidth=1.3, label=name)
    for step in field.get("thresholds", {}).get("steps", []):
        if step["value"] is not None and "thresholdsStyle" in field.get("custom", {}):
            axes.axhline(step["value"], color=_NAMED["red"], linewidth=0.8, linestyle=":")
    if field.get("min") == 0:
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=is_whole))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: in_unit(value, field.get("unit", ""))))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.1), ncols=2, columnspacing=1, handlelength=1.5)


def _stat(axes: Axes, panel: Panel, ask: Ask) -> None:
    field = panel["fieldConfig"]["defaults"]
    values = [line.points[-1][1] for target in panel["targets"] for line in ask(target) if line.points]
    axes.set_axis_off()
    text = in_unit(values[0], field["unit"]) if values else "no data"
    colour = next(
        (
            s["color"]
            for s in reversed(field["thresholds"]["steps"])
            if s["value"] is None or (values and values[0] >= s["value"])
        ),
        "blue",
    )
    axes.text(0, 0.35, text, fontsize=17, color=_NAMED[colour], va="center", transform=axes.transAxes)


def _heatmap(axes: Axes, panel: Panel, ask: Ask) -> None:
    lines = sorted(ask(panel["targets"][0]), key=lambda line: float(line.labels["le"]))
    moments = sorted({at for line in lines for at, _ in line.points})
    below = dict.fromkeys(moments, 0.0)
    cells = []
    for line in lines:
        upto = dict(line.points)
        cells.append([max(upto.get(at, 0.0) - below[at], 0.0) for at in moments])
        below = {at: upto.get(at, 0.0) for at in moments}
    bounds = [float(line.labels["le"]) for line in lines]
    used = [row for row, values in enumerate(cells) if any(values) and math.isfinite(bounds[row])]
    if not used:
        return
    axes.pcolormesh(moments, range(len(bounds)), cells, cmap="Oranges", shading="nearest")
    axes.set_ylim(max(used[0] - 2, 0), used[-1] + 1.5)
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda row, _: in_unit(bounds[int(row)], "s") if 0 <= row < len(bounds) else "")
    )


def _table(axes: Axes, panel: Panel, ask: Ask) -> None:
    organized = next(t["options"] for t in panel["transformations"] if t["id"] == "organize")
    units = {o["matcher"]["options"]: p["value"] for o in panel["fieldConfig"]["overrides"] for p in o["properties"]}
    keys = [name for name in organized["indexByName"] if name not in organized["renameByName"]]
    titles = list(organized["renameByName"].values())
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for title, target in zip(titles, panel["targets"], strict=True):
        for line in ask(target):
            row = rows.setdefault(tuple(line.labels.get(key, "") for key in keys), {})
            row[title] = in_unit(line.points[-1][1], units[title])
    axes.set_axis_off()
    if rows:
        cells = [[*key, *(row.get(title, "") for title in titles)] for key, row in sorted(rows.items())]
        height = 0.2 * (len(cells) + 1)
        box = Bbox.from_bounds(0, 1 - height, 1, height)
        table = axes.table(
            cells, colLabels=[*keys, *titles], bbox=box, cellLoc="left", colLoc="left", edges="horizontal"
        )
        table.auto_set_font_size(False)


_DRAWN: Final = {"timeseries": _timeseries, "stat": _stat, "heatmap": _heatmap, "table": _table}


def _dashed(panel: Panel) -> set[str]:
    """Letters of the queries that are drawn dashed."""
    overrides = panel["fieldConfig"].get("overrides", [])
    return {
        override["matcher"]["options"]
        for override in overrides
        if any(prop["id"] == "custom.lineStyle" for prop in override["properties"])
    }


def in_unit(value: float, unit: str) -> str:
    """A value as Grafana would write it."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "–"
    match unit:
        case "percentunit":
            return f"{_rounded(value * 100)} %"
        case "s":
            return f"{_rounded(value * 1000)} ms" if abs(value) < 1 else f"{_rounded(value)} s"
        case "h":
            return f"{_rounded(value)} h"
        case "reqps" | "ops" | "cps":
            return f"{_rounded(value)}/s"
        case _:
            return _rounded(value)


def _rounded(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
